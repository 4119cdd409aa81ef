"""Both networks trained on one data set for the parts that look inside them; kept, so that a benchmark that was cut off goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.common import cache_folder, code_digest, digest
from src.artifacts import new_artifact, open_artifact
from src.config import LSTMTrainingConfig, TemporalTrainingConfig
from src.data.dataset import Dataset, Rows
from src.data.windows import gather, window_starts
from src.models.explanations import AttentionTracker
from src.models.loop import Trainer, WindowBatches, seeded
from src.models.lstm_attack_predictor import LSTMConfig, RealDataLSTMPredictor, RealDataTrainer, build_model
from src.models.temperature import fit_temperature
from src.models.temporal_lstm import AdvancedLSTMTemporal, create_model
from src.training.temporal_trainer import TemporalTrainer

KIND = "benchmark-network"
BASE, TEMPORAL = "base LSTM", "temporal LSTM"
NETWORKS = (BASE, TEMPORAL)
"""The base LSTM at its default size, and the temporal LSTM of the preset `fast_training`."""

CODE = ("src/config.py", "src/data", "src/models", "src/training", "benchmarks/networks.py")
"""What a kept network hangs on."""

Network = RealDataLSTMPredictor | AdvancedLSTMTemporal


@dataclass(frozen=True)
class Trained:
    """A calibrated network."""

    model: Network
    tracking: list[dict[str, float]]
    """Its attention after each epoch (`AttentionTracker.rows`); empty for the base LSTM."""
    macro_f1: float
    """Best on `calibrate`, of all epochs."""


def train_network(name: str, dataset: Dataset, length: int, *, epochs: int, stride: int, seed: int) -> Trained:
    """Train one of `NETWORKS`, or take it from where it was kept: by data, arguments and code."""
    identity = digest(name, dataset.data_hash, length, epochs, stride, seed, code_digest(*CODE))
    folder = cache_folder() / "networks" / identity
    classes, features = len(dataset.class_names), len(dataset.feature_names)
    with seeded(seed, 0):
        model = create_model("fast_training", input_size=features, num_classes=classes, sequence_length=length)
    if name == BASE:
        model = build_model(LSTMConfig(features, num_classes=classes, sequence_length=length, pooling="last_mean"), seed)
    if folder.exists():
        meta = open_artifact(folder, KIND)
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return Trained(model.eval(), meta["tracking"], meta["macro_f1"])
    model.scaler.fit(dataset.splits["fit"].features)
    tracker = AttentionTracker(model, windows_of(dataset.splits["calibrate"], length, length * 20)[0])
    fit, calibrate = (_batches(dataset.splits[side], length, stride, side == "fit") for side in ("fit", "calibrate"))
    counts = np.bincount(fit.labels.numpy(), minlength=classes)
    options: dict[str, Any] = {"seed": seed, "device": "cpu", "class_counts": counts}
    trainer: Trainer = (
        RealDataTrainer(model, LSTMTrainingConfig(epochs=epochs), **options)
        if isinstance(model, RealDataLSTMPredictor)
        else TemporalTrainer(model, TemporalTrainingConfig(epochs=epochs), **options)
    )
    history = trainer.train(fit, calibrate, on_epoch=lambda row: tracker.record(int(row["epoch"])))
    model.eval()
    with torch.inference_mode():
        parts = [(draws_of(model, batch[0]), batch[1]) for batch in calibrate]
    model.temperature.fill_(fit_temperature(torch.cat([part[0] for part in parts], dim=1), torch.cat([part[1] for part in parts])))
    found = Trained(model, tracker.rows, max(row["calibrate/macro_f1"] for row in history))
    with new_artifact(folder, KIND, {"tracking": found.tracking, "macro_f1": found.macro_f1}) as target:
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, target / "model.safetensors")
    return found


def draws_of(model: Network, windows: Tensor) -> Tensor:
    """Logits (S, B, C) of raw windows (B, T, F): one draw of the base LSTM, the temporal LSTM's own."""
    return model(windows)[None] if isinstance(model, RealDataLSTMPredictor) else model.sample_logits(windows)


def windows_of(rows: Rows, length: int, stride: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int32]]:
    """Raw windows (W, T, F) of some rows with labels (W,) and runs (W,)."""
    starts = window_starts(rows.segment, length, stride)
    return gather(rows.features, starts, length), rows.label[starts].astype(np.int64), rows.segment[starts]


def _batches(rows: Rows, length: int, stride: int, shuffle: bool) -> WindowBatches:
    starts = window_starts(rows.segment, length, stride)
    labels = torch.from_numpy(rows.label[starts].astype(np.int64))
    generator = torch.Generator() if shuffle else None
    return WindowBatches(torch.from_numpy(rows.features), torch.from_numpy(starts), labels, length, 256 if shuffle else 2048, generator)
