import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from src.config import Config, leaves, load_config
from src.errors import UserError
from src.models.lstm_attack_predictor import LSTMConfig, build_model
from src.models.predictor_interface import EnhancedAttackPredictor
from src.models.subspace import BenignSubspace
from src.tracking import Tracker, flatten, mlflow, tracking

LOADER = "src.models.predictor_interface"


def config(root: Path, *more: str) -> Config:
    return load_config(overrides=[f"compute.artifacts={root}", "compute.seed=7", *more], environ={})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests: making a database takes seconds."""
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def client(root: Path) -> mlflow.MlflowClient:
    with tracking(config(root), "first"):
        pass
    return mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")


def find(client: mlflow.MlflowClient, name: str) -> Any:
    experiment = client.get_experiment_by_name("iot-defense")
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    return run


FIRST_USE = """
import sys
from pathlib import Path
from src.config import load_config
from src.tracking import tracking
with tracking(load_config(overrides=[f"compute.artifacts={sys.argv[1]}"], environ={}), sys.argv[2]):
    pass
"""


def test_two_that_start_at_once_make_one_store(tmp_path: Path) -> None:
    words = [sys.executable, "-c", FIRST_USE, str(tmp_path)]
    begun = [subprocess.Popen([*words, name], cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, text=True) for name in ("left", "right")]
    for process in begun:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        assert store.execute("SELECT name, status FROM runs ORDER BY name").fetchall() == [("left", "FINISHED"), ("right", "FINISHED")]
        assert store.execute("SELECT count(*) FROM experiments WHERE name = 'iot-defense'").fetchone() == (1,)


HALF_MADE = """
import os, signal, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine
from src.config import load_config
from src.tracking import tracking
tables = 0

@event.listens_for(Engine, "after_cursor_execute")
def count(connection, cursor, statement, *rest):
    global tables
    tables += statement.strip().startswith("CREATE TABLE")
    if tables == 9:
        os.kill(os.getpid(), signal.SIGKILL)

with tracking(load_config(overrides=[f"compute.artifacts={sys.argv[1]}"], environ={}), "first"):
    pass
"""


def test_a_kill_while_the_database_is_made_leaves_none(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", HALF_MADE, str(tmp_path)], cwd=Path(__file__).parents[1], check=False, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / ".mlflow.db.new").exists()
    assert not (tmp_path / "mlflow.db").exists()
    with tracking(config(tmp_path), "second"):
        pass
    assert not list(tmp_path.glob(".mlflow*"))


KILLED = """
import os, signal, sys
from src.config import load_config
from src.tracking import tracking
with tracking(load_config(overrides=[f"compute.artifacts={sys.argv[1]}"], environ={}), "killed") as run, run.nested("phase") as phase, phase.nested("seed"):
    print(run.run_id, flush=True)
    if len(sys.argv) > 2:
        sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def statuses(client: mlflow.MlflowClient, run_id: str) -> list[str]:
    """Of a run, and of those below it, from the top."""
    experiment = client.get_run(run_id).info.experiment_id
    below = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'")
    return [client.get_run(run_id).info.status, *(status for run in below for status in statuses(client, run.info.run_id))]


def test_runs_whose_process_was_killed_do_not_stay_running(client: mlflow.MlflowClient, root: Path) -> None:
    words = [sys.executable, "-c", KILLED, str(root)]
    done = subprocess.run(words, check=False, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, timeout=120)
    run_id = done.stdout.strip()
    assert statuses(client, run_id) == ["RUNNING"] * 3
    with tracking(config(root), "resumed", resume=run_id):
        assert statuses(client, run_id) == ["RUNNING", "FAILED", "FAILED"]
    assert statuses(client, run_id) == ["FINISHED", "FAILED", "FAILED"]
    assert not list((root / "at_work").iterdir())


def test_a_run_that_is_worked_on_is_left_alone(client: mlflow.MlflowClient, root: Path) -> None:
    words = [sys.executable, "-c", KILLED, str(root), "wait"]
    with subprocess.Popen(words, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        run_id = process.stdout.readline().strip()
        with pytest.raises(UserError, match="another process is at work"), tracking(config(root), "resumed", resume=run_id):
            pass
        assert statuses(client, run_id) == ["RUNNING"] * 3
        process.communicate("die\n", timeout=60)
    with tracking(config(root), "next"):
        assert statuses(client, run_id) == ["FAILED"] * 3


def test_a_store_that_is_lost_on_the_way_does_not_end_the_work(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tracking(config(tmp_path), "lost") as run:
        run.log_metrics({"a": 1.0}, step=1)
        with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
            for table in ("metrics", "runs"):
                for event in ("INSERT", "UPDATE"):
                    words = f"CREATE TRIGGER full_{table}_{event} BEFORE {event} ON {table} BEGIN SELECT RAISE(ABORT, 'no space left'); END"
                    store.execute(words)
            store.commit()
        run.log_metrics({"a": 2.0}, step=2)
        with run.nested("phase", {"phase": "rl"}) as below:
            below.log_metrics({"b": 3.0}, step=1)
            below.log_table([{"x": 1}], "table.json")
    said = [record.getMessage() for record in caplog.records if record.name == "src.tracking"]
    assert len(said) == 1
    assert "no space left" in said[0]
    (kept,) = tmp_path.glob("unsent-*.jsonl")
    assert str(kept) in said[0]
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    assert [(line["run"], line["metrics"], line["step"]) for line in lines if "metrics" in line] == [
        (run.run_id, {"a": 2.0}, 2),
        ("unsent phase", {"b": 3.0}, 1),
    ]
    assert [line["status"] for line in lines if "status" in line] == ["FINISHED", "FINISHED"]
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        for (trigger,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'full%'").fetchall():
            store.execute(f"DROP TRIGGER {trigger}")
        store.commit()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert client.get_run(run.run_id).info.status == "RUNNING"
    with tracking(config(tmp_path), "next"):  # which tells the store how the one before it ended
        assert client.get_run(run.run_id).info.status == "FINISHED"
    assert not list((tmp_path / "at_work").iterdir())


def test_runs_are_nested_tagged_and_finished(client: mlflow.MlflowClient, root: Path) -> None:
    tags = {"data_source": "synthetic profile", "data_hash": "abc"}
    with tracking(config(root), "all", tags) as parent, parent.nested("phase lstm") as phase, phase.nested("seed 8", {"seed": 8}):
        assert client.get_run(phase.run_id).info.status == "RUNNING"
    run, phase, seed = (find(client, name) for name in ("all", "phase lstm", "seed 8"))
    assert phase.data.tags["mlflow.parentRunId"] == run.info.run_id
    assert seed.data.tags["mlflow.parentRunId"] == phase.info.run_id
    assert [found.info.status for found in (run, phase, seed)] == ["FINISHED"] * 3
    assert (run.data.tags["data_source"], run.data.tags["data_hash"], run.data.tags["seed"], seed.data.tags["seed"]) == ("synthetic profile", "abc", "7", "8")
    assert "python" in run.data.tags["command"]
    assert len(run.data.tags["git_commit"]) >= 7
    assert run.info.artifact_uri.startswith((root / "mlruns").as_uri())


def test_every_setting_is_logged(client: mlflow.MlflowClient) -> None:
    params = find(client, "first").data.params
    assert set(leaves()) <= set(params)
    assert params["lstm.training.clip_norm"] == "1.0"
    assert params["compute.seed"] == "7"


def test_metrics_keep_their_steps(client: mlflow.MlflowClient, root: Path) -> None:
    with tracking(config(root), "metrics") as tracker:
        for step in (1, 2, 3):
            tracker.log_metrics({"train/loss": 1 / step, "family/Web/macro_f1": step}, step=step)
        tracker.log_metrics({"eval/threshold (risk>0.5)/reward_mean": -3.5, "eval/ppo/end/horizon": float("nan")})
    run = find(client, "metrics")
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert run.data.metrics["family/Web/macro_f1"] == 3
    assert run.data.metrics["eval/threshold _risk_0.5_/reward_mean"] == -3.5  # characters that MLflow refuses are replaced
    assert np.isnan(run.data.metrics["eval/ppo/end/horizon"])


def test_figures_tables_and_files_are_stored(client: mlflow.MlflowClient, root: Path, tmp_path: Path) -> None:
    figure = Figure()
    figure.subplots().plot([1, 2])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    with tracking(config(root), "files") as tracker:
        tracker.log_figure(figure, "curve.png")
        tracker.log_table([{"class": "XSS", "f1": 0.5}, {"class": "Recon", "f1": 0.25}], "classes.json")
        tracker.log_table([], "empty.json")
        tracker.log_artifact(tmp_path / "folder", "kept")
        tracker.log_artifact(tmp_path / "b.txt")
    run_id = find(client, "files").info.run_id
    assert {item.path for item in client.list_artifacts(run_id)} == {"curve.png", "classes.json", "kept", "b.txt"}
    assert [item.path for item in client.list_artifacts(run_id, "kept")] == ["kept/a.txt"]
    assert json.loads(Path(client.download_artifacts(run_id, "classes.json", str(tmp_path))).read_text())["data"] == [["XSS", 0.5], ["Recon", 0.25]]


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "FAILED")])
def test_a_run_that_breaks_says_so(client: mlflow.MlflowClient, root: Path, error: type[BaseException], status: str) -> None:
    name = f"breaks {error.__name__}"
    with pytest.raises(error), tracking(config(root), name) as parent, parent.nested(f"{name} below"):
        raise error
    assert find(client, name).info.status == find(client, f"{name} below").info.status == status


def test_an_interrupted_run_goes_on(client: mlflow.MlflowClient, root: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), tracking(config(root), "resumed") as first:
        first.log_metrics({"a": 1.0}, step=1)
        raise KeyboardInterrupt
    assert client.get_run(first.run_id).info.status == "KILLED"
    with tracking(config(root), "ignored", resume=first.run_id) as second:
        second.log_metrics({"a": 2.0}, step=2)
    run = find(client, "resumed")
    assert run.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "a")] == [1, 2]
    with pytest.raises(UserError, match="no run 'f00' in sqlite"), tracking(config(root), "x", resume="f00"):
        pass


@pytest.fixture(scope="module")
def sensor(root: Path) -> EnhancedAttackPredictor:
    model = build_model(LSTMConfig(3, 8, 1, 2, 0.0, False, 4), 0)
    raw = torch.randn(50, 4, 3, generator=torch.Generator().manual_seed(0))
    built = EnhancedAttackPredictor(model, BenignSubspace.fit(model.scaler, raw, raw), ("a", "b", "c"), ("BenignTraffic", "XSS"))
    built.save(root / "lstm", {"seed": 7})
    return built


def log_model(tracker: Tracker, sensor: EnhancedAttackPredictor, root: Path, name: str) -> str:
    example = np.zeros((2, 4, 3), dtype=np.float32)
    return tracker.log_model(name, root / "lstm", LOADER, example, sensor.read(example).table())


def test_a_registered_model_comes_back_and_predicts(client: mlflow.MlflowClient, root: Path, sensor: EnhancedAttackPredictor) -> None:
    elsewhere = mlflow.get_tracking_uri()
    with tracking(config(root), "model") as parent, parent.nested("model phase") as tracker:
        uri = log_model(tracker, sensor, root, "base-lstm")
        assert client.get_run(tracker.run_id).info.status == "RUNNING"
        assert log_model(tracker, sensor, root, "base-lstm") == uri == "models:/base-lstm@champion"
    assert mlflow.get_tracking_uri() == elsewhere
    version = client.get_model_version_by_alias("base-lstm", "champion")
    assert int(version.version) == 2
    assert version.run_id == find(client, "model phase").info.run_id
    mlflow.set_tracking_uri(client.tracking_uri)
    try:
        loaded = mlflow.pyfunc.load_model(uri)
    finally:
        mlflow.set_tracking_uri(elsewhere)
    windows = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    np.testing.assert_array_equal(loaded.predict(windows), sensor.read(windows).table())
    inputs, outputs = loaded.metadata.signature.inputs, loaded.metadata.signature.outputs
    assert (inputs.inputs[0].shape, outputs.inputs[0].shape) == ((-1, 4, 3), (-1, 11))
    assert loaded.metadata.saved_input_example_info is not None


def test_a_stored_model_holds_no_pickle_and_all_of_the_artifact(client: mlflow.MlflowClient, root: Path, sensor: EnhancedAttackPredictor) -> None:
    with tracking(config(root, "mlflow.register_models=false"), "unregistered") as tracker:
        uri = log_model(tracker, sensor, root, "private")
    assert uri.startswith("models:/m-")
    assert [found.name for found in client.search_registered_models("name = 'private'")] == []
    (folder,) = (root / "mlruns" / "models" / uri.removeprefix("models:/")).glob("artifacts")
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert {"MLmodel", "data/lstm/model.safetensors", "data/lstm/meta.json", "data/lstm/checksums.json", "code/src/predictor/interface.py"} <= files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".joblib", ".pt", ".pth"))]
    assert "cloudpickle" not in (folder / "MLmodel").read_text()


def test_a_store_that_cannot_be_used_ends_in_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for broken in (config(tmp_path / "file"), config(tmp_path, "mlflow.tracking_uri=nonsense://x")):
        with pytest.raises(UserError, match="cannot track runs in") as caught, tracking(broken, "x"):
            pass
        assert "\n" not in str(caught.value)


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}


def test_the_console_stays_clean(tmp_path: Path) -> None:
    """A new database, a run, a table and a model, in a fresh interpreter: nothing is printed, no file appears outside the folder."""
    script = f"""
import numpy as np, torch
from pathlib import Path
from src.config import load_config
from src.tracking import tracking
from src.models.lstm_attack_predictor import LSTMConfig, build_model
from src.models.predictor_interface import EnhancedAttackPredictor
from src.models.subspace import BenignSubspace
root = Path({str(tmp_path / "out")!r})
model = build_model(LSTMConfig(3, 8, 1, 2, 0.0, False, 4), 0)
x = torch.rand(9, 4, 3)
sensor = EnhancedAttackPredictor(model, BenignSubspace.fit(model.scaler, x, x), ("a", "b", "c"), ("BenignTraffic", "XSS"))
sensor.save(root / "lstm", {{}})
with tracking(load_config(overrides=[f"compute.artifacts={{root}}"]), "run") as tracker:
    tracker.log_table([{{"a": "x"}}], "t.json")
    tracker.log_model("m", root / "lstm", {LOADER!r}, x.numpy(), sensor.read(x.numpy()).table())
"""
    (tmp_path / "here").mkdir()
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path / "here", env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list((tmp_path / "here").iterdir()) == []


def test_the_server_that_users_are_told_to_start_listens_on_the_loopback() -> None:
    """`mlflow ui`, which runs and documents name, is `mlflow server`; and none of them names another host."""
    words = [sys.executable, "-m", "mlflow", "ui", "--help"]
    environ = {name: value for name, value in os.environ.items() if name != "MLFLOW_HOST"}
    said = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=120, check=True).stdout
    assert re.search(r"--host HOST\s.{,120}\(default: 127\.0\.0\.1\)", said, flags=re.DOTALL), said
    root = Path(__file__).parents[1]
    for path in (root / "README.md", root / "src" / "pipeline.py", *(root / "docs").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        assert not [line for line in text.splitlines() if "mlflow" in line and ("--host" in line or "0.0.0.0" in line)], path
