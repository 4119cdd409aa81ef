import json
import math
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import benchmarks
from benchmarks import keras_peer, sae, sae_memory, sae_speed, sae_stopping
from benchmarks.common import PartOptions
from benchmarks.contest import Worker
from benchmarks.parts import PartedBenchmark, own_code
from benchmarks.sae_stopping import EPOCHS, STRATEGIES, compare, made_up, replay, synthetic_curves, train_to_the_end
from src.config import SAEModelConfig, SAETrainingConfig
from src.errors import UserError
from src.models.lstm_sae import SAEConfig, build_autoencoder
from src.training.sae_trainer import ArrayBatches, SAETrainer
from tests.encoded import make_windows
from tests.test_architecture import imports

ROOT = Path(__file__).parents[1]


def waves(count: int, seed: int) -> np.ndarray:
    return make_windows(count, np.zeros(count), np.random.default_rng(seed))


def test_an_unknown_part_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sae", "--part", "sped"])
    with pytest.raises(UserError, match=r"unknown part 'sped'.*speed"):
        sae.main()


def test_a_part_hangs_on_its_own_code_and_on_what_that_imports() -> None:
    found = set(own_code("benchmarks.sae_speed"))
    own = {name for name in found if name.startswith("benchmarks/") and not name.endswith("__init__.py")}
    assert own == {f"benchmarks/{name}.py" for name in ("common", "contest", "keras_peer", "sae_speed")}
    assert {"src/models/lstm_sae.py", "src/training/sae_trainer.py", "src/models/loop.py"} <= found  # and what those import
    assert not {name for name in found if name.startswith(("src/sae/", "agents/", "envs/"))}
    assert own_code("benchmarks.no_such_part") == ()


def test_a_part_is_measured_again_when_its_own_code_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = tmp_path / "checkout" / "benchmarks"
    code.mkdir(parents=True)
    (code / "other_probe.py").write_text(
        "def measure(options):\n    with (options.root / 'count').open('a') as stream:\n        stream.write('x')\n    return {}, {'t': [{'a': 1}]}\n"
    )
    (code / "unrelated.py").write_text("")
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(code)])
    for module in ("benchmarks.parts", "benchmarks.common"):
        monkeypatch.setattr(f"{module}.ROOT", tmp_path / "checkout")
    benchmark = PartedBenchmark("other", "benchmarks.other_", ("probe",), ())
    monkeypatch.setattr("benchmarks.parts.data_digest", lambda *_: "same")
    monkeypatch.setenv("IOTDEF__COMPUTE__ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setattr("benchmarks.parts.code_digest", lambda *places: str([(name, (tmp_path / "checkout" / name).read_text()) for name in places]))
    options = PartOptions(quick=True, root=tmp_path, shared=tmp_path, seeds=1)
    for _ in range(2):
        benchmark.outcome("probe", options)
    (code / "unrelated.py").write_text("x = 1\n")
    benchmark.outcome("probe", options)
    assert (tmp_path / "count").read_text() == "x"
    (code / "other_probe.py").write_text((code / "other_probe.py").read_text() + "# changed\n")
    benchmark.outcome("probe", options)
    assert (tmp_path / "count").read_text() == "xx"


# ------------------------------------------------------------------------------------------------------------------------------- stopping


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_replayed_strategy_ends_as_a_training_of_its_own(strategy: str) -> None:
    fit, held = waves(40, 0), waves(20, 1)
    curve = train_to_the_end(fit, held, 30, 0)
    assert len(curve) == 30
    end = replay(strategy, [row["loss"] for row in curve], [row["rate"] for row in curve])
    shape = SAEModelConfig()
    model = build_autoencoder(SAEConfig(fit.shape[2], fit.shape[1], shape.encoder_units, shape.decoder_units, shape.dropout), 0)
    settings = SAETrainingConfig(epochs=30, stopping=strategy, patience=sae_stopping.PATIENCE)  # type: ignore[arg-type]
    trainer = SAETrainer(model, settings, device="cpu")
    history = trainer.train(ArrayBatches(fit, settings.batch_size, torch.Generator()), ArrayBatches(held, 1024))
    assert (len(history), trainer.stopping.best_epoch) == (end["epochs"], end["restored"])
    assert trainer.stopping.best == pytest.approx(end["loss"], rel=1e-6)


def test_time_is_saved_where_the_loss_is_equal() -> None:
    losses = [0.1, 0.05, *[0.05 * 0.9995**epoch for epoch in range(1, 41)]]
    curve = [{"loss": loss, "rate": 1e-3, "seconds": 2.0 * epoch} for epoch, loss in enumerate(losses, start=1)]
    rows = {row["strategy"]: row for row in compare([curve, curve])}
    assert rows["standard"]["epochs"] == 42
    assert rows["standard"]["time_saved"] == 0
    assert rows["smart"]["epochs"] == 7
    assert rows["smart"]["time_saved"] == pytest.approx(1 - 7 / 42)
    assert rows["smart"]["seeds_with_equal_loss"] == 0, "1.8 % above standard stopping's loss is not equal"
    assert rows["smart"]["time_saved_at_equal_loss"] is None
    near = [{**row, "loss": max(row["loss"], 0.0497)} for row in curve]
    rows = {row["strategy"]: row for row in compare([near])}
    assert rows["smart"]["time_saved_at_equal_loss"] == pytest.approx(1 - rows["smart"]["epochs"] / rows["standard"]["epochs"])
    json.dumps(list(rows.values()), allow_nan=False)


def test_every_strategy_meets_every_synthetic_curve() -> None:
    rows = made_up()
    curves = synthetic_curves()
    assert {(row["case"], row["strategy"]) for row in rows} == {(case, strategy) for case in curves for strategy in STRATEGIES}
    for row in rows:
        losses = curves[row["case"]][0]
        assert row["loss"] == min(loss for loss in losses[: row["epochs"]] if math.isfinite(loss)), "the best so far is restored"
        assert losses[row["restored"] - 1] == row["loss"]
    ends = {(row["case"], row["strategy"]): row for row in rows}
    assert ends["steady 0.05 % an epoch", "standard"]["epochs"] == EPOCHS
    assert ends["steady 0.05 % an epoch", "smart"]["epochs"] < 20
    assert all(ends["not a number from epoch 13 on", strategy]["epochs"] == 13 for strategy in STRATEGIES)


# --------------------------------------------------------------------------------------------------------------------------------- memory


def test_copies_have_the_same_rows_under_other_captures(tmp_path: Path) -> None:
    pl.DataFrame({"dataset_file": ["a", "b"], "x": [1, 2]}).write_parquet(tmp_path / "source.parquet")
    sae_memory.tiled(tmp_path / "source.parquet", tmp_path / "raw", 3, None)
    found = pl.read_parquet(tmp_path / "raw" / "*.parquet")
    assert found["dataset_file"].to_list() == ["a", "b", "1-a", "1-b", "2-a", "2-b"]
    assert found["x"].to_list() == [1, 2] * 3


def allocate(size: int) -> float:
    held = np.ones(size, np.uint8)
    return sae_memory.measured(len(held), 0.0)["peak_gb"]


def test_a_process_of_its_own_has_a_peak_of_its_own() -> None:
    np.ones(300_000_000, np.uint8)  # the parent's peak is not the child's
    small, large = (sae_memory.apart(allocate, size) for size in (1, 200_000_000))
    assert 0.15 < large - small < 0.25


# ---------------------------------------------------------------------------------------------------------------------------------- speed


def test_the_peer_imports_nothing_of_the_product() -> None:
    named = imports(Path(keras_peer.__file__).read_text(encoding="utf-8"))
    assert not any(name.split(".")[0] in {"src", "envs", "agents", "benchmarks"} for name in named)
    lines = [line.partition("#")[0].strip() for line in sae_speed.REQUIREMENTS.read_text(encoding="utf-8").splitlines()]
    assert all("==" in line for line in lines if line)
    assert "tensorflow-cpu" in {line.split("==")[0] for line in lines}


def test_without_keras_ours_is_timed_alone_and_no_gate_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IOTDEF__COMPUTE__ARTIFACTS", str(tmp_path))
    monkeypatch.setattr(sae_speed, "SHAPE", SAEConfig(3, 4, (4,), (4,), 0.1))
    monkeypatch.setattr(sae_speed, "compete", lambda runs, *_: {name: np.array([run(whole)[0] / 0.5]) for name, (run, whole) in runs.items()})
    gates, tables = sae_speed.measure(PartOptions(quick=True, root=tmp_path, shared=tmp_path, seeds=1))
    assert gates == {}
    (rows,) = [rows for title, rows in tables.items() if title != "left out"]
    assert [(row["who"], row["work"], row["times_keras"]) for row in rows] == [
        (sae_speed.OURS, "training step", None), (sae_speed.OURS, "scoring", None), (sae_speed.CALIBRATED, "scoring", None),
    ]  # fmt: skip
    assert "without --quick" in tables["left out"][0]["reason"]


def test_a_peer_is_asked_and_its_end_is_told() -> None:
    code = "import json, sys; print(json.dumps({'version': 'x'}), flush=True); print(json.dumps({'got': json.loads(sys.stdin.readline())}), flush=True)"
    worker = Worker("probe", [sys.executable, "-c", code])
    assert worker.answer() == {"version": "x"}
    assert worker.ask({"work": "train", "windows": 3}) == {"got": {"work": "train", "windows": 3}}
    with pytest.raises(UserError, match="the process of peer 'probe' ended"):
        worker.answer()
    worker.end()


def test_keras_that_cannot_be_imported_says_why() -> None:
    worker = Worker("Keras", [sys.executable, *sae_speed.command()])  # this interpreter has no Keras
    assert "No module named 'keras'" in worker.answer()["failed"]
    worker.end()
