"""Fills a trace bank: every window of the held-back splits, each with what a sensor says of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from src.data.bank import FEATURE_BOUND, SPLITS, TraceBank
from src.data.dataset import Dataset, Rows
from src.data.taxonomy import FAMILIES, family_index
from src.data.windows import gather, window_starts
from src.errors import UserError
from src.predictor.interface import Sensor, sensor_names

Scale = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Raw features (..., F) to scaled ones, in [-5, 5]."""


def _chosen(rows: Rows, length: int, cap: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First rows of the windows kept, sorted by class and then capture order, and the successor of each, counted among them.

    The cap keeps a class's first windows, not a sample of them, because a trace is read along the capture.
    """
    starts = window_starts(rows.segment, length, 1)  # (W,)
    starts = starts[np.argsort(rows.label[starts], kind="stable")]
    label = rows.label[starts]
    place = np.arange(len(starts)) - np.searchsorted(label, label)  # rank inside the class
    starts = starts[place < cap]
    position = np.full(len(rows.label) + length, -1, dtype=np.int64)  # row -> window that starts there
    position[starts] = np.arange(len(starts))
    successor = position[starts + length]
    inside = rows.segment[np.minimum(starts + length, len(rows.segment) - 1)] == rows.segment[starts]
    return starts, np.where(inside, successor, -1)


def build_bank(
    dataset: Dataset, sensor: Sensor, scale: Scale, *, features: Sequence[str] | None = None, name: str = "lstm", cap: int = 5000, batch_size: int = 4096
) -> TraceBank:
    """Read all windows of `calibrate`, `agent` and `test` at a stride of one row, in batches, and keep the raw rows behind them.

    Args:
        dataset: rows of every split; its `fit` rows are not touched.
        sensor: reads raw windows; its features are picked from the data set by name.
        scale: scales raw features in the sensor's order; e.g. `EnhancedAttackPredictor.scale`.
        features: names whose window means the bank keeps; None keeps all of the sensor's.
        name: of the sensor, kept in the bank.
        cap: largest number of windows of one class in one split.
        batch_size: windows read at once; bounds the memory.

    Raises:
        UserError: for a feature that the data set or the sensor does not have, or when no split holds a window.
    """
    kept = tuple(sensor.feature_names if features is None else features)
    for wanted, known, owner in ((sensor.feature_names, dataset.feature_names, "data set"), (kept, sensor.feature_names, "sensor")):
        missing = [item for item in wanted if item not in known]
        if missing:
            raise UserError(f"the {owner} has no feature '{missing[0]}'; it has {', '.join(known)}")
    order = [dataset.feature_names.index(item) for item in sensor.feature_names]
    columns = [sensor.feature_names.index(item) for item in kept]
    length = sensor.sequence_length
    raw: list[NDArray[np.float32]] = []
    places: list[NDArray[np.int64]] = []
    means: list[NDArray[np.float32]] = []
    readings: list[NDArray[np.float32]] = []
    successors: list[NDArray[np.int64]] = []
    labels: list[NDArray[np.int16]] = []
    counts: list[int] = []
    for split in SPLITS:
        rows = dataset.splits[split]
        starts, successor = _chosen(rows, length, cap)
        successors.append(np.where(successor >= 0, successor + sum(counts), -1))
        labels.append(rows.label[starts].astype(np.int16))
        counts.append(len(starts))
        seen = np.zeros(len(rows.label), dtype=bool)  # rows inside a window that is kept; those of one window stay neighbours
        seen[starts[:, None] + np.arange(length)] = True
        places.append(np.cumsum(seen)[starts] - 1 + sum(map(len, raw)))
        raw.append(rows.features[seen][:, order])  # (R, F)
        for first in range(0, len(starts), batch_size):
            windows = gather(rows.features, starts[first : first + batch_size], length)[:, :, order]  # (B, T, F)
            readings.append(sensor.read(windows).table())  # (B, 11)
            means.append(scale(windows)[:, :, columns].mean(axis=1).clip(-FEATURE_BOUND, FEATURE_BOUND))  # (B, kept)
    if not means:
        raise UserError(f"no split holds a window of {length} rows; read more rows or lower data.window")
    return TraceBank(
        features=np.concatenate(means).astype(np.float32),
        sensors=np.concatenate(readings).astype(np.float32),
        successor=np.concatenate(successors).astype(np.int32),
        label=np.concatenate(labels),
        split=np.repeat(np.arange(len(SPLITS)), counts).astype(np.int8),
        feature_names=kept,
        sensor_names=sensor_names(FAMILIES),
        class_names=tuple(dataset.class_names),
        class_families=tuple(FAMILIES[index] for index in family_index(dataset.class_names)),
        source=dataset.source,
        site=dataset.site,
        sensor=name,
        assembled=tuple(dataset.assembled),
        rows=np.concatenate(raw).astype(np.float32, copy=False),
        start=np.concatenate(places),
        row_names=tuple(sensor.feature_names),
        length=length,
    )
