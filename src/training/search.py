"""Search for settings: trials by Optuna, each a training judged on `calibrate`, kept in SQLite so that a search that was cut off goes on.

Sampling is TPE (Bergstra et al. 2011), pruning by the median of earlier trials at the same epoch. What trial n tries follows from the
seed, n and the trials before it, so that a search that was killed and started again ends as one that was not. `test` is never read.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import optuna
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from src.config import BASE_SPACE, TRAINING_SPACE, Config, changed, leaves
from src.data.dataset import Dataset
from src.errors import UserError
from src.models.temporal_lstm import SEARCH_SPACES
from src.training.log import TrainingLog
from src.training.lstm_trainer import LSTMTrainer

Kind = Literal["base", "temporal"]
OBJECTIVE = "calibrate/macro_f1"
RANDOM_TRIALS = 8
"""Drawn at random before TPE has anything to learn from."""
UNPRUNED = 4
"""Trials, and first epochs of each, that are never pruned."""
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


class TrialRun(TrainingLog, Protocol):
    """Where a trial is recorded: a nested run of `src.tracking.Tracker`."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record what is tried."""


class Search(Protocol):
    """How trials are carried out: `search`, or a cluster's."""

    def __call__(
        self,
        config: Config,
        dataset: Dataset,
        model: Kind,
        ranges: Mapping[str, tuple[Any, ...]],
        trials: int,
        store: Path,
        open_run: OpenRun,
        *,
        study: str | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> Outcome:
        """As `search`."""
        ...


OpenRun = Callable[[str, Mapping[str, Any]], AbstractContextManager[TrialRun]]
"""Opens a trial's record, of a name and tags."""


@dataclass(frozen=True)
class Outcome:
    """What a search has found so far."""

    study: str
    """Its name in the store."""
    settings: dict[str, Any]
    """Best settings, by dotted name."""
    value: float
    """Their macro-F1 on `calibrate`."""
    rows: list[dict[str, Any]]
    """A row a finished trial: number, state, value, and the settings tried."""

    def words(self) -> list[str]:
        """The best settings as arguments of `main.py`."""
        return [part for key, value in self.settings.items() for part in ("--set", f"{key}={value}")]


def space(model: Kind) -> dict[str, tuple[Any, ...]]:
    """What is searched, by dotted setting: ("int" or "float", low, high, logarithmic) or ("categorical", choices).

    Only what the configuration can set: a search ends in settings that a training takes.
    """
    section, shape = (
        ("lstm", BASE_SPACE)
        if model == "base"
        else ("temporal", {f"temporal.model.{key}": one for group in SEARCH_SPACES.values() for key, one in group.items()})
    )
    known = leaves()
    return {key: one for key, one in {**shape, **{f"{section}.training.{key}": one for key, one in TRAINING_SPACE.items()}}.items() if key in known}


def search(
    config: Config,
    dataset: Dataset,
    model: Kind,
    ranges: Mapping[str, tuple[Any, ...]],
    trials: int,
    store: Path,
    open_run: OpenRun,
    *,
    study: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Try settings until the study holds `trials` finished trials; one process at a time.

    Args:
        config: everything that is not searched; `compute.seed` is the search's and each training's.
        dataset: `fit` and `calibrate` are read.
        model: which network.
        ranges: what is tried, as `space(model)` gives it.
        trials: finished trials, those of earlier calls included.
        store: SQLite file.
        open_run: opens the record of a trial.
        study: name; by default one that follows from model, settings, space and data.
        say: receives a line a trial.

    Raises:
        UserError: when the named study was made with other settings or data, the store cannot be used, or the first trial fails.
    """
    config = changed(config, {"lstm.training.teachers": 0})  # they would cost each trial several times as much, and help every one
    digest = study_digest(config, dataset, ranges, model)
    held = open_study(store, study or f"{model}-{digest[:12]}", digest)
    while (done := len(finished(held))) < trials:
        held.sampler = sampler(config.compute.seed, done)
        trial = held.ask()
        settings = _suggest(trial, ranges)
        with open_run(f"trial {done + 1}", {"study": held.study_name, "trial": done + 1, "model": model}) as run:
            run.log_params({"trial": settings})
            watch = _Watch(run, trial)
            try:
                trainer = LSTMTrainer(changed(config, settings), dataset, watch)
                _ = trainer.train_base() if model == "base" else trainer.train_temporal()
                held.tell(trial, watch.best)
            except optuna.TrialPruned:
                held.tell(trial, state=TrialState.PRUNED)
            except UserError:
                if done == 0:  # a fault of the input rather than of what was tried
                    held.tell(trial, state=TrialState.FAIL)
                    raise
                held.tell(trial, 0.0)
            last = held.trials[-1]
            run.log_metrics({"objective": last.value or 0.0, "pruned": float(last.state == TrialState.PRUNED)})
        say(f"trial {done + 1} of {trials}: macro-F1 {last.value or 0.0:.4f}{' (pruned)' if last.state == TrialState.PRUNED else ''}  {words_of(settings)}")
    return outcome(held, ranges)


class _Watch:
    """Passes a training's figures on, and asks after each epoch whether it is worth going on."""

    def __init__(self, run: TrialRun, trial: optuna.Trial) -> None:
        self.run, self.trial, self.best = run, trial, 0.0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record figures; the objective among them is reported.

        Raises:
            optuna.TrialPruned: when the trial is not worth going on with.
        """
        self.run.log_metrics(metrics, step)
        for key, value in metrics.items():
            if key.endswith(OBJECTIVE) and step is not None:
                self.best = max(self.best, value)
                self.trial.report(self.best, step)
                if self.trial.should_prune():
                    raise optuna.TrialPruned

    def log_figure(self, figure: Figure, path: str) -> None:
        """Record a figure."""
        self.run.log_figure(figure, path)

    def log_table(self, rows: Sequence[Mapping[str, Any]], path: str) -> None:
        """Record rows."""
        self.run.log_table(rows, path)


def study_digest(config: Config, dataset: Dataset, ranges: Mapping[str, Any], model: Kind) -> str:
    """Of all that a trial's value follows from, what it tries apart."""
    section = config.lstm if model == "base" else config.temporal
    parts = [model, section.model_dump(mode="json"), config.data.window, config.compute.seed, dataset.data_hash, ranges]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def open_study(store: Path, name: str, digest: str) -> optuna.Study:
    """The study, new or as it was left; a trial that was cut off is marked as failed, and its settings will be tried again."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what SQLAlchemy deprecates is for Optuna to mend
            pruner = optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED, n_warmup_steps=UNPRUNED)
            held = optuna.create_study(storage=f"sqlite:///{store.resolve()}", study_name=name, direction="maximize", pruner=pruner, load_if_exists=True)
    except Exception as error:  # SQLAlchemy and Optuna have many kinds; each means the same to the user
        raise UserError(f"cannot keep a study in '{store}': {' '.join(str(error).split())[:200]}; set compute.artifacts to a writable folder") from error
    if held.user_attrs.setdefault("digest", digest) != digest:
        raise UserError(f"study '{name}' in '{store}' was made with other settings, spaces or data; choose another --study, or restore those")
    held.set_user_attr("digest", digest)
    for trial in held.get_trials(states=(TrialState.RUNNING,)):
        held.tell(trial.number, state=TrialState.FAIL)
    return held


def finished(held: optuna.Study) -> list[FrozenTrial]:
    """Trials that count, in the order they began."""
    return held.get_trials(deepcopy=False, states=FINISHED)


def sampler(seed: int, done: int) -> optuna.samplers.TPESampler:
    """What suggests settings, whose random numbers follow from the seed and how many trials are done."""
    number = int(np.random.SeedSequence([seed, done]).generate_state(1)[0])
    return optuna.samplers.TPESampler(seed=number, n_startup_trials=RANDOM_TRIALS)


def _suggest(trial: optuna.Trial, ranges: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    for key, (kind, *rest) in ranges.items():
        if kind == "categorical":
            trial.suggest_categorical(key, rest[0])
        else:
            low, high, logarithmic = rest
            (trial.suggest_int if kind == "int" else trial.suggest_float)(key, low, high, log=logarithmic)
    return plain(trial.params)


def plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are used and printed: numbers of four digits."""
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in params.items()}


def words_of(settings: Mapping[str, Any]) -> str:
    """Settings on a line for the user."""
    return " ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in settings.items())


def outcome(held: optuna.Study, ranges: Mapping[str, Any]) -> Outcome:
    """What a study has found."""
    done = finished(held)
    best = max((trial for trial in done if trial.state == TrialState.COMPLETE), key=lambda trial: trial.value or 0.0)
    rows = [
        {"trial": number + 1, "state": trial.state.name.lower(), "macro_f1": round(trial.value or 0.0, 4), **plain({key: trial.params[key] for key in ranges})}
        for number, trial in enumerate(done)
    ]
    return Outcome(held.study_name, plain({key: best.params[key] for key in ranges}), float(best.value or 0.0), rows)
