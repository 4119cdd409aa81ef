"""When training ends: standard, smart and adaptive stopping on real benign windows, and on loss curves that are made up.

The three strategies watch the same validation loss and change nothing else, and the random numbers of an epoch follow from seed and epoch. So a
network is trained once a seed, to the last epoch that is allowed, and each strategy is asked where it would have stopped: the weights and
losses up to there are those that a training of its own would have had. Seconds are those of the epochs up to there.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import Gate, PartOptions
from src.config import SAEModelConfig, SAETrainingConfig
from src.errors import UserError
from src.models.lstm_sae import SAEConfig, build_autoencoder
from src.models.stopping import create_smart_callbacks
from src.sae.aggregation import aggregate, read_schema
from src.sae.encoding import EncodingSettings, encode
from src.sae.layout import Layout, preset, read_json
from src.training.sae_trainer import ArrayBatches, SAETrainer

STRATEGIES = ("standard", "smart", "adaptive")
EPOCHS, PATIENCE = 150, 5
"""Of the description's former pipeline."""
EQUAL = 1.01
"""A validation loss equals standard stopping's when it is at most so many times that."""
SEQUENCE, STRIDE, VALIDATION, MOST = 10, 5, 0.25, 1200
"""Rows of a window and between two; the last share of the windows that validates; and most windows of a data set, the first ones."""

Curve = list[dict[str, float]]
"""A row an epoch: `loss` of validation, `rate`, `seconds`."""


def measure(options: PartOptions) -> tuple[dict[str, Gate], dict[str, list[dict[str, Any]]]]:
    """Both tables; nothing here is asked to pass."""
    epochs, seeds = (40, range(1)) if options.quick else (EPOCHS, range(3))
    sources = {
        "CICIoT2023": ("ciciot2023", options.root),
        "IoT-23": ("iot23", options.shared / "iot23"),
        "IoT Sentinel": ("ciciot2023", options.shared / "ciciot39" / "iot_sentinel"),
    }
    rows: list[dict[str, Any]] = []
    for name, (dataset, root) in sources.items():
        if options.quick and name != "CICIoT2023":
            continue
        fit, held = benign_windows(dataset, root)
        curves = [train_to_the_end(fit, held, epochs, seed) for seed in seeds]
        rows += [{"data": name, "windows": len(fit), "validating": len(held), **row} for row in compare(curves)]
    return {}, {
        f"trainings on benign windows, real, at most {epochs} epochs, patience {PATIENCE}": rows,
        f"loss curves, synthetic, at most {EPOCHS} epochs, patience {PATIENCE}": made_up(),
    }


def benign_windows(dataset: str, root: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Benign windows (N, T, F) of the pipeline's own first two stages: to train on, and later ones to validate on.

    Raises:
        UserError: when too few windows are there.
    """
    with tempfile.TemporaryDirectory() as folder:
        layout, configuration = Layout(Path(folder), dataset, "stopping"), preset(dataset)
        aggregate(dataset, root, read_schema(configuration.schema), layout, lambda _: None)
        encode(layout, read_json(configuration.encoding), EncodingSettings(SEQUENCE, STRIDE), lambda _: None)
        windows = np.load(layout.encoded / "X_train_sequences.npy")[:MOST]
    first = round(len(windows) * (1 - VALIDATION))
    gap = -(-SEQUENCE // STRIDE)  # no row stands on both sides
    if first < 2 or len(windows) - first - gap < 2:
        raise UserError(f"{len(windows)} benign windows of '{root}' are too few to train and validate on")
    return windows[:first], windows[first + gap :]


def train_to_the_end(fit: NDArray[np.float32], held: NDArray[np.float32], epochs: int, seed: int) -> Curve:
    """Train the product's default autoencoder through all epochs, whatever the loss says."""
    shape = SAEModelConfig()
    model = build_autoencoder(SAEConfig(fit.shape[2], fit.shape[1], shape.encoder_units, shape.decoder_units, shape.dropout), seed)
    settings = SAETrainingConfig(epochs=epochs, stopping="standard", patience=epochs + 1)
    curve: Curve = []
    began = time.perf_counter()

    def on_epoch(row: dict[str, float]) -> None:
        curve.append({"loss": row["calibrate/loss"], "rate": row["learning_rate"], "seconds": time.perf_counter() - began})

    trainer = SAETrainer(model, settings, seed=seed, device="cpu")
    trainer.train(ArrayBatches(fit, settings.batch_size, torch.Generator()), ArrayBatches(held, 1024), on_epoch=on_epoch)
    return curve


def replay(strategy: str, losses: list[float], rates: list[float]) -> dict[str, Any]:
    """Where a strategy stops on a curve, why, and which epoch's weights it restores."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rates[0])
    stopping, _ = create_smart_callbacks(strategy, optimizer=optimizer, patience=PATIENCE)
    epoch = 0
    for epoch, (loss, rate) in enumerate(zip(losses, rates, strict=True), start=1):
        if stopping.update(epoch, loss, rate):
            break
    return {"epochs": epoch, "restored": stopping.best_epoch, "loss": stopping.best, "reason": stopping.reason or "last epoch"}


def compare(curves: list[Curve]) -> list[dict[str, Any]]:
    """A row a strategy: means over seeds, and what it saves beside standard stopping where its loss is equal."""
    found = {name: [replay(name, [row["loss"] for row in curve], [row["rate"] for row in curve]) for curve in curves] for name in STRATEGIES}
    rows = []
    for name, ends in found.items():
        seconds, usual = ([curve[end["epochs"] - 1]["seconds"] for curve, end in zip(curves, those, strict=True)] for those in (ends, found["standard"]))
        ratio = np.array([end["loss"] / other["loss"] for end, other in zip(ends, found["standard"], strict=True)])
        saved = 1 - np.array(seconds) / np.array(usual)
        equal = ratio <= EQUAL
        rows.append(
            {
                "strategy": name,
                "seeds": len(curves),
                "epochs": float(np.mean([end["epochs"] for end in ends])),
                "seconds": float(np.mean(seconds)),
                "loss": float(np.mean([end["loss"] for end in ends])),
                "loss_to_standard": float(ratio.mean()),
                "loss_to_best_of_all_epochs": float(
                    np.mean([end["loss"] / min(row["loss"] for row in curve) for end, curve in zip(ends, curves, strict=True)])
                ),
                "time_saved": float(saved.mean()),
                "seeds_with_equal_loss": int(equal.sum()),
                "time_saved_at_equal_loss": float(saved[equal].mean()) if equal.any() else None,
            }
        )
    return rows


def synthetic_curves() -> dict[str, tuple[list[float], list[float]]]:
    """Losses and learning rates of epochs by the case that they show."""
    epoch = np.arange(EPOCHS)
    rng = np.random.default_rng(0)
    flat = np.full(EPOCHS, 1e-3)
    dropped = np.where(epoch < 20, 1e-3, 2e-4)
    curves: dict[str, tuple[NDArray[np.floating], NDArray[np.floating]]] = {
        "best early, then a plateau above it": (np.where(epoch < 6, 0.08 * 0.7**epoch, 0.0150), flat),
        "steady 0.05 % an epoch": (0.0201 * 0.9995**epoch, flat),
        "steady 0.4 % an epoch": (0.05 * 0.996**epoch, flat),
        "steady 1 % an epoch": (0.05 * 0.99**epoch, flat),
        "steady 2 % an epoch": (0.05 * 0.98**epoch, flat),
        "decay to a floor, with noise": (0.02 + 0.08 * np.exp(-epoch / 12) + 4e-4 * rng.standard_normal(EPOCHS), flat),
        "not a number from epoch 13 on": (np.where(epoch >= 12, np.nan, 0.05 * 0.9**epoch), flat),
        "plateau until the rate drops in epoch 21": (
            np.where(epoch < 15, 0.02 + 0.08 * np.exp(-epoch / 3), np.where(epoch < 20, 0.0206, 0.012 + 0.0086 * np.exp((20 - epoch) / 8))),
            dropped,
        ),
    }
    return {name: (losses.tolist(), rates.tolist()) for name, (losses, rates) in curves.items()}


def made_up() -> list[dict[str, Any]]:
    """Where each strategy stops on each synthetic curve, and what it restores, beside the best of all epochs."""
    rows = []
    for case, (losses, rates) in synthetic_curves().items():
        best = min(loss for loss in losses if math.isfinite(loss))
        for strategy in STRATEGIES:
            end = replay(strategy, losses, rates)
            rows.append({"case": case, "strategy": strategy, **end, "loss_to_best_of_all_epochs": end["loss"] / best})
    return rows
