"""What alarms on windows are worth: measures of ranking, of windows and of events, with intervals over sessions.

Windows count as they are: no alarm is credited to the windows around it (that "point adjustment" makes random scores look good: Kim et al.
2022, AAAI). What belongs together is counted apart, as events: an event is a run of attack windows of one session, and is detected when any
of them raises an alarm. A window that is not known to be of an attack or not ends an event, and is in no measure of windows.

Intervals are 95 % percentile intervals of a bootstrap that draws whole sessions, those with and those without attack windows apart (for
alerts an hour all together), because windows of a session resemble one another; beside each stands how many sessions it was drawn from. A
measure that the data do not determine is null, with the reason beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.errors import UserError
from src.evaluation.detection import Blocks, Bootstrap, Values
from src.evaluation.statistics import interval
from src.sae.layout import read_json

_CELLS = 4_000_000
"""Cells of a (resamples, windows) table held at once."""

Measure = dict[str, Any]
"""`value`, `low` and `high`, `reason` where one of them is null that could be known, and beside an interval `sessions`, by what they hold."""


@dataclass(frozen=True)
class Marks:
    """What is known of N windows of a split, in the order of its arrays; windows of a session stand in time order."""

    attack: NDArray[np.int8]
    """(N,) 1 where any row is of an attack, 0 where none is, -1 unknown."""
    label: NDArray[np.int64]
    """(N,) index into `label_names`."""
    session: NDArray[np.int64]
    """(N,) file and host."""
    group: NDArray[np.int64]
    """(N,) index into `group_names`."""
    time: NDArray[np.int64]
    """(N,) milliseconds (UTC epoch) of the last row, -1 unknown."""
    label_names: tuple[str, ...]
    group_names: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path, split: str) -> Marks:
        """The marks of `train`, `val` or `test`, as stage 2 wrote them.

        Raises:
            UserError: when a file is missing or damaged, or they do not fit one another.
        """
        names = read_json(folder / "metadata.json", ("labels", "groups"))
        attack = read_array(folder / f"y_{split}.npy")
        others = {name: read_array(folder / f"{name}_{split}.npy") for name in ("label", "session", "group", "time")}
        for name, values in others.items():
            if values.shape != attack.shape:
                raise UserError(f"'{folder}': {name}_{split}.npy has shape {values.shape} and y_{split}.npy {attack.shape}; run stage 2 again")
        if not np.isin(attack, (-1, 0, 1)).all():
            raise UserError(f"'{folder}': y_{split}.npy holds {np.unique(attack)[:5].tolist()}; only -1, 0 and 1 are allowed")
        labels, groups = tuple(names["labels"]), tuple(names["groups"])
        for name, known in (("label", labels), ("group", groups)):
            if len(attack) and not 0 <= others[name].min() <= others[name].max() < len(known):
                raise UserError(f"'{folder}': {name}_{split}.npy points beyond the {len(known)} names of metadata.json; run stage 2 again")
        wide = {name: values.astype(np.int64) for name, values in others.items()}
        return cls(attack=attack.astype(np.int8), label_names=labels, group_names=groups, **wide)

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.attack)

    def take(self, index: NDArray[Any]) -> Marks:
        """The marks of some windows."""
        values = {name: getattr(self, name)[index] for name in ("attack", "label", "session", "group", "time")}
        return Marks(**values, label_names=self.label_names, group_names=self.group_names)


def read_array(path: Path) -> NDArray[Any]:
    """An array on disk, not read until it is used.

    Raises:
        UserError: when it is missing or damaged.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"'{path}' is missing; run the stage that writes it first") from error
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read as an array ({error.__class__.__name__}); run the stage that writes it again") from error


def runs(flag: NDArray[np.bool_], session: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First window and end (one beyond the last), (R,) each, of each run of flagged windows inside one session."""
    change = np.flatnonzero(np.diff(session) != 0) + 1
    step = np.diff(np.concatenate(([0], flag.astype(np.int8), [0])))
    cut = change[flag[change - 1] & flag[change]] if len(change) else change  # a run that would cross two sessions is two
    return np.sort(np.concatenate((np.flatnonzero(step == 1), cut))), np.sort(np.concatenate((np.flatnonzero(step == -1), cut)))


@dataclass(frozen=True)
class Incidents:
    """Events of windows sorted by session: runs of attack windows in one session."""

    first: NDArray[np.int64]
    """(E,) first window."""
    hit: NDArray[np.int64]
    """(E,) first window of the event that raises an alarm, -1 where none does."""

    @classmethod
    def find(cls, marks: Marks, alarm: NDArray[np.bool_]) -> Incidents:
        """Those of all windows (N,) of a split, known or not."""
        first, end = runs(marks.attack == 1, marks.session)
        raised = np.append(np.flatnonzero(alarm), len(alarm))
        hit = raised[np.searchsorted(raised, first)]
        return cls(first, np.where(hit < end, hit, -1))


def ranking(scores: NDArray[np.float64], attack: NDArray[np.bool_], sample: Bootstrap) -> tuple[Values, Values]:
    """Area under the ROC curve and average precision, (1 + R,) each: of the windows as they are, then of each resample.

    Ties count half in the first, and share one threshold in the second, as in scikit-learn. NaN where a class is missing.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # last window of each tie
    of, hit = sample.blocks.of[order], attack[order]
    area, precision = np.empty(len(sample.weights)), np.empty(len(sample.weights))
    step = max(1, _CELLS // len(order))
    for first in range(0, len(area), step):
        weight = sample.weights[first : first + step, of]  # (r, N)
        true = np.pad(np.cumsum(weight * hit, axis=1)[:, last], ((0, 0), (1, 0)))  # (r, K + 1) attack windows above each threshold
        both = np.pad(np.cumsum(weight, axis=1)[:, last], ((0, 0), (1, 0)))
        false = both - true
        with np.errstate(invalid="ignore", divide="ignore"):
            area[first : first + step] = np.trapezoid(true, false, axis=1) / (true[:, -1] * false[:, -1])
            gained = np.diff(true, axis=1) * np.nan_to_num(true[:, 1:] / both[:, 1:])
            precision[first : first + step] = gained.sum(axis=1) / true[:, -1]
    return area, precision


def judge(marks: Marks, scores: NDArray[np.float64], threshold: float, resamples: int, seed: int) -> dict[str, Any]:
    """All measures of a split.

    Args:
        marks: of N windows.
        scores: (N,), the higher, the more abnormal.
        threshold: a score above it is an alarm.
        resamples: draws of sessions behind each interval; with none there is no interval.
        seed: of the draws.
    """
    marks, scores = _by_session(marks, scores)
    return {
        "windows": {name: int((marks.attack == value).sum()) for name, value in (("benign", 0), ("attack", 1), ("unknown", -1))},
        "sessions": len(np.unique(marks.session)),
        "alarms": int((scores > threshold).sum()),
        **_measures(marks, scores, threshold, resamples, seed),
        "time": _over_time(marks, scores > threshold, resamples, seed),
        "by_group": _parts(marks, scores, threshold),
        "by_label": _labels(marks, scores, threshold),
    }


def rank(marks: Marks, values: NDArray[np.float64], resamples: int, seed: int) -> dict[str, Measure]:
    """`roc_auc` and `pr_auc` of any value (N,) of the windows, the higher the more abnormal, under the same draws of sessions as in `judge`."""
    marks, values = _by_session(marks, values)
    found = _measures(marks, values, math.inf, resamples, seed)
    return {name: found[name] for name in ("roc_auc", "pr_auc")}


def _by_session(marks: Marks, values: NDArray[np.float64]) -> tuple[Marks, NDArray[np.float64]]:
    """Windows of a session together, in the order they had."""
    order = np.argsort(marks.session, kind="stable")
    return marks.take(order), values[order]


def _draws(marks: Marks, resamples: int, seed: int, apart: bool = True) -> Bootstrap:
    """Draws of sessions, those with attack windows and those without apart or all together."""
    _, of = np.unique(marks.session, return_inverse=True)
    attacked = np.bincount(of, weights=marks.attack == 1) > 0
    return Bootstrap(Blocks(of, (attacked & apart).astype(np.int64)), resamples, seed)


def _measures(marks: Marks, scores: NDArray[np.float64], threshold: float, resamples: int, seed: int) -> dict[str, Any]:
    """Measures of windows sorted by session, with intervals. Those that are not known to be of an attack or not end events, no more."""
    known = marks.attack >= 0
    incidents = Incidents.find(marks, scores > threshold)
    first, seen = (np.cumsum(known) - 1)[incidents.first], incidents.hit >= 0  # an attack window is known
    marks, scores = marks.take(known), scores[known]
    attack, alarm = marks.attack == 1, scores > threshold
    found = {
        "prevalence": _value(float(attack.mean())) if len(marks) else _null("no window is known to be benign or of an attack"),
        "confusion": {
            "true_positives": int((attack & alarm).sum()),
            "false_positives": int((~attack & alarm).sum()),
            "false_negatives": int((attack & ~alarm).sum()),
            "true_negatives": int((~attack & ~alarm).sum()),
        },
        "events": {"happened": len(first), "detected": int(seen.sum())},
    }
    if not len(marks):
        return {**found, **dict.fromkeys(NEEDS, found["prevalence"]), "sessions_with": {"attack": 0, "benign": 0}}
    sample = _draws(marks, resamples, seed)
    sessions = {kind: np.bincount(sample.blocks.of, weights=mine) > 0 for kind, mine in (("attack", attack), ("benign", ~attack))}
    events = np.zeros((len(marks), 2))
    events[first] = np.column_stack((seen, np.ones(len(first))))  # each event stands at its first window
    counted = sample.sums(np.column_stack((attack & alarm, ~attack & alarm, attack, ~attack, events)))  # (1 + R, 6)
    true, false, attacks, benign, caught, happened = counted.T
    area, average = ranking(scores, attack, sample)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = {
            "roc_auc": area,
            "pr_auc": average,
            "precision": true / (true + false),
            "recall": true / attacks,
            "f1": 2 * true / (true + false + attacks),
            "fpr": false / benign,
            "event_recall": caught / happened,
        }
    measured = {name: _measure(drawn, {kind: int(sessions[kind].sum()) for kind in NEEDS[name]}, sample.confidence) for name, drawn in values.items()}
    return {**found, **measured, "sessions_with": {kind: int(mine.sum()) for kind, mine in sessions.items()}}


NEEDS = {
    "roc_auc": ("attack", "benign"),
    "pr_auc": ("attack", "benign"),
    "precision": ("attack", "benign"),
    "recall": ("attack",),
    "f1": ("attack", "benign"),
    "fpr": ("benign",),
    "event_recall": ("attack",),
}
"""Measures, and the kinds of windows without which each says nothing."""


def _null(reason: str) -> Measure:
    return {"value": None, "low": None, "high": None, "reason": reason}


def _value(value: float) -> Measure:
    return {"value": value, "low": None, "high": None}


def _measure(values: Values, sessions: Mapping[str, int], confidence: float) -> Measure:
    """A measure (1 + R,) that needs windows of each of these kinds, by the number of sessions that hold some."""
    for kind, count in sessions.items():
        if count == 0:
            return _null(f"no window is {'of an attack' if kind == 'attack' else kind}")
    if np.isnan(values[0]):
        return _null("no window raises an alarm")
    return _with_interval(values, sessions, confidence)


def _with_interval(values: Values, sessions: Mapping[str, int], confidence: float) -> Measure:
    """A value and its interval from (1 + R,): the value of the windows as they are, which is in no interval, and of R resamples."""
    point = float(values[0])
    for kind, count in sessions.items():
        if count < 2:
            return {**_value(point), "reason": f"one session holds all {kind} windows, and an interval needs two"}
    drawn = values[1:][np.isfinite(values[1:])]
    if not len(drawn):
        return {**_value(point), "reason": "no resample determines it" if len(values) > 1 else "no resample was drawn"}
    low, high = interval(drawn, confidence)
    return {"value": point, "low": low, "high": high, "sessions": dict(sessions)}


def _over_time(marks: Marks, alarm: NDArray[np.bool_], resamples: int, seed: int) -> dict[str, Any]:
    """Alerts an hour and detection delay of windows sorted by session, where times are known.

    An alert is a run of alarms in one session; one is counted where the time of its first window is known. The hours are those from the first
    to the last window of any session, counted once where sessions overlap: a session's idle gaps are in them, so on traffic with long gaps
    the rates are lower than while something happens. In a resample an hour that sessions share is divided evenly among them.

    The delay of a detected event runs from the end of its first window to the end of its first window that raises an alarm. Its median is over
    detected events, `missed` is how many were not, and `median_of_all` is the median where those count as detected after any delay.
    """
    timed = marks.time >= 0
    if not timed.any():
        return dict.fromkeys(("hours", "alerts_per_hour", "false_alerts_per_hour", "delay_seconds"), _null("times of events are not known"))
    sample = _draws(marks, resamples, seed, apart=False)  # a rate needs no attack, and a lone session of its kind would never vary
    of = sample.blocks.of
    share = np.zeros(len(sample.blocks.label))  # (B,) hours of each session
    with_time, start = np.unique(of[timed], return_index=True)
    share[with_time] = _shares(np.minimum.reduceat(marks.time[timed], start), np.maximum.reduceat(marks.time[timed], start)) / 3.6e6
    first, end = runs(alarm, marks.session)
    attacks = np.concatenate(([0], np.cumsum(marks.attack != 0)))  # unknown windows make no alert a false one
    false = (attacks[end] == attacks[first]) & timed[first]
    hours, sessions = sample.weights @ share, {"timed": len(with_time)}
    counted = {"alerts": of[first[timed[first]]], "false_alerts": of[first[false]]}
    rates = dict.fromkeys((f"{name}_per_hour" for name in counted), _null("the split spans no time"))
    if hours[0] > 0:
        with np.errstate(invalid="ignore", divide="ignore"):
            rates = {
                f"{name}_per_hour": _with_interval(sample.weights @ np.bincount(where, minlength=len(share)) / hours, sessions, sample.confidence)
                for name, where in counted.items()
            }
    return {
        "hours": _value(float(hours[0])),
        "windows_with_time": int(timed.sum()),
        **{name: len(where) for name, where in counted.items()},
        **rates,
        "delay_seconds": _delay(marks, Incidents.find(marks, alarm), _draws(marks, resamples, seed)),
    }


def _shares(start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.float64]:
    """(S,) of each span its part of the time that any covers; time that several cover is divided evenly among them."""
    edges = np.unique(np.concatenate((start, end)))
    first, last = np.searchsorted(edges, start), np.searchsorted(edges, end)
    covering = np.cumsum(np.bincount(first, minlength=len(edges)) - np.bincount(last, minlength=len(edges)))[:-1]
    until = np.concatenate(([0.0], np.cumsum(np.diff(edges) / np.maximum(covering, 1))))
    return until[last] - until[first]


def _delay(marks: Marks, incidents: Incidents, sample: Bootstrap) -> Measure:
    """Median delay of the detected events among those with known times, in seconds."""
    seen = incidents.hit >= 0
    known = (marks.time[incidents.first] >= 0) & (~seen | (marks.time[incidents.hit] >= 0))
    if not (known & seen).any():
        return {**_null("no event with known times was detected"), "events": 0, "missed": int(known.sum())}
    first, hit, seen = incidents.first[known], incidents.hit[known], seen[known]
    delay = np.where(seen, (marks.time[hit] - marks.time[first]) / 1000, np.inf)
    order = np.argsort(delay, kind="stable")
    delay, where = delay[order], sample.blocks.of[first[order]]
    detected = int(seen.sum())
    found, median = delay[:detected], _medians(delay, sample.weights[:, where])
    sessions = {"attack": len(np.unique(where[:detected]))}
    return {
        **_with_interval(_medians(found, sample.weights[:, where[:detected]]), sessions, sample.confidence),
        "p90": float(np.quantile(found, 0.9)),
        "worst": float(found[-1]),
        "events": detected,
        "missed": len(delay) - detected,
        "median_of_all": _value(float(median[0])) if np.isfinite(median[0]) else _null("half of the events or more were missed"),
    }


def _medians(values: NDArray[np.float64], weights: NDArray[np.float64]) -> Values:
    """(1 + R,) medians of ascending values (E,) that stand as often as weights (1 + R, E) say; NaN where none stands."""
    count = np.cumsum(weights, axis=1)
    half = count[:, -1:] / 2
    lower, upper = (count >= half).argmax(axis=1), (count > half).argmax(axis=1)
    return np.where(half[:, 0] > 0, (values[lower] + values[upper]) / 2, np.nan)


def _parts(marks: Marks, scores: NDArray[np.float64], threshold: float) -> list[dict[str, Any]]:
    """A row a group: how it fares alone, at the common threshold. Null where it lacks a class."""
    found = []
    for group in np.unique(marks.group[marks.attack >= 0]):
        mine = marks.group == group
        one = _measures(marks.take(mine), scores[mine], threshold, 0, 0)
        points = {name: one[name]["value"] for name in ("prevalence", *NEEDS)}
        found.append(
            {
                "group": marks.group_names[group],
                "windows": sum(one["confusion"].values()),
                **points,
                "events": one["events"]["happened"],
                "detected": one["events"]["detected"],
            }
        )
    return found


def _labels(marks: Marks, scores: NDArray[np.float64], threshold: float) -> list[dict[str, Any]]:
    """A row a label: the share that raises an alarm (recall, or for benign windows the false alarms), and how it ranks against benign windows."""
    benign = np.sort(scores[marks.attack == 0])
    found = []
    for label in np.unique(marks.label):
        mine = marks.label == label
        values, state = scores[mine], int(marks.attack[mine].max())
        below = (np.searchsorted(benign, values, "left") + np.searchsorted(benign, values, "right")) / 2
        found.append(
            {
                "label": marks.label_names[label],
                "attack": {1: True, 0: False, -1: None}[state],
                "windows": int(mine.sum()),
                "alarmed": float((values > threshold).mean()),
                "median_score": float(np.median(values)),
                "roc_auc": float(below.mean() / len(benign)) if state == 1 and len(benign) else None,
            }
        )
    return found
