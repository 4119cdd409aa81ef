"""Online learning (requirement D7): a stream brings an attack family that the model was never shown.

The base LSTM is trained on `fit` without one family. A labelled stream then comes in batches of 32 windows: old classes from `agent`, the new
family from `fit` and `agent`; two kinds of it, `mixed` (a quarter is new) and `burst` (nothing but the new family, the stream that is hardest to
remember under). Judged on `test`: macro-F1 of the old classes on their own windows (a window called by a new name is an error, so that
nothing is won by the new family's windows no longer being mistaken), of the new ones on all windows, and of all. Intervals over blocks of
windows and seeds, differences within a seed. The drift monitor sees the stream's windows, without labels, under the model as trained.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from river.drift import ADWIN
from torch import Tensor

from benchmarks.common import Gate, PartOptions
from src.config import Config, load_config
from src.data.dataset import Dataset, load_dataset
from src.data.taxonomy import FAMILIES, family_index
from src.data.windows import window_starts
from src.evaluation.detection import Blocks, Bootstrap, class_f1, confusions
from src.models.loop import WindowBatches
from src.models.lstm_attack_predictor import RealDataLSTMPredictor, RealDataTrainer, build_model
from src.training.lstm_trainer import LSTMTrainer, torch_threads
from src.training.online import DriftMonitor, Model, OnlineLearner, OnlineSettings

SETTINGS = ("lstm.model.hidden_size=64", "lstm.training.epochs=12")
SMALL = ("lstm.model.hidden_size=32", "lstm.training.epochs=4", "data.max_rows_per_class=1500")
SEEDS = 3
STRIDE = 3
"""Rows between the starts of two windows, everywhere."""
BATCH = 32
CALM = 1000
"""Windows of the old classes before the change, for the drift monitor."""
LENGTHS = {"mixed": 1600, "burst": 600}
"""Windows of each stream."""
SHARE = 0.25
"""Of the new family's windows in the mixed stream, while they last."""
RESAMPLES = 1000
OLD_LOSS = 0.04
"""Macro-F1 of old classes that may be lost: the width of the 95 % interval of that score on this `test` side before the stream (.72 to .76)."""

METHODS = {
    "naive fine-tuning": OnlineSettings(replay=0),
    "replay only": OnlineSettings(penalty=0.0),
    "penalty only": OnlineSettings(label_weight=0.0, penalty=1.0),
    "replay + penalty": OnlineSettings(),
    "replay + penalty, plain reservoir": OnlineSettings(balanced=False),
}
PRODUCT, NAIVE, NONE, JOINT = "replay + penalty", "naive fine-tuning", "no update", "joint training"

Indices = NDArray[np.int64]
Scores = dict[str, NDArray[np.float64]]
"""`old`, `new`, `all` and `attack`, (1 + R,) each."""


class Traffic:
    """Rows of every side in one table, and their windows by side."""

    def __init__(self, data: Dataset, length: int) -> None:
        self.data, self.length = data, length
        self.rows = torch.from_numpy(np.concatenate([rows.features for rows in data.splits.values()]))  # (N, F)
        self.label = np.concatenate([rows.label for rows in data.splits.values()]).astype(np.int64)  # (N,)
        self.starts: dict[str, Indices] = {}
        first = 0
        for side, rows in data.splits.items():
            self.starts[side] = window_starts(rows.segment, length, STRIDE) + first
            first += len(rows.label)
        self.families = family_index(data.class_names)  # (C,)

    def of(self, side: str, classes: Indices) -> Indices:
        """(W,) first rows of the side's windows of some classes."""
        starts = self.starts[side]
        return starts[np.isin(self.label[starts], classes)]

    def windows(self, starts: Indices) -> Tensor:
        """(W, T, F) raw windows."""
        return self.rows[torch.from_numpy(starts)[:, None] + torch.arange(self.length)]

    def names(self, starts: Indices) -> list[str]:
        """Labels of windows."""
        return [self.data.class_names[label] for label in self.label[starts]]


@dataclass(frozen=True)
class Case:
    """A family that is held out, under one seed."""

    family: str
    seed: int
    old: Indices
    """Classes that the model is trained on."""
    new: Indices
    model: RealDataLSTMPredictor
    """Trained on the old ones."""


def trained(config: Config, traffic: Traffic, fit: Indices, calibrate: Indices, classes: Indices, seed: int) -> RealDataLSTMPredictor:
    """The base LSTM trained on windows of `classes`, which it numbers from 0 in their order."""
    number = np.full(len(traffic.families), -1)
    number[classes] = np.arange(len(classes))
    model = build_model(replace(LSTMTrainer(config, traffic.data).shape, num_classes=len(classes)), seed)
    model.scaler.fit(traffic.rows[torch.from_numpy(np.unique(fit[:, None] + np.arange(traffic.length)))].numpy())

    def batches(starts: Indices, size: int, shuffled: bool) -> WindowBatches:
        labels = torch.from_numpy(number[traffic.label[starts]])
        return WindowBatches(traffic.rows, torch.from_numpy(starts), labels, traffic.length, size, torch.Generator() if shuffled else None)

    settings = config.lstm.training
    counts = np.bincount(number[traffic.label[fit]], minlength=len(classes))
    trainer = RealDataTrainer(model, settings, seed=seed, device="cpu", class_counts=counts)
    trainer.train(batches(fit, settings.batch_size, True), batches(calibrate, 2048, False))
    return model.eval()


def stream(traffic: Traffic, case: Case, kind: str) -> Indices:
    """First rows of the stream's windows, in order; the mixed one begins with `CALM` windows of old classes."""
    rng = np.random.default_rng([case.seed, len(kind)])
    new = rng.permutation(np.concatenate([traffic.of("fit", case.new), traffic.of("agent", case.new)]))
    if kind == "burst":
        return new[: LENGTHS[kind]]
    old = rng.permutation(traffic.of("agent", case.old))
    calm, old = old[: min(CALM, len(old) // 2)], old[min(CALM, len(old) // 2) :]
    count = min(LENGTHS[kind], len(old))
    is_new = rng.random(count) < SHARE
    is_new &= np.cumsum(is_new) <= len(new)
    later = old[:count].copy()
    later[is_new] = new[: is_new.sum()]
    return np.concatenate([calm, later])


def change(traffic: Traffic, case: Case, starts: Indices) -> int:
    """Index of the first window of the new family."""
    return int(np.flatnonzero(np.isin(traffic.label[starts], case.new))[0])


class Judge:
    """Scores models on the same resamples of `test`."""

    def __init__(self, traffic: Traffic, resamples: int) -> None:
        self.traffic = traffic
        self.starts = traffic.starts["test"]
        self.label = traffic.label[self.starts]
        rows = traffic.data.splits["test"]
        segment = rows.segment[window_starts(rows.segment, traffic.length, STRIDE)]
        self.sample = Bootstrap(Blocks.cut(self.label, segment, 50 // STRIDE), resamples, seed=0)
        self.windows = traffic.windows(self.starts)

    def scores(self, model: Model, class_names: Sequence[str], case: Case) -> Scores:
        """Of a model whose outputs are `class_names`."""
        places = np.array([self.traffic.data.class_names.index(name) for name in class_names])
        guesses = torch.cat([model.predict_attack_probability(part).argmax(dim=1) for part in self.windows.split(2048)]).numpy()
        found = confusions(self.sample, places[guesses], len(self.traffic.families))  # (1 + R, C, C)
        f1 = class_f1(found)
        attack = found[:, case.new][:, :, self.traffic.families != 0].sum(axis=(1, 2)) / np.maximum(found[:, case.new].sum(axis=(1, 2)), 1)
        found[:, case.new] = 0.0
        return {"old": class_f1(found)[:, case.old].mean(axis=1), "new": f1[:, case.new].mean(axis=1), "all": f1.mean(axis=1), "attack": attack}


def learned(traffic: Traffic, case: Case, starts: Indices, settings: OnlineSettings) -> tuple[OnlineLearner, float]:
    """A learner that has seen the stream, and its milliseconds a batch."""
    learner = OnlineLearner(copy.deepcopy(case.model), [traffic.data.class_names[place] for place in case.old], settings, case.seed)
    fit = np.random.default_rng(case.seed).permutation(traffic.of("fit", case.old))
    learner.remember(traffic.windows(fit), traffic.names(fit))
    began = time.perf_counter()
    for first in range(0, len(starts), BATCH):
        batch = starts[first : first + BATCH]
        learner.learn(traffic.windows(batch), traffic.names(batch))
    return learner, 1000 * (time.perf_counter() - began) / np.ceil(len(starts) / BATCH)


def measure(options: PartOptions) -> tuple[dict[str, Gate], dict[str, list[dict[str, Any]]]]:
    """Train, stream, judge."""
    config = load_config(overrides=[f"data.root={options.root}", f"compute.threads={options.threads}", *(SMALL if options.quick else SETTINGS)])
    traffic = Traffic(load_dataset(config.data, 0), config.data.window)
    judge = Judge(traffic, RESAMPLES // 5 if options.quick else RESAMPLES)
    families, seeds = ("BruteForce",) if options.quick else ("BruteForce", "Spoofing", "Web"), range(min(options.seeds, SEEDS))
    scores: dict[tuple[str, str, str, int], Scores] = {}  # by stream, method, family and seed
    pace: dict[str, list[float]] = {}
    drift = []
    with torch_threads(options.threads):
        for family in families:
            new = np.flatnonzero(traffic.families == FAMILIES.index(family))
            old = np.flatnonzero(traffic.families != FAMILIES.index(family))
            for seed in seeds:
                case = Case(family, seed, old, new, trained(config, traffic, traffic.of("fit", old), traffic.of("calibrate", old), old, seed))
                known = [traffic.data.class_names[place] for place in old]
                drift += watched(traffic, case)
                for kind in LENGTHS:
                    starts = stream(traffic, case, kind)
                    scores[kind, NONE, family, seed] = judge.scores(case.model, known, case)
                    for method, settings in METHODS.items():
                        learner, spent = learned(traffic, case, starts, settings)
                        scores[kind, method, family, seed] = judge.scores(learner.model, learner.class_names, case)
                        pace.setdefault(method, []).append(spent)
                classes = np.arange(len(traffic.families))
                fit = np.concatenate([traffic.of("fit", old), stream(traffic, case, "mixed")])
                joint = trained(config, traffic, fit, traffic.starts["calibrate"], classes, seed)
                scores["mixed", JOINT, family, seed] = judge.scores(joint, traffic.data.class_names, case)
    tables = {"before and after": table(judge, scores, families, seeds, pace), "drift": drift_table(drift)}
    return gates(judge, scores, families, seeds), tables


def over(scores: dict[tuple[str, str, str, int], Scores], kind: str, method: str, families: Sequence[str], seeds: range, part: str) -> NDArray[np.float64]:
    """(S, 1 + R) mean over families."""
    return np.array([np.mean([scores[kind, method, family, seed][part] for family in families], axis=0) for seed in seeds])


def table(
    judge: Judge, scores: dict[tuple[str, str, str, int], Scores], families: Sequence[str], seeds: range, pace: dict[str, list[float]]
) -> list[dict[str, Any]]:
    """A row a stream, family and method; the last rows of a stream are means over families."""
    rows = []
    for kind in LENGTHS:
        for group in [*((family,) for family in families), *([families] if len(families) > 1 else [])]:
            for method in dict.fromkeys(method for stream_kind, method, _, _ in scores if stream_kind == kind):
                after = {part: over(scores, kind, method, group, seeds, part) for part in ("old", "new", "all", "attack")}
                moved = judge.sample.mean(after["old"] - over(scores, kind, NONE, group, seeds, "old"))
                rows.append(
                    {
                        "stream": kind, "new_family": group[0] if len(group) == 1 else "mean", "method": method, "old_f1": float(after["old"][:, 0].mean()),
                        "old_change": moved.value, "low": moved.low, "high": moved.high, "new_f1": float(after["new"][:, 0].mean()),
                        "all_f1": float(after["all"][:, 0].mean()), "new_seen_as_attack": float(after["attack"][:, 0].mean()),
                        "ms_a_batch": float(np.mean(pace[method])) if method in pace else None,
                    }
                )  # fmt: skip
    return rows


def gates(judge: Judge, scores: dict[tuple[str, str, str, int], Scores], families: Sequence[str], seeds: range) -> dict[str, Gate]:
    """What is claimed of replay with the penalty, on either stream, mean over families."""
    found = {}
    for kind in LENGTHS:
        suffix = "" if kind == "mixed" else f".{kind}"

        def change_of(part: str, against: str, kind: str = kind) -> Any:
            return judge.sample.mean(over(scores, kind, PRODUCT, families, seeds, part) - over(scores, kind, against, families, seeds, part))

        new, old, naive = change_of("new", NONE), change_of("old", NONE), change_of("old", NAIVE)
        found[f"D7.new{suffix}"] = Gate(f"F1 of the new family, after a {kind} stream minus before", new.value, 0.0, ">", new.low, new.high, by_interval=True)
        found[f"D7.old{suffix}"] = Gate(
            f"macro-F1 of the old classes lost by a {kind} stream", -old.value, OLD_LOSS, "<=", -old.high, -old.low, by_interval=True
        )
        what = f"macro-F1 of the old classes after a {kind} stream, minus naive fine-tuning's"
        found[f"D7.naive{suffix}"] = Gate(what, naive.value, 0.0, ">", naive.low, naive.high, by_interval=True)
    return found


def watched(traffic: Traffic, case: Case) -> list[dict[str, Any]]:
    """What the monitor, and ADWIN on the errors themselves, say of a stream that changes and of one that does not."""

    def read(starts: Indices) -> NDArray[np.float32]:
        return torch.cat([case.model.predict_attack_probability(part) for part in traffic.windows(starts).split(2048)]).numpy()

    reference = read(traffic.of("calibrate", case.old))
    mixed = stream(traffic, case, "mixed")
    calm = np.random.default_rng([case.seed, 0]).permutation(traffic.of("agent", case.old))
    at = change(traffic, case, mixed)
    rows = []
    for signal in ("doubt", "errors, which need labels"):
        alarms = []
        for starts in (mixed, calm):
            probabilities = read(starts)
            if signal == "doubt":
                alarms.append(DriftMonitor(reference).watch(probabilities))
            else:
                alarms.append(error_alarms(case.old[probabilities.argmax(axis=1)] != traffic.label[starts]))
        after = alarms[0][alarms[0] >= at]
        rows.append(
            {
                "signal": signal, "new_family": case.family, "delay": int(after[0] - at) if len(after) else None,
                "false": len(alarms[0]) - len(after) + len(alarms[1]), "calm": at + len(calm),
            }
        )  # fmt: skip
    return rows


def error_alarms(wrong: NDArray[np.bool_]) -> Indices:
    """Windows at which ADWIN says that errors have become more frequent."""
    detector, found = ADWIN(), []
    for index, one in enumerate(wrong):
        before = detector.estimation
        detector.update(float(one))
        if detector.drift_detected and detector.estimation > before:
            found.append(index)
    return np.array(found, dtype=np.int64)


def drift_table(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a signal and family: windows from the change to the alarm, and false alarms where nothing had changed."""
    rows = []
    for signal, family in dict.fromkeys((one["signal"], one["new_family"]) for one in found):
        mine = [one for one in found if (one["signal"], one["new_family"]) == (signal, family)]
        delays = [one["delay"] for one in mine if one["delay"] is not None]
        rows.append(
            {
                "signal": signal, "new_family": family, "streams": len(mine), "missed": len(mine) - len(delays),
                "median_delay_windows": float(np.median(delays)) if delays else None, "longest_delay_windows": max(delays, default=None),
                "false_alarms": sum(one["false"] for one in mine), "unchanged_windows": sum(one["calm"] for one in mine),
            }
        )  # fmt: skip
    return rows
