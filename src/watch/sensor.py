"""A trained sensor with what it takes to judge one site's traffic: what is usual there, and above which risk a window is flagged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.artifacts import open_artifact
from src.data.bank import TraceBank
from src.data.taxonomy import FAMILIES
from src.data.transplant import AT, Rows
from src.errors import UserError
from src.models.explanations import BenignReference, Explanation, explain
from src.models.lstm_attack_predictor import KIND
from src.models.predictor_interface import EnhancedAttackPredictor
from src.training.adaptation import threshold_for

AT_HOME = 0.1
"""Share of ordinary windows at home that may be flagged where a sensor was not calibrated to the site."""
MOST = 2_000
"""Windows that what is usual is told from, at most."""
READ = 200
"""Windows of each class of home that a calibrated sensor reads anew."""
POINTS = 101
"""Quantiles that are kept of each feature's means."""
HOME = "home"


@dataclass(frozen=True)
class SiteSensor:
    """Reads windows of a site; nothing in it changes."""

    sensor: EnhancedAttackPredictor
    reference: BenignReference
    """Ordinary windows, which explanations start from."""
    largest_rate: float
    """What an infinite `Rate` is read as, packets a second."""
    alarm: float
    """Largest risk that is not flagged."""
    site: str
    """`home` for a sensor as it was trained, or what it was calibrated to."""
    ordinary: NDArray[np.float32]
    """(N, 11) what it reads of the site's ordinary windows that nothing was learned from; none of a sensor as it was trained."""

    @property
    def length(self) -> int:
        """Rows in a window."""
        return self.sensor.sequence_length

    def finite(self, rows: NDArray[np.floating]) -> Rows:
        """Rows (..., 39) as the sensor reads them: no infinite rate, and no spread of a single frame."""
        found = np.array(rows, np.float32)
        rate = found[..., AT["Rate"]]
        rate[np.isinf(rate)] = self.largest_rate
        for name in ("Std", "Variance"):
            found[..., AT[name]] = np.nan_to_num(found[..., AT[name]])
        return found

    def risk(self, windows: Rows) -> NDArray[np.float64]:
        """(N,) of raw windows (N, T, 39)."""
        return self.sensor.read(windows).risk.astype(np.float64)

    def flagged(self, windows: Rows) -> NDArray[np.bool_]:
        """(N,) whether raw windows (N, T, 39) are flagged."""
        return self.risk(windows) > self.alarm

    def explain(self, windows: Rows) -> list[Explanation]:
        """What drove the base LSTM's verdict on raw windows (N, T, 39), by integrated gradients from what is usual here."""
        return explain(self.sensor.model, windows, self.reference, self.sensor.feature_names, self.sensor.class_names, steps=16)

    def readings(self, bank: TraceBank, side: str) -> TraceBank:
        """A bank of home as this sensor reads it, on one side: ordinary windows read as the site's own do, attacks as they came; the rest is as it was.

        What readings say of an attack is learned from this: a sensor that was taken to a site no longer reads as it did at home.
        """
        if len(self.ordinary) == 0:
            return bank
        sensors = np.array(bank.sensors)
        for (first, end), family in zip(bank.ranges(side), bank.class_families, strict=True):
            if end == first:
                continue
            count = min(end - first, READ)
            read = self.ordinary
            if family != FAMILIES[0]:
                read = self.sensor.read(bank.raw_windows(np.linspace(first, end - 1, count).astype(np.int64))).table()
            sensors[first:end] = read[np.arange(end - first) * len(read) // (end - first)]
        return bank.with_sensors(sensors)

    def save(self, folder: Path, meta: Mapping[str, Any]) -> None:
        """Write a calibrated sensor as an artifact folder, atomically; `EnhancedAttackPredictor.load` opens it too.

        Raises:
            UserError: when the folder cannot be written.
        """
        shares = np.linspace(0, 1, POINTS)
        stated = {
            "name": self.site, "alarm": self.alarm, "largest_rate": self.largest_rate, "baseline": self.reference.baseline.tolist(),
            "means": np.quantile(self.reference.means, shares, axis=0).tolist(), "band": self.reference.band.tolist(), "ordinary": self.ordinary.tolist(),
        }  # fmt: skip
        self.sensor.save(folder, {**meta, "calibrated_to": stated})

    @classmethod
    def load(cls, folder: Path) -> SiteSensor:
        """Open a calibrated sensor, or one as it was trained, with the trace bank that lies beside it.

        Raises:
            UserError: when the folder is missing or altered, or holds a sensor in other features than CICIoT2023's 39.
        """
        sensor, stated = EnhancedAttackPredictor.load(folder), open_artifact(folder, KIND).get("calibrated_to")
        if sensor.feature_names != tuple(AT):
            raise UserError(f"sensor '{folder}' reads {len(sensor.feature_names)} features, and packets are watched in CICIoT2023's {len(AT)} newer ones")
        if stated is None:
            return cls.at_home(sensor, home_bank(folder))
        reference = BenignReference(np.array(stated["baseline"], np.float32), np.array(stated["means"]), np.array(stated["band"]))
        return cls(sensor, reference, float(stated["largest_rate"]), float(stated["alarm"]), str(stated["name"]), np.array(stated["ordinary"], np.float32))

    @classmethod
    def at_home(cls, sensor: EnhancedAttackPredictor, bank: TraceBank) -> SiteSensor:
        """A sensor as it was trained: usual is what is ordinary in its own data set."""
        windows = home_windows(bank, "calibrate")[0]
        rates = np.asarray(bank.rows)[:, AT["Rate"]]
        alarm = threshold_for([sensor.read(windows).risk.astype(np.float64)], AT_HOME)
        return cls(sensor, BenignReference.fit(windows), float(rates.max()), alarm, HOME, np.empty((0, len(bank.sensor_names)), np.float32))


def home_bank(folder: Path) -> TraceBank:
    """The trace bank beside a trained sensor.

    Raises:
        UserError: when there is none, or it holds no raw rows.
    """
    place = folder.resolve().parent / "bank"
    if not place.is_dir():
        raise UserError(f"sensor '{folder}' has no trace bank beside it ('{place}'), which tells what is usual; train with `python main.py --phase lstm`")
    bank = TraceBank.load(place)
    if bank.rows is None or bank.row_names != tuple(AT):
        raise UserError(f"trace bank '{place}' holds no rows of CICIoT2023's {len(AT)} newer features; train on that release (data.root)")
    return bank


def home_windows(bank: TraceBank, side: str, attacks: bool = False) -> tuple[Rows, NDArray[np.int64]]:
    """(N, T, 39) raw windows of a side of home, and their classes (N,); ordinary ones or attacks, evenly chosen where there are more than `MOST` a class."""
    chosen: list[NDArray[np.int64]] = []
    for (first, end), family in zip(bank.ranges(side), bank.class_families, strict=True):
        if (family != FAMILIES[0]) == attacks and end > first:
            chosen.append(np.linspace(first, end - 1, min(end - first, MOST)).astype(np.int64))
    if not chosen:
        raise UserError(f"the trace bank holds no {'attack' if attacks else 'benign window'} in '{side}'")
    index = np.concatenate(chosen)
    return bank.raw_windows(index), bank.label[index].astype(np.int64)
