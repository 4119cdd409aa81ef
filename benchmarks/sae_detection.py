"""E5: the LSTM autoencoder and its peers on the same windows. What is learned, scaled and calibrated is benign; `test` was read once designs stood.

* CICIoT2023: attacks in capture order against benign windows that are assembled of shuffled rows, so that a lack of order alone tells neither.
* IoT-23, capture 34-1 (an infected device) and a random subset of several captures: connections, split by time.
* Packets of a Hue bridge against those of the infected device of IoT-23's 34-1, in N-BaIoT's features: another device at another site, so what
  is told apart may be device or site as well as attack. No row of N-BaIoT itself is in it.

Thresholds flag `TARGET` of benign windows of `calibrate`. Intervals: bootstrap over blocks of consecutive windows and over seeds
(`src.evaluation.detection`). The best peer is the one with the best mean on `test` itself, which favours the peers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.anomaly_trials import Side, Trial, from_dataset, iot23, train_detector
from benchmarks.common import Gate, PartOptions
from src.config import DataConfig
from src.evaluation.detection import Blocks, Bootstrap, Values, threshold_at
from src.sae.measures import judge, ranking
from src.training.anomaly_peers import PEERS, Score

TARGET = 0.05
"""Share of benign windows to be flagged."""
SAE = "LSTM autoencoder"
SEEDS = 3
"""Trainings of each candidate at most."""

Table = list[dict[str, Any]]


def candidates(trial: Trial, seed: int, epochs: int | None) -> dict[str, Score]:
    """Every score of raw windows (N, T, F) by its name, fitted with a seed."""
    fit, calibrate = (np.ascontiguousarray(trial[side].benign) for side in ("fit", "calibrate"))
    rows = fit.reshape(-1, fit.shape[2])
    return {
        SAE: train_detector(fit, calibrate, calibrate, seed, epochs).score,
        **{name: learn(rows, fit, calibrate, seed) for name, learn in PEERS.items()},
    }


class Contest:
    """What every candidate scored on a trial's windows."""

    def __init__(self, title: str, trial: Trial, seeds: int, resamples: int, epochs: int | None) -> None:
        """Train, score and judge.

        Args:
            title: of the data set.
            trial: its windows.
            seeds: trainings of each candidate.
            resamples: of the bootstrap.
            epochs: of the autoencoder at most; None for the default.
        """
        self.title, self.side = title, trial["test"]
        marks = self.side.marks
        self.attack = marks.attack == 1
        self.sample = Bootstrap(Blocks.cut(marks.label, marks.session), resamples, seed=0)
        self.figures: dict[str, list[dict[str, Values]]] = {}
        self.on_agent: dict[str, list[float]] = {}
        self.last: dict[str, tuple[NDArray[np.float64], float]] = {}
        """Scores on `test` and threshold of the first seed."""
        agent = trial["agent"]
        unmoved = Bootstrap(Blocks.cut(agent.marks.label, agent.marks.session), 0, seed=0)
        for seed in range(seeds):
            for name, score in candidates(trial, seed, epochs).items():
                values, threshold = score(self.side.windows), threshold_at(score(trial["calibrate"].benign), TARGET)
                self.figures.setdefault(name, []).append(self._judge(values, threshold))
                self.on_agent.setdefault(name, []).append(float(ranking(score(agent.windows), agent.marks.attack == 1, unmoved)[0][0]))
                self.last.setdefault(name, (values, threshold))

    def _judge(self, values: NDArray[np.float64], threshold: float) -> dict[str, Values]:
        flagged = values > threshold
        area, precision = ranking(values, self.attack, self.sample)
        recall, false = self.sample.share(flagged, self.attack), self.sample.share(flagged, ~self.attack)
        hits = self.sample.sums(flagged & self.attack)
        f1 = 2 * hits / (self.sample.sums(flagged) + self.sample.sums(self.attack))
        return {"auroc": area, "pr_auc": precision, "recall": recall, "fpr": false, "f1": f1}

    def of(self, name: str, figure: str) -> Values:
        """(S, 1 + R) of a candidate."""
        return np.array([one[figure] for one in self.figures[name]])

    def gate(self) -> Gate:
        """The autoencoder's AUROC less that of the best peer."""
        best = max((name for name in self.figures if name != SAE), key=lambda name: float(self.of(name, "auroc")[:, 0].mean()))
        found = self.sample.difference(self.of(SAE, "auroc"), self.of(best, "auroc"))
        return Gate(f"AUROC on {self.title}: {SAE} less the best of {len(PEERS)} peers ({best})", found.value, 0.0, ">=", found.low, found.high)

    def rows(self) -> Table:
        """A row a candidate."""
        prevalence, table = float(self.attack.mean()), []
        for name in self.figures:
            row: dict[str, Any] = {"data": self.title, "score": name, "AUROC on agent": float(np.mean(self.on_agent[name])), "prevalence": prevalence}
            for figure in ("auroc", "pr_auc", "recall", "fpr", "f1"):
                found = self.sample.mean(self.of(name, figure))
                row |= {figure: found.value, f"{figure} low": found.low, f"{figure} high": found.high}
            table.append(row)
        return table

    def judged(self) -> tuple[Table, Table]:
        """By candidate: events, alerts and delay; and by class: AUROC against benign windows and the share flagged. Of the first seed."""
        events, classes = [], []
        for name, (values, threshold) in self.last.items():
            found = judge(self.side.marks, values, threshold, 0, 0)
            time, delay = found["time"], found["time"]["delay_seconds"]
            events.append(
                {
                    **{"data": self.title, "score": name, "events": found["events"]["happened"], "detected": found["events"]["detected"]},
                    **{key: time[key]["value"] for key in ("hours", "alerts_per_hour", "false_alerts_per_hour")},
                    **{"delay, median s": delay["value"], "delay, worst s": delay.get("worst")},
                }
            )
            classes += [
                {"data": self.title, "score": name, "class": one["label"], "windows": one["windows"], "auroc": one["roc_auc"], "flagged": one["alarmed"]}
                for one in found["by_label"]
            ]
        return events, classes


def thinned(trial: Trial, step: int) -> Trial:
    """Every `step`-th attack window."""
    found = {}
    for name, side in trial.items():
        keep = np.flatnonzero((side.marks.attack == 0) | (np.arange(len(side.marks)) % step == 0))
        found[name] = Side(side.windows[keep], side.marks.take(keep))
    return found


def trials(options: PartOptions) -> dict[str, tuple[str, Trial]]:
    """By the gate that they count for, and their names."""
    logs = options.shared / "iot23"
    return {
        "CICIoT2023": ("E5.ciciot2023", from_dataset(DataConfig(root=options.root))),
        "IoT-23 34-1": ("E5.iot23", iot23(logs / "CTU-IoT-Malware-Capture-34-1_conn.log.labeled")),
        "IoT-23 subset": ("E5.iot23", iot23(logs / "IoT23_zeek_conn_16500.csv")),
        "packets of two devices": ("E5.nbaiot", from_dataset(DataConfig(root=options.shared / "nbaiot", dataset="nbaiot"), 4 if options.quick else 2)),
    }


def measure(options: PartOptions) -> tuple[dict[str, Gate], dict[str, Table]]:
    """Gates `E5.ciciot2023`, `E5.iot23` (the worse of two) and `E5.nbaiot`; tables by data set, by event and by class."""
    seeds, resamples, epochs = (min(options.seeds, 2), 50, 3) if options.quick else (min(options.seeds, SEEDS), 500, None)
    gates: dict[str, Gate] = {}
    rows, events, classes = [], [], []
    for title, (key, trial) in trials(options).items():
        contest = Contest(title, thinned(trial, 10) if options.quick else trial, seeds, resamples, epochs)
        gate = contest.gate()
        gates[key] = gate if key not in gates else min(gate, gates[key], key=lambda one: one.value)
        rows += contest.rows()
        by_event, by_class = contest.judged()
        events += by_event
        classes += by_class
    what = f"thresholds flag {TARGET:g} of benign windows of calibrate"
    return gates, {f"detection of attacks ({what})": rows, "events, alerts and delay (first seed)": events, "by class (first seed)": classes}
