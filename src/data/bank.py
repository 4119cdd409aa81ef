"""The trace bank: windows of traffic, each with what the sensors said of it, read by the environment along the capture.

Mitigation acts behind the sensor, so a window's reading never depends on the defender: it is computed once, in large
batches, and stored beside the window. numpy and memory maps only.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.artifacts import new_artifact, open_artifact
from src.errors import UserError

SPLITS = ("calibrate", "agent", "test")
"""Sides that a bank holds; `fit` is left out because sensors were fitted on it."""

FEATURE_BOUND = 5.0
"""Scaled features lie in [-FEATURE_BOUND, FEATURE_BOUND]."""

_ARRAYS = ("features", "sensors", "successor", "label", "split")
_RAW_ARRAYS = ("rows", "start")
"""Arrays of a bank that was built with the rows behind its windows."""
BUNDLED = Path(__file__).parent / "assets" / "bundled_bank.npz"


@dataclass(frozen=True)
class TraceBank:
    """W windows, sorted by split and label; within these, in capture order."""

    features: NDArray[np.float32]
    """(W, F) window means of the scaled features, in [-5, 5]."""
    sensors: NDArray[np.float32]
    """(W, S) readings in [0, 1]; columns follow `sensor_names`."""
    successor: NDArray[np.int32]
    """(W,) the window that follows in the same capture and split, or -1."""
    label: NDArray[np.int16]
    """(W,) index into `class_names`."""
    split: NDArray[np.int8]
    """(W,) index into `SPLITS`."""
    feature_names: tuple[str, ...]
    sensor_names: tuple[str, ...]
    class_names: tuple[str, ...]
    class_families: tuple[str, ...]
    """Family of each class."""
    source: str
    """`real` or `synthetic profile`."""
    site: str
    """Where the traffic comes from, e.g. `CICIoT2023`."""
    sensor: str
    """Which model made the readings."""
    assembled: tuple[str, ...]
    """Classes whose rows are not in capture order."""
    evasive: NDArray[np.float32] | None = None
    """(W,) what evading attackers go by, where that is not the bank's own `risk`: theirs, before the readings were exchanged. Never saved."""
    rows: NDArray[np.float32] | None = None
    """(R, F_raw) raw, unscaled rows: what the sensor read, each row once, since windows overlap; None in a bank without them."""
    start: NDArray[np.int64] | None = None
    """(W,) first row of each window in `rows`; None in a bank without them."""
    row_names: tuple[str, ...] = ()
    """Columns of `rows`, in the sensor's order."""
    length: int = 0
    """Rows in a window; 0 in a bank without them."""

    def __post_init__(self) -> None:
        """Check shapes, ranges and order.

        Raises:
            UserError: naming the first array that does not fit.
        """
        count = len(self.features)
        checks = {
            "features": self.features.shape == (count, len(self.feature_names)) and count > 0,
            "sensors": self.sensors.shape == (count, len(self.sensor_names)),
            "successor": self.successor.shape == (count,) and bool(((self.successor >= -1) & (self.successor < count)).all()),
            "label": self.label.shape == (count,) and bool(((self.label >= 0) & (self.label < len(self.class_names))).all()),
            "sensor_names": tuple(self.sensor_names[-3:]) == ("risk", "uncertainty", "anomaly")
            and all(n.startswith("probability:") for n in self.sensor_names[:-3]),
            "class_families": len(self.class_families) == len(self.class_names),
            "split": self.split.shape == (count,) and bool(((self.split >= 0) & (self.split < len(SPLITS))).all()),
        }
        for name, fits in checks.items():
            if not fits:
                raise UserError(f"trace bank: array '{name}' has the wrong shape or an index out of range; build the bank again")
        if not _within(self.features, -FEATURE_BOUND, FEATURE_BOUND):
            raise UserError(f"trace bank: features must be finite and within +-{FEATURE_BOUND:g}; build the bank again")
        if not _within(self.sensors, 0, 1):
            raise UserError("trace bank: sensor readings must be finite and within [0, 1]; build the bank again")
        self._check_rows(count)
        order = self.split.astype(np.int32) * len(self.class_names) + self.label
        if (order[1:] < order[:-1]).any():
            raise UserError("trace bank: windows must be sorted by split and label; build the bank again")
        linked = self.successor >= 0
        if (order[self.successor[linked]] != order[linked]).any():
            raise UserError("trace bank: a successor lies in another split or class; build the bank again")

    def _check_rows(self, count: int) -> None:
        if self.rows is None or self.start is None:
            if not (self.rows is None and self.start is None and self.row_names == () and self.length == 0):
                raise UserError("trace bank: 'rows', 'start', 'row_names' and 'length' go together, all or none; build the bank again")
            return
        if not (self.rows.dtype == np.float32 and self.rows.ndim == 2 and self.rows.shape[1] == len(self.row_names) and self.length > 0):
            raise UserError("trace bank: array 'rows' has the wrong shape or type; build the bank again")
        if not (self.start.shape == (count,) and self.start.min() >= 0 and self.start.max() + self.length <= len(self.rows)):
            raise UserError("trace bank: array 'start' has the wrong shape or an index out of range; build the bank again")

    def ranges(self, split: str) -> NDArray[np.int64]:
        """(classes, 2): first and one-past-last window of each class in `split`; empty where the class has none."""
        if split not in SPLITS:
            raise UserError(f"unknown split '{split}': allowed: {', '.join(SPLITS)}")
        order = self.split.astype(np.int64) * len(self.class_names) + self.label
        keys = SPLITS.index(split) * len(self.class_names) + np.arange(len(self.class_names))
        return np.stack([np.searchsorted(order, keys, "left"), np.searchsorted(order, keys, "right")], axis=1)

    def select_features(self, names: list[str] | tuple[str, ...]) -> NDArray[np.float32]:
        """(W, len(names)) the named feature columns, contiguous.

        Raises:
            UserError: for a name that the bank does not hold.
        """
        missing = [name for name in names if name not in self.feature_names]
        if missing:
            raise UserError(f"the trace bank has no feature '{missing[0]}': it holds {', '.join(self.feature_names)}")
        return np.ascontiguousarray(self.features[:, [self.feature_names.index(name) for name in names]])

    def raw_windows(self, index: NDArray[np.integer]) -> NDArray[np.float32]:
        """(n, length, F_raw) the windows `index` (n,) as the sensor read them: reading these again gives `sensors[index]`.

        Raises:
            UserError: when the bank holds no rows.
        """
        if self.rows is None or self.start is None:
            raise UserError("the trace bank holds no raw rows, which sensors need to read live: build it again from data (--phase lstm)")
        return np.asarray(self.rows[self.start[index][:, None] + np.arange(self.length)])

    def with_sensors(self, sensors: NDArray[np.float32]) -> TraceBank:
        """The same windows with other readings, for noise controls; attackers evade by the former ones. Raw rows are left out: reading them would undo it."""
        evasive = self.evasive if self.evasive is not None else np.array(self.sensors[:, self.sensor_names.index("risk")])
        return dataclasses.replace(self._without_rows(), sensors=np.ascontiguousarray(sensors, dtype=np.float32), evasive=evasive)

    def _without_rows(self) -> TraceBank:
        return dataclasses.replace(self, rows=None, start=None, row_names=(), length=0)

    def _words(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in (*_ARRAYS, *_RAW_ARRAYS, "evasive")}

    def save(self, folder: Path, meta: dict[str, Any]) -> None:
        """Write the bank as an artifact folder of `.npy` files, atomically."""
        with new_artifact(folder, "trace-bank", {**meta, "bank": self._words()}) as target:
            for name in _ARRAYS if self.rows is None else (*_ARRAYS, *_RAW_ARRAYS):
                np.save(target / f"{name}.npy", np.ascontiguousarray(getattr(self, name)), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> TraceBank:
        """Open a saved bank, memory-mapped.

        Raises:
            UserError: when the folder is missing, is no bank, or was altered.
        """
        words = open_artifact(folder, "trace-bank")["bank"]
        names = (*_ARRAYS, *_RAW_ARRAYS) if words.get("row_names") else _ARRAYS
        arrays: dict[str, Any] = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
        fixed: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in words.items()}
        return cls(**arrays, **fixed)

    def bundle(self, path: Path = BUNDLED) -> None:
        """Write the bank as one small compressed file, to ship with the code; raw rows stay behind."""
        words = {key: np.array(value) for key, value in self._without_rows()._words().items()}
        small = {name: getattr(self, name) for name in _ARRAYS}
        small |= {"features": self.features.astype(np.float16), "sensors": self.sensors.astype(np.float16)}
        np.savez_compressed(path, allow_pickle=False, **{**small, **words})

    @classmethod
    def bundled(cls) -> TraceBank:
        """The bank that ships with the code: synthetic-profile windows with the readings of a sensor trained on such."""
        with np.load(BUNDLED, allow_pickle=False) as stored:
            fields = {name: stored[name] for name in stored.files}
        arrays: dict[str, Any] = {name: fields[name].astype(np.float32) if name in ("features", "sensors") else fields[name] for name in _ARRAYS}
        words: dict[str, Any] = {key: value.item() if value.ndim == 0 else tuple(value.tolist()) for key, value in fields.items() if key not in _ARRAYS}
        return cls(**arrays, **words)


def _within(values: NDArray[np.float32], low: float, high: float) -> bool:
    """Whether all values lie there; NaN does not, and passes through both extremes."""
    return bool(values.min(initial=high) >= low and values.max(initial=low) <= high)
