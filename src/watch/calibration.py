"""A sensor taken to a site by an hour of the site's own traffic: no label, no attack.

1. The scaling of every network is moved: what is ordinary at the site then reads as what is ordinary at home does (means and deviations of
   the logarithms).
2. Temperatures are those at which the site's windows, taken to be ordinary, and windows of home are likeliest together.
3. The anomaly score's quantiles, and what disagreement of the networks is usual, are taken from the site.
4. What readings say of an attack, which the agent's belief goes by, is learned again: from attacks of home as the sensor now reads them, and
   from its readings of the site's ordinary windows (`SiteSensor.readings`).
5. A window is flagged whose risk is above what all but a chosen share of the site's windows that nothing was learned from reach.

In place of 1 and 2 both LSTMs can be trained further (`src.training.adaptation`), which needs the data set of home.

A site's traffic is taken to be ordinary: an attack in it is learned as such. And a calibration that only learns to tell the sites apart looks
perfect where it was made. So its figures come four together (`figures`): windows of the site's held-out traffic that are flagged, attacks of
home that are, ordinary windows of home that are (the shortcut control), and those of an infected device elsewhere, where a capture of one is given.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.config import TemporalTrainingConfig
from src.data.bank import TraceBank
from src.data.ciciot2023 import Capture
from src.data.dataset import Dataset
from src.data.transplant import Rows, capture_windows, divide_captures, finite_rates
from src.errors import UserError
from src.models.explanations import BenignReference
from src.models.fusion import disagreement
from src.models.lstm_attack_predictor import RealDataLSTMPredictor, Scaler
from src.models.lstm_sae import AnomalyDetector
from src.models.predictor_interface import EnhancedAttackPredictor, Second, temporal_draws
from src.models.subspace import BenignSubspace
from src.models.temperature import fit_temperature
from src.models.temporal_lstm import AdvancedLSTMTemporal
from src.training.adaptation import AdaptationSettings, adapt, threshold_for
from src.watch.sensor import HOME, MOST, SiteSensor, home_windows

FALSE_ALARMS = 0.08
"""Share of the site's windows that may be flagged, where nothing else is asked: below a tenth, because later traffic is not quite like it."""
LEARNED = 0.6
"""Share of each device's traffic, the earliest, that scaling is moved by; the rest sets temperatures, quantiles and threshold."""
LEAST_DEVIATION = 1e-3
"""Of a logarithm: a column that never changes is told no more finely."""
LEAST_DISAGREEMENT = 0.01
"""Nats, as where the sensor was joined."""
KEPT = 500
"""Readings of ordinary windows that a calibrated sensor keeps, about."""
ADAPTATION = TemporalTrainingConfig(epochs=3, batch_size=256, class_weights="none", learning_rate=2e-3)
"""Of the further training, as its study had it (`benchmarks/part_site.py`)."""


@dataclass(frozen=True)
class Ordinary:
    """Windows (N, T, 39) of a site's ordinary traffic: learned from, and held back."""

    learned: Rows
    held: Rows

    @classmethod
    def of(cls, home: SiteSensor, captures: Sequence[Capture]) -> Ordinary:
        """Cut each device's traffic in time.

        Raises:
            UserError: when there are too few rows.
        """
        early, late = divide_captures(finite_rates(captures, home.largest_rate), LEARNED)
        return cls(*(_evenly(capture_windows(part, home.length)[0]) for part in (early, late)))


def _evenly(windows: Rows) -> Rows:
    return windows[np.linspace(0, len(windows) - 1, min(len(windows), MOST)).astype(np.int64)]


def calibrate(home: SiteSensor, bank: TraceBank, captures: Sequence[Capture], false_alarms: float = FALSE_ALARMS) -> SiteSensor:
    """Take a sensor to a site by scaling, temperatures and quantiles.

    Args:
        home: the sensor as it was trained.
        bank: of its own data set.
        captures: ordinary traffic of the site, each device's in time order.
        false_alarms: share of windows that may be flagged.

    Raises:
        UserError: for a sensor that was calibrated before, or traffic that is too short.
    """
    _check(home)
    ordinary, at_home = Ordinary.of(home, captures), home_windows(bank, "calibrate")[0]
    base, second = copy.deepcopy(home.sensor.model), home.sensor.second
    temporal = None if second is None else copy.deepcopy(second.model)
    parts = [home_windows(bank, "calibrate", attacks) for attacks in (False, True)]
    known = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    benign = int(parts[0][1][0])
    usual = [_statistics(rows.reshape(-1, rows.shape[-1])) for rows in (at_home, ordinary.learned)]
    for network in (base, temporal):
        if network is not None:
            _move(network.scaler, *usual)
            before = home.sensor.model if second is None or network is base else second.model
            _set_temperature(network, before, ordinary.held, *known, benign)
    detector = _detector(home.sensor, base, usual, ordinary)
    return _joined(home, base, temporal, detector, ordinary, false_alarms)


def adapted(home: SiteSensor, dataset: Dataset, captures: Sequence[Capture], false_alarms: float = FALSE_ALARMS, seed: int = 0) -> SiteSensor:
    """Take a sensor to a site by training both its LSTMs further (a few minutes).

    Args:
        home: the sensor as it was trained.
        dataset: that it was trained on.
        captures: as for `calibrate`.
        false_alarms: share of windows that may be flagged.
        seed: of what is drawn.

    Raises:
        UserError: as `calibrate` and `src.training.adaptation.adapt`.
    """
    _check(home)
    ordinary, sensor = Ordinary.of(home, captures), home.sensor
    settings = AdaptationSettings(false_alarms=false_alarms)
    found = adapt(sensor.model, dataset, captures, settings, ADAPTATION, seed=seed)
    temporal = None if sensor.second is None else adapt(sensor.second.model, dataset, captures, settings, ADAPTATION, seed=seed).model
    assert isinstance(found.model, RealDataLSTMPredictor)
    assert temporal is None or isinstance(temporal, AdvancedLSTMTemporal)
    return _joined(home, found.model, temporal, found.subspace, ordinary, false_alarms)


def _check(home: SiteSensor) -> None:
    if home.site != HOME:
        raise UserError(f"this sensor was calibrated before, to {home.site}; calibrate the one that was trained")


def _joined(
    home: SiteSensor, base: RealDataLSTMPredictor, temporal: AdvancedLSTMTemporal | None, detector: AnomalyDetector | BenignSubspace, ordinary: Ordinary,
    false_alarms: float,
) -> SiteSensor:  # fmt: skip
    second = home.sensor.second
    if second is not None and temporal is not None:
        with torch.inference_mode():
            held = torch.from_numpy(ordinary.held)
            apart = disagreement([base.predict_attack_probability(held)[None], temporal_draws(temporal, held)])
        second = Second(temporal, second.fusion, max(float(apart.mean()), LEAST_DISAGREEMENT))
    sensor = EnhancedAttackPredictor(base, detector, home.sensor.feature_names, home.sensor.class_names, second)
    read = sensor.read(ordinary.held)
    alarm = threshold_for([read.risk.astype(np.float64)], false_alarms)
    reference = BenignReference.fit(np.concatenate([ordinary.learned, ordinary.held]))
    return SiteSensor(sensor, reference, home.largest_rate, alarm, "site", read.table()[:: max(1, len(ordinary.held) // KEPT)])


def _statistics(rows: Rows) -> tuple[Tensor, Tensor]:
    """Mean and deviation (39,) of the signed logarithms of rows (N, 39)."""
    values = torch.from_numpy(rows.astype(np.float64))
    logarithm = torch.sign(values) * torch.log1p(values.abs())
    return logarithm.mean(dim=0), logarithm.std(dim=0, correction=0).clamp(min=LEAST_DEVIATION)


def _move(scaler: Scaler, home: tuple[Tensor, Tensor], site: tuple[Tensor, Tensor]) -> None:
    """Let rows with the site's mean and deviation read as rows with home's did."""
    ratio = site[1] / home[1]
    centre = site[0] - (home[0] - scaler.centre.double()) * ratio
    scaler.centre.copy_(centre)
    scaler.inverse.copy_(scaler.inverse.double() / ratio)


def _logits(network: RealDataLSTMPredictor | AdvancedLSTMTemporal, windows: Rows) -> Tensor:
    """(S, N, C) logits before temperature, of each draw; a base LSTM draws nothing and is one."""
    with torch.inference_mode():
        parts = torch.from_numpy(windows).split(1024)
        found = [network(part)[None] if isinstance(network, RealDataLSTMPredictor) else network.sample_logits(part) for part in parts]
    return torch.cat(found, dim=1).double()


def _set_temperature(
    network: RealDataLSTMPredictor | AdvancedLSTMTemporal,
    before: RealDataLSTMPredictor | AdvancedLSTMTemporal,
    ordinary: Rows,
    windows: Rows,
    labels: NDArray[np.int64],
    benign: int,
) -> None:
    """The temperature at which windows of home (N, T, 39), read by the network as it was, and ordinary ones of the site, M, are likeliest."""
    count = min(len(ordinary), len(windows))
    site, home = (np.linspace(0, size - 1, count).astype(np.int64) for size in (len(ordinary), len(windows)))
    logits = torch.cat([_logits(network, ordinary[site]), _logits(before, windows[home])], dim=1)
    truth = torch.from_numpy(np.concatenate([np.full(count, benign), labels[home]]))
    network.temperature.fill_(fit_temperature(logits, truth))


def _detector(
    sensor: EnhancedAttackPredictor, base: RealDataLSTMPredictor, usual: Sequence[tuple[Tensor, Tensor]], ordinary: Ordinary
) -> AnomalyDetector | BenignSubspace:
    """The anomaly score with the site's scaling, centre and quantiles."""
    if isinstance(sensor.detector, AnomalyDetector):
        model = copy.deepcopy(sensor.detector.model)
        _move(model.scaler, *usual)  # type: ignore[arg-type]
        return AnomalyDetector.fit(model, ordinary.learned, ordinary.held)
    return BenignSubspace.fit(base.scaler, torch.from_numpy(ordinary.learned), torch.from_numpy(ordinary.held))


def figures(sensor: SiteSensor, bank: TraceBank, held: Rows, infected: Rows | None = None) -> dict[str, float]:
    """The four numbers of a sensor, shares of windows flagged.

    Args:
        sensor: as it is.
        bank: of home; side `test` is read.
        held: (N, T, 39) of the site's ordinary traffic, of which it saw none.
        infected: (M, T, 39) of an infected device elsewhere.
    """
    attacks, label = home_windows(bank, "test", attacks=True)
    alarms = sensor.flagged(attacks)
    found = {
        "site flagged": float(sensor.flagged(held).mean()),
        "attacks of home flagged": float(np.mean([alarms[label == one].mean() for one in np.unique(label)])),
        "ordinary windows of home flagged": float(sensor.flagged(home_windows(bank, "test")[0]).mean()),
    }
    return found if infected is None else {**found, "infected device flagged": float(sensor.flagged(infected).mean())}


def raised(home: SiteSensor, captures: Sequence[Capture], false_alarms: float = FALSE_ALARMS) -> SiteSensor:
    """The sensor as it was trained, with the site's threshold: what calibration is to be compared with."""
    _check(home)
    alarm = threshold_for([home.risk(Ordinary.of(home, captures).held)], false_alarms)
    return replace(home, alarm=alarm, site="site, by its threshold alone")


def windows(sensor: SiteSensor, captures: Sequence[Capture], stride: int = 1) -> tuple[Rows, NDArray[np.int64]]:
    """(N, T, 39) of captures, and the index (N,) of the capture of each."""
    return capture_windows(finite_rates(captures, sensor.largest_rate), sensor.length, stride)
