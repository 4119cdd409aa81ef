"""E3: whether the autoencoder's alarms keep to their target on ordinary traffic: 31 real devices of IoT Sentinel, nothing but benign.

Captures, not windows, are what is new each time, so captures are divided: half of each device's to train on, the others between calibration
and held-out, many times. A window alarms where its conformal p-value is at most the target. A share is that of all held-out windows over all
divisions; its interval is over captures (bootstrap), the alarms of each taken as their mean over the divisions that held it out.

Devices that nothing was trained on are shown apart, each in turn, by folds of devices: with p-values among the known devices' captures; among
all other devices, scored by networks that were not trained on them, pooled; among these, each device of the same weight; and the same with the
device itself counted among them, which keeps the mean over devices at or below the target (Dunn, Wasserman and Ramdas 2022, JASA), up to the
networks of several folds.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.anomaly_trials import LENGTH, train_detector
from benchmarks.common import Gate, PartOptions
from src.data.site import read_site
from src.data.transplant import AT, capture_windows, finite_rates
from src.evaluation.statistics import interval
from src.models.lstm_sae import AnomalyDetector
from src.training.anomaly_peers import Windows

TARGETS = (0.01, 0.05, 0.1)
SLACK = 0.25
"""Share of the target by which what is realised may miss it."""
CHECK = 0.2
"""Share of training windows' captures that the validation loss is of."""
EPOCHS = 12
"""Of each training at most: whether alarms keep to their target does not hang on how well the network rebuilds."""
FOLDS = 3
"""Of devices, and trainings on halves of captures."""

Values = NDArray[np.float64]
Table = list[dict[str, Any]]


class Site:
    """Windows of every capture of every device."""

    def __init__(self, options: PartOptions) -> None:
        """Read the site.

        Raises:
            UserError: when it is missing.
        """
        captures = read_site(options.shared / "ciciot39" / "iot_sentinel", Counter())
        largest = max(float(rates[np.isfinite(rates)].max(initial=0)) for rates in (capture.features[:, AT["Rate"]] for capture in captures))
        captures = finite_rates(captures, largest)
        self.windows, self.capture = capture_windows(captures, LENGTH)
        """(N, T, F) raw, and (N,) the capture of each."""
        names = [capture.domain for capture in captures]
        self.devices = tuple(dict.fromkeys(names))
        self.device_of = np.array([self.devices.index(name) for name in names])
        """(C,) device of each capture; captures of a device stand in time order."""

    @property
    def device(self) -> NDArray[np.int64]:
        """(N,) device of each window."""
        return self.device_of[self.capture]

    def halves(self, rng: np.random.Generator, among: NDArray[np.bool_], share: float = 0.5) -> NDArray[np.bool_]:
        """(C,) which of the captures `among` (C,) are drawn: of each device this share, rounded at random."""
        drawn = np.zeros(len(self.device_of), dtype=bool)
        for device in range(len(self.devices)):
            mine = rng.permutation(np.flatnonzero(among & (self.device_of == device)))
            drawn[mine[: int(share * len(mine) + rng.random())]] = True
        return drawn

    def train(self, captures: NDArray[np.bool_], seed: int, epochs: int) -> AnomalyDetector:
        """A detector trained on the windows of captures (C,)."""
        check = self.halves(np.random.default_rng([seed, 1]), captures, CHECK)
        return train_detector(self.of(captures & ~check), self.of(check), self.of(check), seed, epochs)

    def of(self, captures: NDArray[np.bool_]) -> Windows:
        """Windows of captures (C,)."""
        return self.windows[captures[self.capture]]


def p_values(reference: Values, score: Values, weight: Values | None = None, own: float = 1.0) -> Values:
    """(N,) share of the weight of reference scores (M,) that are at least as large as each score (N,), which counts itself with a weight of its own.

    Args:
        reference: scores that are known.
        score: scores that are asked for.
        weight: (M,) of the former; None is 1 each.
        own: weight of a score itself.
    """
    order = np.argsort(reference)
    held = np.ones(len(reference)) if weight is None else weight
    above = np.append(np.cumsum(held[order][::-1])[::-1], 0.0)  # weight of each and all larger ones
    return (own + above[np.searchsorted(reference[order], score, "left")]) / (own + held.sum())


def resampled(hits: Values, counts: Values, resamples: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """Share of hits (G,) among counts (G,), and its interval over groups."""
    drawn = rng.multinomial(len(hits), np.full(len(hits), 1 / len(hits)), size=resamples).astype(np.float64)  # (R, G)
    low, high = interval((drawn @ hits) / (drawn @ counts), 0.95)
    return float(hits.sum() / counts.sum()), low, high


def known_devices(site: Site, seeds: int, divisions: int, resamples: int, epochs: int) -> tuple[Gate, Table]:
    """Captures that were not calibrated on, of devices that were trained on: divided at random, and by time."""
    rng, everything = np.random.default_rng(0), np.ones(len(site.device_of), dtype=bool)
    size = np.bincount(site.capture, minlength=len(everything)).astype(np.float64)
    hits, held = np.zeros((len(TARGETS), len(size))), np.zeros(len(size))
    spread: list[list[float]] = [[] for _ in TARGETS]
    for seed in range(seeds):
        trained = site.halves(rng, everything)
        detector = site.train(trained, seed, epochs)
        score = detector.score(site.windows)
        for _ in range(divisions):
            calibrate = site.halves(rng, ~trained)
            out = ~trained & ~calibrate
            held += out
            p = p_values(score[calibrate[site.capture]], score)
            for index, target in enumerate(TARGETS):
                flagged = (p <= target) & out[site.capture]
                hits[index] += np.bincount(site.capture, weights=flagged, minlength=len(size))
                spread[index].append(float(flagged.sum() / size[out].sum()))
    table, seen = [], held > 0
    for index, target in enumerate(TARGETS):
        share, low, high = resampled(hits[index][seen] / held[seen], size[seen], resamples, rng)
        found = {"share": share, "low": low, "high": high, "share / target": share / target}
        one = np.quantile(spread[index], [0.05, 0.95])
        table.append({"division": "at random", "target": target, **found, "one division, 5 %": float(one[0]), "one division, 95 %": float(one[1])})
    place = np.array([(site.device_of[:index] == device).sum() / (site.device_of == device).sum() for index, device in enumerate(site.device_of)])
    calibrate, out = (place >= 0.5) & (place < 0.75), place >= 0.75
    scores = [site.train(place < 0.5, seed, epochs).score(site.windows) for seed in range(seeds)]
    ranks = [p_values(score[calibrate[site.capture]], score) for score in scores]
    for target in TARGETS:
        flagged = np.mean([p <= target for p in ranks], axis=0)
        counted = np.bincount(site.capture, weights=flagged, minlength=len(size)).astype(np.float64)
        share, low, high = resampled(counted[out], size[out], resamples, rng)
        found = {"share": share, "low": low, "high": high, "share / target": share / target}
        table.append({"division": "by time", "target": target, **found, "one division, 5 %": None, "one division, 95 %": None})
    worst = max((row for row in table if row["division"] == "at random"), key=lambda row: abs(row["share / target"] - 1))
    value, *ends = (abs(worst[key] / worst["target"] - 1) for key in ("share", "low", "high"))
    low = 0.0 if worst["low"] <= worst["target"] <= worst["high"] else min(ends)
    what = f"|realised / target - 1| of false alarms on captures that were not calibrated on, worst of {len(TARGETS)} targets ({worst['target']:g})"
    return Gate(what, value, SLACK, "<=", low, max(ends)), table


def new_devices(site: Site, seeds: int, resamples: int, epochs: int) -> Table:
    """Devices that nothing was trained on."""
    rng = np.random.default_rng(1)
    count, device = len(site.devices), site.device
    sizes = np.bincount(device, minlength=count).astype(np.float64)
    ways = ("known devices' captures", "other devices, pooled", "other devices, each the same", "other devices, each the same, and itself")
    shares = {way: np.zeros((len(TARGETS), count)) for way in ways}
    for seed in range(seeds):
        fold = rng.permutation(count) % FOLDS
        score, known = np.empty(len(device)), {}
        for one in range(FOLDS):
            mine = (fold != one)[site.device_of]
            trained = site.halves(rng, mine)
            found = site.train(trained, seed, epochs).score(site.windows)
            score[(fold == one)[device]] = found[(fold == one)[device]]
            known[one] = found[(mine & ~trained)[site.capture]]
        for new in range(count):
            others, asked = device != new, score[device == new]
            weight = 1 / sizes[device[others]]
            told = [p_values(known[int(fold[new])], asked), p_values(score[others], asked)]
            told += [p_values(score[others], asked, weight, own) for own in (0.0, 1.0)]
            for held, p in zip(shares.values(), told, strict=True):
                held[:, new] += [(p <= target).mean() / seeds for target in TARGETS]
    table = []
    for way, held in shares.items():
        for index, target in enumerate(TARGETS):
            share, low, high = resampled(held[index], np.ones(count), resamples, rng)
            over = float((held[index] > target).mean())
            row = {"calibrated on": way, "target": target, "mean over devices": share, "low": low, "high": high, "share / target": share / target}
            table.append({**row, "of all windows": float((held[index] * sizes).sum() / sizes.sum()), "devices above target": over})
    return table


def measure(options: PartOptions) -> tuple[dict[str, Gate], dict[str, Table]]:
    """Gate `E3.false_alarms`; tables of known and of new devices."""
    seeds, divisions, resamples, epochs = (1, 20, 200, 1) if options.quick else (min(options.seeds, 3), 200, 2000, EPOCHS)
    site = Site(options)
    gate, known = known_devices(site, seeds, divisions, resamples, epochs)
    new = new_devices(site, 1 if options.quick else 2, resamples, epochs)
    return {"E3.false_alarms": gate}, {
        "false alarms on captures that were not calibrated on, of devices that were trained on": known,
        "false alarms of devices that nothing was trained on": new,
    }
