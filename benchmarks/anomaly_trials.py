"""Windows to judge anomaly scores by, and the LSTM autoencoder trained for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from src.config import DataConfig, SAEModelConfig, SAETrainingConfig
from src.data.dataset import load_dataset
from src.data.splits import SIDES
from src.data.taxonomy import family_index, in_order
from src.data.windows import gather, window_starts
from src.data.zeek import read_zeek
from src.models.lstm_sae import AnomalyDetector, SAEConfig, build_autoencoder
from src.sae.measures import Marks
from src.training.anomaly_peers import Windows
from src.training.sae_trainer import ArrayBatches, SAETrainer

LENGTH = 10
"""Rows in a window."""
SHARES = (0.5, 0.15, 0.15, 0.2)
"""Of IoT-23's benign connections in time order, by side. The earlier half of each kind of attack is `agent`, the later `test`."""
_SYSTEM_PORTS = 1024
_NUMBERS = ("duration", "orig_bytes", "resp_bytes", "missed_bytes", "orig_pkts", "orig_ip_bytes", "resp_pkts", "resp_ip_bytes")
_CATEGORIES = ("proto", "service", "conn_state")
_HISTORY = "ShAaDdFfRrTtGgWwCcQqIi^"


@dataclass(frozen=True)
class Side:
    """Windows of one side."""

    windows: Windows
    """(N, T, F) raw."""
    marks: Marks
    """Of N windows; those of a session stand together, in order."""

    @property
    def benign(self) -> Windows:
        """The windows without an attack row."""
        return self.windows[self.marks.attack == 0]


Trial = dict[str, Side]
"""By `fit`, `calibrate`, `agent` (designs were chosen there) and `test`."""


def from_dataset(config: DataConfig, stride: int = 1) -> Trial:
    """Windows of CICIoT2023 or of traffic in N-BaIoT's features; a session is a run of rows."""
    dataset = load_dataset(config, 0)
    attack = family_index(dataset.class_names) > 0
    trial: Trial = {}
    for name, rows in dataset.splits.items():
        starts = window_starts(rows.segment, LENGTH, stride)
        label = rows.label[starts].astype(np.int64)
        unknown = np.full(len(starts), -1, dtype=np.int64)
        marks = Marks(attack[label].astype(np.int8), label, rows.segment[starts].astype(np.int64), label, unknown, dataset.class_names, dataset.class_names)
        trial[name] = Side(gather(rows.features, starts, LENGTH), marks)
    return trial


def iot23(path: Path) -> Trial:
    """Windows of connections of one host to one service, by time; a window is of an attack if any of its connections is.

    A service is a responder's system port and protocol; all other ports are one. That tells sessions apart and is no feature, nor is an
    address or a time of day: features are Zeek's counts, which of its protocols, services and states a connection is of (those that benign
    connections of `fit` have, or another), how often each letter occurs in its history, and the time since the session's last connection.
    """
    columns = ("ts", "id.orig_h", "id.resp_p", "history", *_NUMBERS, *_CATEGORIES)
    frame = read_zeek(path, columns, ("detailed-label", "label"), ("Benign", "BenignTraffic")).sort("ts", maintain_order=True)
    names = in_order(frame["label"].unique().to_list())
    label = np.array([names.index(one) for one in frame["label"]])
    side = np.empty(len(frame), dtype=np.int64)
    for one in range(len(names)):
        mine = np.flatnonzero(label == one)
        shares = SHARES if one == 0 else (0, 0, 0.5, 0.5)
        side[mine] = np.searchsorted(np.rint(np.cumsum(shares) * len(mine)), np.arange(len(mine)), "right")
    port = pl.when(pl.col("id.resp_p") < _SYSTEM_PORTS).then(pl.col("id.resp_p")).otherwise(-1)
    session = frame.select(pl.struct("id.orig_h", port, "proto").rank("dense").cast(pl.Int64)).to_series().to_numpy()
    values, time = _features(frame, side == 0, session), frame["ts"].to_numpy()
    trial: Trial = {}
    for index, name in enumerate(SIDES):
        mine = np.flatnonzero(side == index)
        mine = mine[np.argsort(session[mine], kind="stable")]
        starts = window_starts(session[mine], LENGTH)
        inside = label[mine][starts[:, None] + np.arange(LENGTH)]  # (N, T)
        last = LENGTH - 1 - (inside[:, ::-1] > 0).argmax(axis=1)
        told = np.where((inside > 0).any(axis=1), inside[np.arange(len(starts)), last], 0)  # of the last attack row
        clock = (time[mine][starts + LENGTH - 1] * 1000).astype(np.int64)
        marks = Marks((told > 0).astype(np.int8), told, session[mine][starts], told, clock, names, names)
        trial[name] = Side(gather(values[mine], starts, LENGTH), marks)
    return trial


def _features(frame: pl.DataFrame, known: NDArray[np.bool_], session: NDArray[np.int64]) -> NDArray[np.float32]:
    """(N, F) of connections in time order."""
    numbers = frame.select(pl.col(name).fill_null(0).cast(pl.Float64) * (1000 if name == "duration" else 1) for name in _NUMBERS)
    gap = frame.select(((pl.col("ts") - pl.col("ts").shift(1).over(pl.Series(session))) * 1000).fill_null(0).alias("gap"))
    history = frame.select(pl.col("history").fill_null("").str.count_matches(letter, literal=True).cast(pl.Float64).alias(letter) for letter in _HISTORY)
    parts = [numbers.to_numpy(), frame.select(pl.col("duration").is_null().cast(pl.Float64)).to_numpy(), gap.to_numpy(), history.to_numpy()]
    for name in _CATEGORIES:
        column = frame[name].fill_null("").to_numpy()
        names = np.unique(column[known])
        parts += [column[:, None] == names, ~np.isin(column, names)[:, None]]
    return np.concatenate(parts, axis=1).astype(np.float32)


def train_detector(fit: Windows, check: Windows, reference: Windows, seed: int, epochs: int | None = None) -> AnomalyDetector:
    """The autoencoder at its default size and settings.

    Args:
        fit: raw benign windows (N, T, F) to train on; the scaling is of their rows.
        check: raw benign windows (M, T, F) that the validation loss is of.
        reference: raw benign windows (K, T, F) that p-values are among.
        seed: of weights and training.
        epochs: at most; None for the default.
    """
    shape, settings = SAEModelConfig(), SAETrainingConfig()
    settings = settings if epochs is None else settings.model_copy(update={"epochs": epochs})
    config = SAEConfig(fit.shape[2], fit.shape[1], shape.encoder_units, shape.decoder_units, shape.dropout)
    model = build_autoencoder(config, seed, fit.reshape(-1, fit.shape[2]))
    trainer = SAETrainer(model, settings, seed=seed, device="cpu")
    trainer.train(ArrayBatches(fit, settings.batch_size, torch.Generator()), ArrayBatches(check, 1024))
    return AnomalyDetector.fit(model, fit, reference)
