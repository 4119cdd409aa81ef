"""Stage 3: what it trains on, what it refuses, what it leaves."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from src.artifacts import new_artifact
from src.config import SAEModelConfig, SAETrainingConfig
from src.errors import UserError
from src.models.lstm_sae import AnomalyDetector
from src.sae.encoding import KIND
from src.sae.layout import Layout, finish, parser
from src.sae.training import TrainingSettings, add_training_flags, run, train, training_settings
from src.training.sae_trainer import SAETrainer

T, F = 5, 4


def waves(count: int, seed: int, attack: np.ndarray | None = None) -> np.ndarray:
    """(count, T, F) synthetic windows: sines; those of an attack are noise."""
    rng = np.random.default_rng(seed)
    made = np.sin(rng.uniform(0, 2 * np.pi, (count, 1, 1)) + np.arange(T)[:, None] * 0.7 + np.arange(F))
    if attack is not None:
        made[attack] = 2 * rng.standard_normal((int(attack.sum()), T, F))
    return made.astype(np.float32)


def make_encoded(root: Path, train_marks: np.ndarray | None = None, val_marks: np.ndarray | None = None) -> Layout:
    """What stage 3 reads of stage 2's artifact, generated."""
    layout = Layout(root, "nbaiot", "v1")
    marks = {
        "train": np.zeros(120, np.int8) if train_marks is None else train_marks,
        "val": np.repeat([0, 1], 40).astype(np.int8) if val_marks is None else val_marks,
    }
    with new_artifact(layout.encoded, KIND, {}) as folder:
        for seed, (part, y) in enumerate(marks.items()):
            np.save(folder / f"X_{part}_sequences.npy", waves(len(y), seed, y == 1))
            np.save(folder / f"y_{part}.npy", y)
    return layout


def settings(**changes: Any) -> TrainingSettings:
    training = {"epochs": 12, "batch_size": 16, "learning_rate": 0.01, "patience": 12}
    more = {name: changes.pop(name) for name in list(changes) if name in ("max_train", "max_val", "seed", "resume")}
    return TrainingSettings(SAEModelConfig(encoder_units=(8, 3), decoder_units=(8,), dropout=0.0), SAETrainingConfig(**{**training, **changes}), **more)


def quiet(_: str) -> None:
    """Show nothing."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, dict[str, Any], list[str]]:
    said: list[str] = []
    layout = make_encoded(tmp_path_factory.mktemp("sae"))
    return layout, train(layout, settings(), said.append), said


def test_the_artifact_holds_weights_history_and_detector(trained: tuple[Layout, dict[str, Any], list[str]]) -> None:
    layout, metadata, _ = trained
    name = "lstm-sae-model-nbaiot-v1"
    files = {f"{name}.safetensors", f"{name}-best.safetensors", f"history-{name}.json", f"metadata-{name}.json", "detector.safetensors"}
    assert {path.name for path in layout.model.iterdir()} == files | {"meta.json", "checksums.json"}
    assert [path.name for path in layout.model.parent.iterdir()] == [layout.name]  # the checkpoint is gone
    assert json.loads((layout.model / f"metadata-{name}.json").read_text()) == json.loads(json.dumps(metadata))
    history = json.loads((layout.model / f"history-{name}.json").read_text())
    losses = [row["calibrate/loss"] for row in history["epochs"]]
    assert history["best_epoch"] == metadata["best_epoch"] == 1 + int(np.argmin(losses))
    assert metadata["best_validation_loss"] == min(losses)
    assert metadata["windows"] == {"train": 120, "train_available": 120, "validation": 40, "validation_benign": 40}
    assert metadata["model"]["encoder_units"] == (8, 3)


def test_the_detector_is_made_of_the_best_weights_and_ranks(trained: tuple[Layout, dict[str, Any], list[str]]) -> None:
    layout, metadata, _ = trained
    detector, meta = AnomalyDetector.load(layout.model)
    assert meta["best_epoch"] == metadata["best_epoch"]
    best = load_file(layout.model / f"{layout.model_name}-best.safetensors")
    assert all(torch.equal(best[name], value) for name, value in detector.model.state_dict().items())
    assert len(detector.reference) == 40  # benign validation windows, none of an attack
    benign = waves(40, 7)
    with torch.inference_mode():
        held = torch.from_numpy(np.load(layout.encoded / "X_val_sequences.npy")[:40])
        assert float(detector.model.loss(held)) == pytest.approx(metadata["best_validation_loss"], rel=1e-5)
    attack = waves(200, 9, np.ones(200, dtype=bool))
    assert detector.anomaly(attack).mean() > detector.anomaly(benign).mean() + 0.3


def test_the_last_weights_are_kept_beside_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = make_encoded(tmp_path)
    losses = iter([1.0, 0.5, 0.9, 0.8])
    monkeypatch.setattr(SAETrainer, "validate_epoch", lambda *_: {"loss": next(losses)})
    said: list[str] = []
    train(layout, settings(patience=2, stopping="standard"), said.append)
    final, best = (load_file(layout.model / f"{layout.model_name}{end}.safetensors") for end in ("", "-best"))
    assert final.keys() == best.keys()
    assert not any(torch.equal(final[name], best[name]) for name in final)
    assert "stopped after epoch 4: no better value for 2 epochs" in said
    assert "best validation loss 0.5 of epoch 2, whose weights are kept" in said


def test_progress_shows_first_and_every_tenth_epoch(trained: tuple[Layout, dict[str, Any], list[str]]) -> None:
    said = trained[2]
    assert [line.split(":")[0] for line in said if line.startswith("epoch")] == ["epoch 1/12", "epoch 10/12"]
    assert "stopped after epoch 12: it was the last" in said
    assert said[-1] == f"done: {trained[0].model}"


def test_a_fall_of_the_rate_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SAETrainer, "validate_epoch", lambda *_: {"loss": 0.5})
    said: list[str] = []
    train(make_encoded(tmp_path), settings(), said.append)
    assert [line for line in said if line.startswith("learning rate")] == ["learning rate 0.002 from epoch 6 on", "learning rate 0.0004 from epoch 10 on"]


def test_same_seed_same_detector_whatever_was_there_before(trained: tuple[Layout, dict[str, Any], list[str]], tmp_path: Path) -> None:
    layout = make_encoded(tmp_path)
    train(layout, settings(seed=1, epochs=1), quiet)
    other = load_file(layout.model / "detector.safetensors")
    train(layout, settings(), quiet)
    again, first = (load_file(one.model / "detector.safetensors") for one in (layout, trained[0]))
    assert all(torch.equal(again[name], first[name]) for name in first)
    assert not all(torch.equal(again[name], other[name]) for name in first)


def test_an_interrupted_training_goes_on(trained: tuple[Layout, dict[str, Any], list[str]], tmp_path: Path) -> None:
    layout = make_encoded(tmp_path)

    def stop(line: str) -> None:
        if line.startswith("epoch 10/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(layout, settings(), stop)
    assert not layout.model.exists()
    with pytest.raises(UserError, match="other settings or data"):
        train(layout, settings(resume=True, max_train=50), quiet)
    train(layout, settings(resume=True), quiet)
    for name in (f"{layout.model_name}.safetensors", "detector.safetensors", f"history-{layout.model_name}.json"):
        assert (layout.model / name).read_bytes() == (trained[0].model / name).read_bytes()


def test_caps_choose_fewer_windows_and_leave_the_reference_whole(tmp_path: Path) -> None:
    layout, said = make_encoded(tmp_path), []
    metadata = train(layout, settings(epochs=1, max_train=30, max_val=7), said.append)
    assert metadata["windows"] == {"train": 30, "train_available": 120, "validation": 7, "validation_benign": 40}
    assert len(AnomalyDetector.load(layout.model)[0].reference) == 40
    assert "30 of 120 training and 7 of 40 benign validation windows of 5 rows x 4 features" in said


def test_an_attack_among_the_training_windows_is_refused(tmp_path: Path) -> None:
    marks = np.zeros(50, np.int8)
    marks[[7, 9]] = 1
    layout = make_encoded(tmp_path, marks)
    with pytest.raises(UserError, match=r"2 training windows are attacks \(the first is number 7\)"):
        train(layout, settings(), quiet)
    assert not layout.model.parent.exists()


def test_windows_without_labels_are_taken_as_benign_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    layout = make_encoded(tmp_path, np.full(50, -1, np.int8), np.full(20, -1, np.int8))
    metadata = train(layout, settings(epochs=1), said.append)
    assert metadata["notes"] == [
        "50 of 50 training windows have no label; they are taken as benign",
        "no validation window is known to be benign; 20 without a label are taken as benign",
    ]
    assert f"note: {metadata['notes'][0]}" in said


@pytest.mark.parametrize(
    ("train_marks", "val_marks", "message"),
    [(np.zeros(0, np.int8), None, "no training window"), (None, np.ones(9, np.int8), "no benign validation window")],
)
def test_a_part_without_windows_is_refused(tmp_path: Path, train_marks: np.ndarray | None, val_marks: np.ndarray | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(make_encoded(tmp_path, train_marks, val_marks), settings(), quiet)


def test_a_missing_or_altered_stage_2_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sae-windows artifact"):
        train(Layout(tmp_path, "iot23", "v1"), settings(), quiet)
    layout = make_encoded(tmp_path)
    np.save(layout.encoded / "y_train.npy", np.zeros(121, np.int8))
    with pytest.raises(UserError, match=r"'y_train\.npy' was altered"):
        train(layout, settings(), quiet)
    layout = Layout(tmp_path, "otrf", "v1")
    with new_artifact(layout.encoded, KIND, {}) as folder:
        for part in ("train", "val"):
            np.save(folder / f"X_{part}_sequences.npy", waves(9, 0))
            np.save(folder / f"y_{part}.npy", np.zeros(8, np.int8))
    with pytest.raises(UserError, match="do not fit together"):
        train(layout, settings(), quiet)


def given(*words: str) -> TrainingSettings:
    flags = parser("src.sae.training", "Test.")
    add_training_flags(flags)
    flags.add_argument("--seed", type=int, default=0)
    return training_settings(flags.parse_args(["--dataset", "iot23", "--version", "v1", *words]))


def test_flags_reach_the_settings_and_default_to_the_configuration() -> None:
    assert given() == TrainingSettings()
    words = "--encoder-units 9 5 3 --decoder-units 4 --dropout-rate 0.3 --learning-rate 0.5 --batch-size 7 --epochs 3 --min-improvement 1.5 --patience 2"
    found = given(*words.split(), "--stopping-strategy", "adaptive", "--max-train", "100", "--max-val", "50", "--seed", "4", "--resume")
    assert found.model == SAEModelConfig(encoder_units=(9, 5, 3), decoder_units=(4,), dropout=0.3)
    assert found.training == SAETrainingConfig(epochs=3, batch_size=7, learning_rate=0.5, stopping="adaptive", min_improvement=1.5, patience=2)
    assert (found.max_train, found.max_val, found.seed, found.resume) == (100, 50, 4, True)
    assert dataclasses.asdict(found).keys() == {"model", "training", "max_train", "max_val", "seed", "resume"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stopping-strategy", "smrt"], "did you mean 'smart'"),
        (["--learning-rate", "0"], "learning_rate.* greater than 0"),
        (["--encoder-units", "0"], "encoder_units.* greater than or equal to 1"),
        (["--dropout-rate", "1"], "dropout.* less than 1"),
        (["--max-train", "1"], "at least 2 windows"),
        (["--seed", "-1"], "allowed: 0 to"),
        (["--epochs", "many"], "--epochs"),
    ],
)
def test_wrong_flags_end_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        given(*words)
    assert "\n" not in str(caught.value)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = make_encoded(tmp_path)
    words = ["--dataset", "nbaiot", "--version", "v1", "--out", str(tmp_path), "--epochs", "1", "--encoder-units", "4", "--decoder-units", "4"]
    assert finish(run, words) == 0
    assert (layout.model / f"{layout.model_name}-best.safetensors").exists()
    assert f"done: {layout.model}" in capsys.readouterr().out
    assert finish(run, [*words, "--version", "v9"]) == 2
    assert capsys.readouterr().err.startswith("error: no sae-windows artifact")
