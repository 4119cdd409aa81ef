"""Searches of a few tiny trials."""

import contextlib
import dataclasses
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from src.config import Config, changed, load_config
from src.errors import UserError
from src.search import main
from src.tracking import mlflow
from src.training.search import OBJECTIVE, Outcome, search, space
from tests.datasets import make_dataset

ROOT = Path(__file__).parents[1]
DATA = make_dataset()
TINY = ["data.window=6", "lstm.training.epochs=2", "lstm.training.stride=10", "temporal.training.epochs=1", "temporal.training.stride=20", "compute.threads=1"]
SMALL = {
    "lstm.model.hidden_size": ("categorical", (4, 8)),
    "lstm.model.num_layers": ("int", 1, 2, False),
    "lstm.training.learning_rate": ("float", 1e-3, 1e-1, True),
}


def config(*more: str) -> Config:
    return load_config(overrides=[*TINY, "compute.device=cpu", *more], environ={})


class Record:
    """Keeps what trials log; stops in the trial and epoch that it is told to."""

    def __init__(self, stop: tuple[int, int] | None = None) -> None:
        self.names: list[str] = []
        self.params: list[dict[str, Any]] = []
        self.curves: list[list[float]] = []
        self.final: list[dict[str, float]] = []
        self.stop = stop

    @contextlib.contextmanager
    def open(self, name: str, tags: Mapping[str, Any]) -> Iterator["Record"]:
        self.names.append(name)
        self.curves.append([])
        yield self

    def log_params(self, params: Mapping[str, Any]) -> None:
        self.params.append(params["trial"])

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is None:
            self.final.append(dict(metrics))
            return
        self.curves[-1] += [value for key, value in metrics.items() if key.endswith(OBJECTIVE)]
        if (len(self.names), step) == self.stop:
            raise KeyboardInterrupt

    def log_figure(self, figure: Any, path: str) -> None:
        raise AssertionError("a trial draws nothing")

    def log_table(self, rows: Any, path: str) -> None:
        raise AssertionError("a trial tabulates nothing")


def found(store: Path, trials: int, record: Record | None = None, given: Config | None = None, **more: Any) -> Outcome:
    return search(given or config(), more.pop("data", DATA), "base", more.pop("ranges", SMALL), trials, store, (record or Record()).open, **more)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Record, Path]:
    """Four trials, uninterrupted."""
    record, store = Record(), tmp_path_factory.mktemp("search") / "search.db"
    return found(store, 4, record), record, store


def test_trials_are_recorded_and_the_best_one_wins(straight: tuple[Outcome, Record, Path]) -> None:
    outcome, record, _ = straight
    assert record.names == [f"trial {number}" for number in (1, 2, 3, 4)]
    assert [len(curve) for curve in record.curves] == [2] * 4
    assert len({tuple(params.values()) for params in record.params}) == 4
    assert [row["macro_f1"] for row in outcome.rows] == [round(max(curve), 4) for curve in record.curves]
    assert [final["objective"] for final in record.final] == [max(curve) for curve in record.curves]
    best = max(range(4), key=lambda index: max(record.curves[index]))
    assert outcome.settings == record.params[best]
    assert outcome.value == max(record.curves[best])


def test_the_best_settings_are_words_of_the_command_line(straight: tuple[Outcome, Record, Path]) -> None:
    words = straight[0].words()
    assert words[::2] == ["--set"] * 3
    given = load_config(overrides=[*TINY, "compute.device=cpu", *words[1::2]], environ={})
    assert given == changed(config(), straight[0].settings)


def test_killed_and_started_again_ends_as_uninterrupted(straight: tuple[Outcome, Record, Path], tmp_path: Path) -> None:
    outcome, record, _ = straight
    first, second = Record(stop=(3, 1)), Record()
    with pytest.raises(KeyboardInterrupt):
        found(tmp_path / "search.db", 4, first)
    resumed = found(tmp_path / "search.db", 4, second)
    assert first.names == ["trial 1", "trial 2", "trial 3"]
    assert second.names == ["trial 3", "trial 4"]  # what was finished is not repeated
    assert resumed.rows == outcome.rows
    assert second.curves == record.curves[2:]


def test_a_finished_search_trains_nothing_and_a_longer_one_goes_on(straight: tuple[Outcome, Record, Path]) -> None:
    outcome, _, store = straight
    record = Record()
    assert found(store, 4, record) == outcome
    assert record.names == []
    longer = found(store, 5, record)
    assert record.names == ["trial 5"]
    assert longer.rows[:4] == outcome.rows


def test_another_seed_or_data_is_another_study(straight: tuple[Outcome, Record, Path]) -> None:
    store = straight[2]
    other = found(store, 1, given=config("compute.seed=1"))
    assert other.rows[0] != straight[0].rows[0]
    names = {straight[0].study, other.study, found(store, 1, data=dataclasses.replace(DATA, data_hash="other")).study}
    assert len(names) == 3
    found(store, 1, study="mine")
    with pytest.raises(UserError, match=r"study 'mine' .* other settings"):
        found(store, 2, study="mine", given=config("compute.seed=1"))


def test_test_rows_are_never_read(straight: tuple[Outcome, Record, Path]) -> None:
    splits = {name: DATA.splits[name] for name in ("fit", "calibrate")}
    assert found(straight[2], 1, data=dataclasses.replace(DATA, splits=splits), study="blind").rows == straight[0].rows[:1]


def test_hopeless_trials_are_pruned(tmp_path: Path) -> None:
    ranges = {"lstm.training.learning_rate": ("categorical", (0.02, 1e-9))}
    given = config("lstm.training.epochs=6", "lstm.model.hidden_size=8", "lstm.training.stride=4", "lstm.training.batch_size=16")
    record = Record()
    outcome = found(tmp_path / "search.db", 7, record, changed(given, {"compute.seed": 2}), ranges=ranges)
    states = {row["state"] for row in outcome.rows if row["lstm.training.learning_rate"] == 1e-9}
    assert "pruned" in states
    assert {row["state"] for row in outcome.rows if row["lstm.training.learning_rate"] == 0.02} == {"complete"}
    assert sum(final["pruned"] for final in record.final) == sum(row["state"] == "pruned" for row in outcome.rows)
    assert min(len(curve) for curve in record.curves) < 6
    assert outcome.settings == {"lstm.training.learning_rate": 0.02}


def test_a_trial_that_diverges_scores_nothing_and_a_fault_of_the_input_is_said(tmp_path: Path) -> None:
    ranges = {"lstm.training.learning_rate": ("categorical", (0.02, 1e37))}
    given = config("lstm.model.hidden_size=4", "lstm.training.clip_norm=1e30")
    for seed in range(10):  # until the first draw is the sound one, and another is not
        try:
            outcome = found(tmp_path / "search.db", 4, given=changed(given, {"compute.seed": seed}), ranges=ranges)
        except UserError as error:
            assert "no longer finite" in str(error)  # noqa: PT017 - either end is right, by the draw
            continue
        if any(row["lstm.training.learning_rate"] == 1e37 for row in outcome.rows):
            assert {row["macro_f1"] for row in outcome.rows if row["lstm.training.learning_rate"] == 1e37} == {0.0}
            assert outcome.settings == {"lstm.training.learning_rate": 0.02}
            return
    pytest.fail("no seed tried both")


def test_a_store_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "search.db").write_text("this is no database" * 100)
    with pytest.raises(UserError, match=r"search\.db"):
        found(tmp_path / "search.db", 1)


def test_every_searched_setting_exists_and_takes_its_bounds() -> None:
    for model, section in (("base", "lstm"), ("temporal", "temporal")):
        ranges = space(model)  # type: ignore[arg-type]
        assert {f"{section}.model.hidden_size", f"{section}.model.dropout", f"{section}.training.learning_rate"} <= set(ranges)
        assert all(key.startswith(section) for key in ranges)
        for key, (kind, *rest) in ranges.items():
            for value in rest[0] if kind == "categorical" else rest[:2]:
                changed(config(), {key: value})


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the synthetic profile, with MLflow."""
    words = [*TINY, "data.window=10", "data.synthetic_rows_per_class=400", "lstm.training.epochs=1", f"compute.artifacts={tmp_path / 'artifacts'}"]
    arguments = ["--model", "base", "--trials", "3", *(part for word in words for part in ("--set", word))]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert re.findall(r"trial (\d) of 3: macro-F1 0\.\d+", out) == ["1", "2", "3"]
    assert "synthetic profile" in out
    best = shlex.split(out.strip().splitlines()[-1])
    load_config(overrides=best[1::2], environ={})
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'artifacts' / 'mlflow.db'}")
    (experiment,) = [one for one in client.search_experiments() if one.name == "iot-defense"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    trials = {run.info.run_name: run for run in runs if run is not parent}
    assert set(trials) == {"trial 1", "trial 2", "trial 3"}
    assert {run.data.tags["mlflow.parentRunId"] for run in trials.values()} == {parent.info.run_id}
    assert parent.data.metrics["search/macro_f1"] == max(run.data.metrics["objective"] for run in trials.values())
    assert all("trial.lstm.model.hidden_size" in run.data.params for run in trials.values())
    assert any(key.endswith(OBJECTIVE) for key in trials["trial 1"].data.metrics)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "bass", "--trials", "1"], "did you mean 'base'"),
        (["--model", "base", "--trials", "0"], "--trials is 0"),
        (["--model", "base"], "--trials"),
        (["--model", "base", "--trials", "1", "--set", "lstm.training.epoch=1"], "did you mean 'lstm.training.epochs'"),
        (["--model", "base", "--trials", "1", "--sudy", "x"], "--sudy"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1


@pytest.mark.slow
def test_the_temporal_network_is_searched(tmp_path: Path) -> None:
    ranges = {"temporal.model.hidden_size": ("categorical", (8, 16)), "temporal.training.kl_weight": ("float", 0.1, 1.0, True)}
    given = config("temporal.training.epochs=4", "temporal.training.stride=4", "temporal.training.batch_size=16", "temporal.training.learning_rate=0.01")
    outcome = search(given, DATA, "temporal", ranges, 2, tmp_path / "search.db", Record().open)
    assert set(outcome.settings) == set(ranges)
    assert outcome.value > 0.2


@pytest.mark.slow
def test_killed_at_once_the_command_goes_on(tmp_path: Path) -> None:
    """SIGKILL, as by the system."""
    words = [*TINY, "data.window=10", "data.synthetic_rows_per_class=400", f"compute.artifacts={tmp_path}"]
    command = [sys.executable, "-m", "src.search", "--model", "base", "--trials", "4", *(part for word in words for part in ("--set", word))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("trial 1 of 4")
        process.kill()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("trial")] in (["2", "3", "4"], ["3", "4"])
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'search.db'}")
    assert sum(trial.state.is_finished() and trial.value is not None for trial in study.trials) == 4
