"""Training of the LSTM autoencoder."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from src.config import SAETrainingConfig
from src.errors import UserError
from src.models.loop import WindowBatches
from src.models.lstm_sae import LSTMAutoencoder, SAEConfig, build_autoencoder
from src.training.sae_trainer import ArrayBatches, SAETrainer, Selection, evenly

T, F = 6, 3
SHAPE = SAEConfig(F, T, (12, 6), (6, 12), 0.1)


def waves(count: int, seed: int) -> np.ndarray:
    """(count, T, F) synthetic windows: sines of random phase, which a code of two numbers can hold."""
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi, (count, 1, 1))
    return np.sin(phase + np.arange(T)[None, :, None] * 0.7 + np.arange(F)).astype(np.float32)


TRAIN, CHECK = waves(200, 0), waves(80, 1)


def settings(**changes: object) -> SAETrainingConfig:
    return SAETrainingConfig(**{"epochs": 5, "batch_size": 32, "learning_rate": 0.01, **changes})  # type: ignore[arg-type]


def batches(windows: np.ndarray = TRAIN, shuffle: bool = True) -> ArrayBatches:
    return ArrayBatches(windows, 32, torch.Generator() if shuffle else None)


def trained(path: Path | None = None, stop_after: int | None = None, seed: int = 0, windows: object = None, **changes: object):
    def on_epoch(row: dict[str, float]) -> None:
        if row["epoch"] == stop_after:
            raise KeyboardInterrupt

    trainer = SAETrainer(build_autoencoder(SHAPE, seed), settings(**changes), seed=seed, device="cpu")
    source = batches() if windows is None else windows
    history = trainer.train(source, batches(CHECK, shuffle=False), on_epoch=on_epoch, checkpoint=path, resume=path is not None and stop_after is None)  # type: ignore[arg-type]
    return trainer, history


def same(left: LSTMAutoencoder, right: LSTMAutoencoder) -> bool:
    return all(map(torch.equal, left.state_dict().values(), right.state_dict().values()))


def test_it_learns_to_rebuild() -> None:
    trainer, history = trained(epochs=40, patience=40)
    assert set(history[0]) == {"epoch", "learning_rate", "train/loss", "calibrate/loss"}
    assert trainer.stopping.best < 0.3 * CHECK.var()  # what the mean alone would leave
    assert trainer.stopping.best == min(row["calibrate/loss"] for row in history)
    assert trainer.validate_epoch(batches(CHECK, shuffle=False))["loss"] == pytest.approx(trainer.stopping.best)
    with torch.inference_mode():
        assert float(trainer.model.loss(torch.from_numpy(CHECK))) == pytest.approx(trainer.stopping.best, rel=1e-5)


def test_same_seed_same_weights() -> None:
    state = torch.random.get_rng_state()
    one, two, other = trained(), trained(), trained(seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert same(one[0].model, two[0].model)
    assert one[1] == two[1]
    assert not same(one[0].model, other[0].model)


@pytest.mark.parametrize("strategy", ["standard", "smart", "adaptive"])
def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path: Path, strategy: str) -> None:
    changes = {"stopping": strategy, "epochs": 20, "patience": 3, "learning_rate": 0.03, "min_improvement": 5.0}
    whole, history = trained(**changes)
    file = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        trained(file, stop_after=4, **changes)
    resumed, again = trained(file, **changes)
    assert again == history
    assert same(resumed.model, whole.model)
    assert resumed.stopping.state() == whole.stopping.state()
    finished, third = trained(file, **changes)  # nothing left to do
    assert third == history
    assert same(finished.model, whole.model)
    with pytest.raises(UserError, match="other settings or data"):
        trained(file, **{**changes, "stopping": "standard" if strategy != "standard" else "smart"})


def test_a_memory_map_is_trained_on_as_an_array_is(tmp_path: Path) -> None:
    np.save(tmp_path / "windows.npy", TRAIN)
    mapped = np.load(tmp_path / "windows.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    assert same(trained(windows=batches(mapped))[0].model, trained()[0].model)


def test_windows_gathered_from_rows_will_do_as_well() -> None:
    rows = np.random.default_rng(0).normal(size=(60, F)).astype(np.float32)
    gathered = WindowBatches(torch.from_numpy(rows), torch.arange(50), torch.zeros(50), T, 32)
    stacked = np.stack([rows[start : start + T] for start in range(50)])
    one, two = (trained(windows=source) for source in (gathered, ArrayBatches(stacked, 32)))
    assert same(one[0].model, two[0].model)


def test_batches_hold_each_chosen_window_once() -> None:
    chosen = evenly(np.arange(200), 70)
    assert (len(chosen), chosen[0], chosen[-1], len(set(chosen))) == (70, 0, 199, 70)
    assert evenly(chosen, None) is chosen
    assert evenly(chosen, 70) is chosen
    numbered = np.broadcast_to(np.arange(200, dtype=np.float32)[:, None, None], (200, T, F))
    source = ArrayBatches(Selection(numbered, chosen), 32, torch.Generator().manual_seed(0))
    parts = [batch[0][:, 0, 0].numpy() for batch in source]
    assert [len(part) for part in parts] == [32, 32, 6]
    assert len(source) == 3
    assert sorted(np.concatenate(parts)) == chosen.tolist()
    assert np.concatenate(parts).tolist() != chosen.tolist()
    assert [batch[0][:, 0, 0].tolist() for batch in ArrayBatches(numbered, 150)] == [list(range(150)), list(range(150, 200))]


def scripted(monkeypatch: pytest.MonkeyPatch, losses: list[float], **changes: object) -> tuple[SAETrainer, list[dict[str, float]], list[torch.Tensor]]:
    """Training whose validation loss follows a script; the third value holds the output's bias after each epoch."""
    trainer = SAETrainer(build_autoencoder(SHAPE, 0), settings(**{"epochs": len(losses), **changes}), device="cpu")
    script, marks = itertools.count(), []

    def validate(_: object) -> dict[str, float]:
        marks.append(trainer.model.output.bias.detach().clone())
        return {"loss": losses[next(script)]}

    monkeypatch.setattr(trainer, "validate_epoch", validate)
    return trainer, trainer.train(batches(), []), marks


@pytest.mark.parametrize("strategy", ["standard", "smart", "adaptive"])
@pytest.mark.parametrize(
    ("losses", "epochs", "best"),
    [
        ([1.0, 0.2, 0.5, 0.4, 0.3, 0.25, 0.1], 5, 2),  # a best of the first epochs; every later one beats the one before it
        ([1.0, 0.9, 0.8, 0.7], 4, 4),  # falls to the end
        ([1.0, 0.5, math.nan, 0.1], 3, 2),  # the loss is gone
        ([1.0, 0.5, 0.6, 0.7, 0.7, 0.7], 5, 2),  # a plateau above the best
    ],
)
def test_the_best_epoch_is_restored(monkeypatch: pytest.MonkeyPatch, strategy: str, losses: list[float], epochs: int, best: int) -> None:
    trainer, history, marks = scripted(monkeypatch, losses, stopping=strategy, patience=3)
    assert len(history) == epochs
    assert torch.equal(trainer.model.output.bias, marks[best - 1])
    assert not any(torch.equal(trainer.model.output.bias, mark) for mark in [*marks[: best - 1], *marks[best:]])
    assert (trainer.stopping.best_epoch, trainer.stopping.best) == (best, losses[best - 1])
    assert ("not finite" in trainer.stopping.reason) == any(map(math.isnan, losses))


def test_a_tiny_improvement_is_restored_although_it_is_not_significant(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _, marks = scripted(monkeypatch, [1.0, 0.999, 0.998, 0.997], patience=3)
    assert torch.equal(trainer.model.output.bias, marks[3])
    assert trainer.stopping.reason == "no significant improvement for 3 epochs"


def test_training_that_diverges_from_the_start_ends_in_one_line() -> None:
    broken = ArrayBatches(np.full((40, T, F), np.nan, dtype=np.float32), 32)
    with pytest.raises(UserError, match=r"no longer finite; lower sae.training.learning_rate \(now 0.01\)"):
        trained(windows=broken)
    with pytest.raises(UserError, match="no window"):
        trained(windows=ArrayBatches(TRAIN[:0], 32))


def test_the_rate_falls_on_a_plateau_and_patience_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, history, _ = scripted(monkeypatch, [1.0, *[0.5] * 30], patience=5)
    rates = [row["learning_rate"] for row in history]
    assert rates == pytest.approx([*[0.01] * 6, *[0.002] * 4, *[0.0004] * 1])  # four epochs without a better loss, then a fifth of the rate
    assert len(history) == 11  # five epochs from the first fall on
    assert trainer.stopping.best_epoch == 2


def test_settings_reach_the_optimiser(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = SAETrainer(build_autoencoder(SHAPE, 0), settings(clip_norm=1e-3, learning_rate=0.005), device="cpu")
    assert isinstance(trainer.optimizer, torch.optim.Adam)
    assert trainer.optimizer.defaults["lr"] == 0.005
    norms, step = [], trainer.optimizer.step

    def watched(*words: object, **more: object) -> object:
        norms.append(math.sqrt(sum(float(part.grad.square().sum()) for part in trainer.model.parameters() if part.grad is not None)))
        return step(*words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer.optimizer, "step", watched)
    trainer.train_epoch(batches())
    assert 0 < max(norms) <= 1e-3 * (1 + 1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_it_trains_on_a_gpu_in_mixed_precision() -> None:
    trainer = SAETrainer(build_autoencoder(SHAPE, 0), settings(epochs=20, patience=20), device="cuda")
    assert trainer.mixed
    history = trainer.train(batches(), batches(CHECK, shuffle=False))
    assert history[-1]["calibrate/loss"] < history[0]["calibrate/loss"] / 2
