"""Experiment tracking: one parent run an invocation, nested runs a phase and a seed. The only module that imports mlflow.

By default runs go to SQLite and a folder of files under `compute.artifacts`; `mlflow.tracking_uri` names a server instead.
Models are stored in MLflow's loader-module form: the artifact folder itself (safetensors, `meta.json`, checksums) with the code that
opens it. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from filelock import FileLock, Timeout

# Read by mlflow when it is imported: no telemetry, no log lines, and short patience with a dead server. What the user set stays.
os.environ.update(
    {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        **os.environ,
    }
)

import mlflow
import mlflow.pyfunc
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from numpy.typing import NDArray
from sqlalchemy.exc import SQLAlchemyError

from src.artifacts import command, git_commit
from src.config import Config, flatten
from src.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
logging.getLogger("alembic").setLevel(logging.ERROR)  # announces each migration of a new database otherwise
for name in ("mlflow.store.db.utils", "sqlalchemy.pool"):  # of a store that is lost `_Store` tells, in one line; these print a traceback each time
    logging.getLogger(name).setLevel(logging.CRITICAL)

CODE = tuple(str(Path(__file__).parents[1] / room) for room in ("src", "envs", "agents"))
"""Stored beside each model, so that a server can open it without this checkout."""

BATCH = 100
"""Largest number of parameters that MLflow takes at once."""

SECTIONS = {
    "lstm": ("data", "lstm", "temporal"),
    "sae": ("data", "sae"),
    "sensor": ("data",),
    "rl": ("env", "attackers", "reward", "rl"),
    "eval": ("env", "attackers", "reward", "eval"),
}
"""Sections of the configuration that a nested run of a phase logs as its own parameters, so that two of them can be compared; the parent has all."""

_PARENT = "mlflow.parentRunId"
_OURS = "INVALID_PARAMETER_VALUE"
"""What MLflow answers to a mistake of the caller's, which is no loss of the store."""
T = TypeVar("T")
_REQUIREMENTS = ("torch", "numpy", "scipy", "safetensors", "pydantic", "PyYAML", "mlflow")


class _Store:
    """The way to the store. Once it fails, the work goes on, and what would have been logged is kept in a file instead.

    It is not tried again: every further call would cost the time in which a server is given up.
    """

    def __init__(self, client: mlflow.MlflowClient, unsent: Path) -> None:
        self.client, self._unsent, self.lost = client, unsent, False

    def send(self, record: Mapping[str, Any], call: Callable[[], T], otherwise: T) -> T:
        """What `call` gives; where the store is lost, `otherwise`, and `record` is a line of the file."""
        if not self.lost:
            try:
                return call()
            except (MlflowException, SQLAlchemyError, OSError) as error:
                if isinstance(error, MlflowException) and error.error_code == _OURS:
                    raise
                self.lost = True
                reason = " ".join(str(error).split())[:200]
                log.warning(
                    "MLflow at '%s' is lost: %s. The run goes on; what is not in MLflow is kept in '%s'", self.client.tracking_uri, reason, self._unsent
                )
        with contextlib.suppress(OSError), self._unsent.open("a", encoding="utf-8") as file:  # of a disk that is full the work itself will tell
            file.write(json.dumps({"time": time.time(), **record}, default=str) + "\n")
        return otherwise


class Tracker:
    """Logs to one run. Meets `src.training.log.TrainingLog`. A store that is lost on the way is warned of once, and does not end the work."""

    def __init__(self, store: _Store, experiment_id: str, run_id: str, config: Config, tags: Mapping[str, str]) -> None:
        self._store, self._client, self._experiment, self._config, self._tags = store, store.client, experiment_id, config, tags
        self.run_id = run_id

    def _send(self, record: Mapping[str, Any], call: Callable[[], object]) -> None:
        self._store.send({"run": self.run_id, **record}, call, None)

    @property
    def uri(self) -> str:
        """Of the store, as `mlflow ui --backend-store-uri` takes it."""
        return self._client.tracking_uri

    @contextlib.contextmanager
    def nested(self, name: str, tags: Mapping[str, Any] | None = None, config: Config | None = None) -> Iterator[Tracker]:
        """A run below this one (a phase, a seed); ends FINISHED, FAILED, or KILLED on Ctrl-C.

        It has this run's tags, so that a filter finds it by them, and those given in their place; and its phase's settings, of `config` where that is
        not this run's, as parameters.
        """
        all_tags = {**self._tags, **_plain(tags)}
        record = {"run": self.run_id, "nested": name, "tags": all_tags}
        tags = {**all_tags, _PARENT: self.run_id}
        run_id = self._store.send(record, lambda: self._client.create_run(self._experiment, tags=tags, run_name=name).info.run_id, f"unsent {name}")
        with _ending(self._store, run_id):
            below = Tracker(self._store, self._experiment, run_id, config or self._config, all_tags)
            sections = SECTIONS.get(all_tags.get("phase", ""), ())
            below.log_params({**{name: getattr(below._config, name).model_dump(mode="json") for name in sections}, "compute.seed": all_tags["seed"]})
            yield below

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; sections within are flattened to dotted names."""
        told = {key: str(value) for key, value in flatten(params).items()}
        flat = [Param(key, value) for key, value in told.items()]
        parts = [flat[first : first + BATCH] for first in range(0, len(flat), BATCH)]
        self._send({"params": told}, lambda: [self._client.log_batch(self.run_id, params=part) for part in parts])

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers, of a step (an epoch, an environment step) or final; `/` in a name groups charts."""
        now = int(time.time() * 1000)
        rows = [Metric(re.sub(r"[^\w\-./ :]", "_", key), float(value), now, step or 0) for key, value in metrics.items()]
        self._send({"metrics": dict(metrics), "step": step}, lambda: self._client.log_batch(self.run_id, metrics=rows))

    def log_figure(self, figure: Figure, path: str) -> None:
        """Store a figure as a file."""
        self._send({"figure": path}, lambda: self._client.log_figure(self.run_id, figure, path))

    def log_table(self, rows: Sequence[Mapping[str, Any]], path: str) -> None:
        """Store rows of equal keys as a JSON table, which the UI shows and compares."""
        if rows:
            table = {key: [row[key] for row in rows] for key in rows[0]}
            with _quiet():
                self._send({"table": path, "rows": list(rows)}, lambda: self._client.log_table(self.run_id, table, path))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file, or a folder with all that is in it."""
        store = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        self._send({"artifact": path, "folder": folder}, lambda: store(self.run_id, str(path), folder))

    def log_model(self, name: str, folder: Path, loader: str, example: NDArray[np.float32], output: NDArray[Any], alias: str = "champion") -> str:
        """Store an artifact folder as a model with signature and input example; register it when the configuration says so.

        Args:
            name: of the registered model.
            folder: the artifact.
            loader: module whose `_load_pyfunc(path)` opens the artifact and returns an object with `predict`.
            example: (N, ...) input.
            output: (N, ...) what the model answers to it.
            alias: given to the new version.

        Returns:
            URI of the model, by alias if it was registered; empty where the store is lost.
        """
        record = {"run": self.run_id, "model": name, "folder": folder, "loader": loader}
        return self._store.send(record, lambda: self._log_model(name, folder, loader, example, output, alias), "")

    def _log_model(self, name: str, folder: Path, loader: str, example: NDArray[np.float32], output: NDArray[Any], alias: str) -> str:
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(self.uri)
        try:
            with mlflow.start_run(run_id=self.run_id, nested=True):
                info = mlflow.pyfunc.log_model(
                    name=name,
                    loader_module=loader,
                    data_path=str(folder),
                    code_paths=list(CODE),
                    signature=infer_signature(example, output),
                    input_example=example,
                    pip_requirements=[f"{package}=={importlib.metadata.version(package)}" for package in _REQUIREMENTS],
                )
            self._client.update_run(self.run_id, status="RUNNING")  # `start_run` has ended it on leaving
            if not self._config.mlflow.register_models:
                return info.model_uri
            with contextlib.suppress(MlflowException):  # it exists
                self._client.create_registered_model(name)
            version = self._client.create_model_version(name, info.model_uri, self.run_id, model_id=info.model_id)
            self._client.set_registered_model_alias(name, alias, version.version)
        finally:
            mlflow.set_tracking_uri(before)
        return f"models:/{name}@{alias}"


@contextlib.contextmanager
def tracking(config: Config, name: str, tags: Mapping[str, Any] | None = None, resume: str | None = None) -> Iterator[Tracker]:
    """The parent run of an invocation: logs the configuration as parameters; ends FINISHED, FAILED, or KILLED on Ctrl-C.

    Args:
        config: sections `mlflow` and `compute` say where runs go; all of it is logged.
        name: of the run.
        tags: besides command, git commit and seed, which each run has.
        resume: id of a run to go on with.

    Raises:
        UserError: when the store cannot be reached, has no run to resume, or another process is at work on that run.
    """
    client, experiment = _connect(config)
    all_tags = {**_tags(config), **_plain(tags)}
    at_work = config.compute.artifacts.resolve() / "at_work"
    _end_abandoned(client, experiment, at_work)
    if resume is None:
        run_id = client.create_run(experiment, tags=all_tags, run_name=name).info.run_id
    else:
        try:
            client.get_run(resume)
        except MlflowException as error:
            raise UserError(f"no run '{resume}' in {client.tracking_uri} to resume") from error
        run_id = resume
    store = _Store(client, _unsent(at_work, run_id))
    tracker = Tracker(store, experiment, run_id, config, all_tags)
    with _held(at_work, run_id, store), _ending(store, run_id):
        store.send({"run": run_id, "status": "RUNNING"}, lambda: client.update_run(run_id, status="RUNNING"), None)
        if resume is None:
            tracker.log_params(config.model_dump(mode="json"))
        yield tracker


def _plain(tags: Mapping[str, Any] | None) -> dict[str, str]:
    return {key: str(value) for key, value in (tags or {}).items()}


def _tags(config: Config) -> dict[str, str]:
    words = {"command": command(), "git_commit": git_commit(), "seed": str(config.compute.seed)}
    return {**words, "mlflow.source.name": Path(sys.argv[0]).name or "python", "mlflow.source.type": "LOCAL", "mlflow.source.git.commit": git_commit()}


def _connect(config: Config) -> tuple[mlflow.MlflowClient, str]:
    """Client and id of the experiment, which is made if it is new."""
    root = config.compute.artifacts.resolve()
    uri = config.mlflow.tracking_uri or f"sqlite:///{(root / 'mlflow.db').as_posix()}"
    place = None if config.mlflow.tracking_uri else (root / "mlruns").as_uri()
    try:
        with contextlib.ExitStack() as one_at_a_time, _quiet():
            if place is not None:
                root.mkdir(parents=True, exist_ok=True)
                # Two that make the database, or bring it up to date, at the same time would each find it half done.
                one_at_a_time.enter_context(FileLock(root / "mlflow.db.lock"))
                _make_database(root / "mlflow.db")
            client = mlflow.MlflowClient(uri)
            found = client.get_experiment_by_name(config.mlflow.experiment)
            return client, client.create_experiment(config.mlflow.experiment, artifact_location=place) if found is None else found.experiment_id
    except Exception as error:  # each kind of store fails in its own way; each means the same to the user
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"cannot track runs in '{uri}': {reason}; set mlflow.tracking_uri, or compute.artifacts to a writable folder") from error


def _make_database(path: Path) -> None:
    """Make MLflow's database, if there is none, whole or not at all: one that a kill has left half made could never be used again."""
    if path.exists():
        return
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    new.with_name(f"{new.name}-journal").unlink(missing_ok=True)
    mlflow.MlflowClient(f"sqlite:///{new.as_posix()}").search_experiments(max_results=1)
    os.replace(new, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep mlflow's own use of what SQLAlchemy and pandas deprecate from the user, who cannot change it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@contextlib.contextmanager
def _held(at_work: Path, run_id: str, store: _Store) -> Iterator[None]:
    """Hold a run's lock in the folder `at_work` for as long as this process works on it; the system lets go of it however the process ends.

    Where the store is lost, the file stays, as after a kill: the store has not heard how the run ended, and the next start tells it.
    """
    at_work.mkdir(parents=True, exist_ok=True)
    path = at_work / run_id
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"another process is at work on run {run_id}; wait for its end, or end it") from error
    try:
        yield
    finally:
        if not store.lost:
            path.unlink(missing_ok=True)
        lock.release()


def _end_abandoned(client: mlflow.MlflowClient, experiment: str, at_work: Path) -> None:
    """End the runs, with all below them, whose process could not: those whose lock lies there, and nobody holds.

    They end as was meant to be told to a store that was lost, and FAILED where the process was killed.
    """
    for path in sorted(at_work.glob("*")):
        with contextlib.suppress(Timeout, MlflowException), FileLock(path, timeout=0):
            meant = _statuses(_unsent(at_work, path.name))
            above = [path.name]
            while above:
                run_id = above.pop()
                if client.get_run(run_id).info.status == "RUNNING":
                    client.set_terminated(run_id, meant.get(run_id, "FAILED"))
                with _quiet():
                    above += [run.info.run_id for run in client.search_runs([experiment], f"tags.`{_PARENT}` = '{run_id}'")]
            path.unlink(missing_ok=True)


def _unsent(at_work: Path, run_id: str) -> Path:
    """The file of what a run could not send."""
    return at_work.parent / f"unsent-{run_id}.jsonl"


def _statuses(unsent: Path) -> dict[str, str]:
    """The last status of each run in such a file, which may not be there, or be cut off."""
    found = {}
    with contextlib.suppress(OSError, ValueError, KeyError):
        for line in unsent.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record.get("status") in ("FINISHED", "FAILED", "KILLED"):
                found[record["run"]] = record["status"]
    return found


@contextlib.contextmanager
def _ending(store: _Store, run_id: str) -> Iterator[None]:
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        store.send({"run": run_id, "status": status}, lambda: store.client.set_terminated(run_id, status), None)
