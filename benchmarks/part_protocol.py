"""Every detector on the same held-out windows: scores with intervals, controls, calibration, doubt (requirements C4 and D13).

All windows of `test` at a stride of one row. Intervals: stratified bootstrap over blocks of windows and over training seeds
(`src.evaluation.detection`). Thresholds come from `calibrate`. Controls: rows shuffled inside each window, the last row repeated,
and the same windows weighted to the class counts of the whole of CICIoT2023.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.candidates import BASE, CANDIDATES, TEMPORAL, Readout, read_out
from benchmarks.common import RESULTS, Gate, PartOptions, cache_folder
from src.config import Config, load_config
from src.data.audit import ceilings, shuffled_rows
from src.data.dataset import Dataset, load_dataset
from src.data.taxonomy import FAMILIES, family_index
from src.data.windows import window_starts
from src.evaluation import detection
from src.evaluation.detection import Blocks, Bootstrap, Values
from src.evaluation.detection_figures import reliability_figure, risk_figure, scores_figure
from src.evaluation.statistics import Estimate
from src.training.lstm_trainer import torch_threads
from src.training.peers import side_windows

FALSE_ALARMS = 0.01
"""Share of benign windows of `calibrate` that the alarm of `recall` lets through."""
COVERAGE = 0.8
"""Share of windows that selective classification keeps."""
RESAMPLES = 2000
CONTROL_SEED = 20_231
SMALL = ("lstm.training.teachers=0", "temporal.training.epochs=8", "data.max_rows_per_class=1200")
STATISTICS = "LightGBM, window statistics"
OPPONENTS = {"rows": "LightGBM, rows", "pooled": "LightGBM, rows summed over the window", "stats": STATISTICS}

WHOLE = {
    "BenignTraffic": 1_098_195, "DDoS-ICMP_Flood": 7_200_504, "DDoS-UDP_Flood": 5_412_287, "DDoS-TCP_Flood": 4_497_667, "DDoS-PSHACK_Flood": 4_094_755,
    "DDoS-SYN_Flood": 4_059_190, "DDoS-RSTFINFlood": 4_045_285, "DDoS-SynonymousIP_Flood": 3_598_138, "DDoS-ICMP_Fragmentation": 452_489,
    "DDoS-UDP_Fragmentation": 286_925, "DDoS-ACK_Fragmentation": 285_104, "DDoS-HTTP_Flood": 28_790, "DDoS-SlowLoris": 23_426,
    "DoS-UDP_Flood": 3_318_595, "DoS-TCP_Flood": 2_671_445, "DoS-SYN_Flood": 2_028_834, "DoS-HTTP_Flood": 71_864,
    "Mirai-greeth_flood": 991_866, "Mirai-udpplain": 890_576, "Mirai-greip_flood": 751_682,
    "Recon-HostDiscovery": 134_378, "Recon-OSScan": 98_259, "Recon-PortScan": 82_284, "VulnerabilityScan": 37_382, "Recon-PingSweep": 2_262,
    "MITM-ArpSpoofing": 307_593, "DNS_Spoofing": 178_911,
    "BrowserHijacking": 5_859, "CommandInjection": 5_409, "SqlInjection": 5_245, "XSS": 3_846, "Backdoor_Malware": 3_218, "Uploading_Attack": 1_252,
    "DictionaryBruteForce": 13_064,
}  # fmt: skip
"""Rows of each class in the whole of CICIoT2023 (Neto et al. 2023)."""

Rows = list[dict[str, Any]]


def natural_counts(class_names: tuple[str, ...]) -> NDArray[np.float64]:
    """(C,) rows of each class in the whole data set; a class that is a whole family (`DDoS`) stands for those of it that are not named."""
    families = family_index(class_names)
    counts = np.array([WHOLE.get(name, 0) for name in class_names], dtype=np.float64)
    for index, name in enumerate(class_names):
        if name not in WHOLE:
            total = sum(count for other, count in WHOLE.items() if family_index([other])[0] == families[index])
            counts[index] = total - counts[families == families[index]].sum()
    return counts


def last_row(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Windows (N, T, F) that repeat the last row of each."""
    return np.repeat(windows[:, -1:], windows.shape[1], axis=1)


class Protocol:
    """The held-out windows, the resamples that all candidates share, and what each candidate scores on them."""

    def __init__(self, config: Config, dataset: Dataset, resamples: int = RESAMPLES, block: int = detection.BLOCK) -> None:
        """Cut the windows of `calibrate` and `test`, and draw the resamples."""
        self.config, self.dataset, self.length = config, dataset, config.data.window
        self.family = family_index(dataset.class_names)
        self.truth = self._labels("test")
        self.held = self._labels("calibrate")
        self.attack = self.family[self.truth] > 0
        self.sample = self.resampled(resamples, block)

    def _labels(self, side: str) -> NDArray[np.int64]:
        rows = self.dataset.splits[side]
        return rows.label[window_starts(rows.segment, self.length)].astype(np.int64)

    def resampled(self, resamples: int, block: int, side: str = "test") -> Bootstrap:
        """Resamples of blocks of about `block` windows of a side."""
        rows = self.dataset.splits[side]
        starts = window_starts(rows.segment, self.length)
        return Bootstrap(Blocks.cut(rows.label[starts], rows.segment[starts], block), resamples, seed=0)

    def read(self, name: str, seeds: int, config: Config | None = None) -> list[Readout]:
        """What a candidate says, for each training seed; with a configuration of its own, whose windows must be those of the protocol."""

        def test() -> NDArray[np.float32]:
            return side_windows(self.dataset, "test", self.length)[0]

        sets = {
            "calibrate": lambda: side_windows(self.dataset, "calibrate", self.length)[0],
            "test": test,
            "rows shuffled": lambda: shuffled_rows(test(), np.random.default_rng(CONTROL_SEED)),
            "last row only": lambda: last_row(test()),
        }
        return [read_out(name, config or self.config, self.dataset, seed, sets) for seed in range(seeds)]

    def confusion(self, probabilities: NDArray[np.float32]) -> Values:
        """(1 + R, C, C) counts."""
        return detection.confusions(self.sample, probabilities.argmax(axis=1), len(self.family))

    def macro_f1(self, readouts: list[Readout], windows: str = "test") -> Values:
        """(S, 1 + R)."""
        return np.array([detection.macro_f1(self.confusion(one.probabilities[windows])) for one in readouts])

    def scores(self, readouts: list[Readout]) -> dict[str, Values]:
        """(S, 1 + R) of every score.

        `macro_f1`, `accuracy`, `family_macro_f1`, `benign_fpr` (benign windows whose most probable class is an attack); `recall_at_alarm`
        and `fpr_at_alarm` (attack and benign windows above the score that 1 % of benign windows of `calibrate` lie above);
        `classwise_error` and `top_error` (calibration).
        """
        found: dict[str, list[Values]] = {}
        for one in readouts:
            for key, value in self._scores(one).items():
                found.setdefault(key, []).append(value)
        return {key: np.array(values) for key, values in found.items()}

    def _scores(self, one: Readout) -> dict[str, Values]:
        probabilities = one.probabilities["test"]
        benign = self.family == 0
        counts = self.confusion(probabilities)
        families = detection.merged(counts, self.family)
        # An alarm is the probability of any attack; its threshold is set on benign windows of `calibrate`.
        threshold = detection.threshold_at(_attack_share(one.probabilities["calibrate"], benign)[benign[self.held]], FALSE_ALARMS)
        alarm = _attack_share(probabilities, benign) > threshold
        return {
            "macro_f1": detection.macro_f1(counts),
            "accuracy": detection.accuracy(counts),
            "family_macro_f1": detection.macro_f1(families),
            "benign_fpr": 1 - families[:, 0, 0] / families[:, 0].sum(axis=1),
            "recall_at_alarm": self.sample.share(alarm, self.attack),
            "fpr_at_alarm": self.sample.share(alarm, ~self.attack),
            "classwise_error": detection.calibration_error(self.sample, self.truth, probabilities),
            "top_error": detection.top_calibration_error(self.sample, self.truth, probabilities),
        }

    def doubt(self, readouts: list[Readout], name: str) -> dict[str, Values]:
        """(S, 1 + R) of how well a doubt ranks errors: `auroc`, `risk`, `risk_kept` and their ratio.

        Args:
            readouts: of one candidate.
            name: `entropy` of the probabilities, or the candidate's own `epistemic` uncertainty.
        """
        found: dict[str, list[Values]] = {"auroc": [], "risk": [], "risk_kept": [], "ratio": []}
        for one in readouts:
            score, wrong = self.doubts(one, name)
            risk = detection.selective_risk(self.sample, score, wrong, 1.0)
            kept = detection.selective_risk(self.sample, score, wrong, COVERAGE)
            for key, value in zip(found, (detection.auroc(self.sample, score, wrong), risk, kept, kept / np.maximum(risk, 1e-12)), strict=True):
                found[key].append(value)
        return {key: np.array(values) for key, values in found.items()}

    def doubts(self, one: Readout, name: str) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
        """(W,) doubt and (W,) whether the most probable class is wrong, of test windows."""
        probabilities = one.probabilities["test"]
        score = one.doubt["test"] if name == "epistemic" else detection.entropy(probabilities)
        return score, probabilities.argmax(axis=1) != self.truth


def _attack_share(probabilities: NDArray[np.float32], benign: NDArray[np.bool_]) -> NDArray[np.float64]:
    return 1 - probabilities[:, benign].sum(axis=1, dtype=np.float64)


def measure(options: PartOptions) -> tuple[dict[str, Gate], dict[str, Rows]]:
    """Train, read and judge every candidate."""
    config = load_config(overrides=[f"data.root={options.root}", f"compute.threads={options.threads}", *(SMALL if options.quick else ())])
    dataset = load_dataset(config.data, 0)
    protocol = Protocol(config, dataset, RESAMPLES // 10 if options.quick else RESAMPLES)
    with torch_threads(options.threads):
        readouts = {name: protocol.read(name, options.seeds) for name in CANDIDATES}
    return judged(protocol, readouts, cache_folder() if options.quick else RESULTS)


def judged(protocol: Protocol, readouts: dict[str, list[Readout]], folder: Path) -> tuple[dict[str, Gate], dict[str, Rows]]:
    """Gates and tables of what the candidates said; figures go to `folder`."""
    tables = {
        "candidates": candidates_table(protocol, readouts),
        "differences": differences_table(protocol, readouts),
        "controls": controls_table(protocol, readouts),
        "natural prevalence": prevalence_table(protocol, readouts),
        "doubt": doubt_table(protocol, readouts),
        "F1 by class": class_table(protocol, readouts),
        "block length": block_table(protocol, readouts),
        "best possible": ceilings(protocol.dataset, protocol.length),
    }
    figures(protocol, readouts, tables["candidates"], folder)
    return gates(protocol, readouts), tables


def _cells(estimate: Estimate, name: str) -> dict[str, float]:
    """A column of the value and two of its interval; a row has one estimate with an interval."""
    return {name: estimate.value, "low": estimate.low, "high": estimate.high}


def candidates_table(protocol: Protocol, readouts: dict[str, list[Readout]]) -> Rows:
    """A row a candidate: macro-F1 with its interval, and the other scores, means over seeds."""
    rows: Rows = []
    for name, found in readouts.items():
        scores = protocol.scores(found)
        rows.append(
            {
                "candidate": name,
                "seeds": len(found),
                **_cells(protocol.sample.mean(scores.pop("macro_f1")), "macro_f1"),
                **{key: float(values[:, 0].mean()) for key, values in scores.items()},
                "parameters": round(float(np.mean([one.parameters for one in found]))),
                "seconds": float(np.mean([one.seconds for one in found])),
            }
        )
    return rows


def differences_table(protocol: Protocol, readouts: dict[str, list[Readout]]) -> Rows:
    """Macro-F1 of each network minus that of every other candidate, under the same resamples."""
    scores = {name: protocol.macro_f1(found) for name, found in readouts.items()}
    networks = [name for name in (TEMPORAL, BASE) if name in scores]
    return [
        {"of": name, "minus": other, **_cells(protocol.sample.difference(scores[name], scores[other]), "difference")}
        for index, name in enumerate(networks)
        for other in scores
        if other not in networks[: index + 1]
    ]


def controls_table(protocol: Protocol, readouts: dict[str, list[Readout]]) -> Rows:
    """Macro-F1 that each candidate loses without the order of rows, and without the rows before the last."""
    rows: Rows = []
    for name, found in readouts.items():
        intact = protocol.macro_f1(found)
        for control in ("rows shuffled", "last row only"):
            changed = protocol.macro_f1(found, control)
            value = float(changed[:, 0].mean())
            rows.append({"candidate": name, "control": control, "macro_f1": value, **_cells(protocol.sample.mean(intact - changed), "lost")})
    return rows


def prevalence_table(protocol: Protocol, readouts: dict[str, list[Readout]]) -> Rows:
    """Scores of the same windows at the class counts of the whole data set; the rates at which classes are mistaken stay as they are."""
    counts = natural_counts(protocol.dataset.class_names)
    rows: Rows = []
    for name, found in readouts.items():
        natural = [detection.at_prevalence(protocol.confusion(one.probabilities["test"]), counts) for one in found]
        families = [detection.merged(one, protocol.family) for one in natural]
        rows.append(
            {
                "candidate": name,
                **_cells(protocol.sample.mean(np.array([detection.macro_f1(one) for one in natural])), "macro_f1"),
                "accuracy": float(np.mean([detection.accuracy(one)[0] for one in natural])),
                "family_macro_f1": float(np.mean([detection.macro_f1(one)[0] for one in families])),
                "benign_fpr": float(np.mean([1 - one[0, 0, 0] / one[0, 0].sum() for one in families])),
                "alarms_that_are_false": float(np.mean([one[0, 0, 1:].sum() / one[0, :, 1:].sum() for one in families])),
            }
        )
    return rows


def doubt_table(protocol: Protocol, readouts: dict[str, list[Readout]]) -> Rows:
    """How well each candidate's doubt finds its errors."""
    rows: Rows = []
    for name, found in readouts.items():
        for kind in ("entropy", "epistemic") if found[0].doubt else ("entropy",):
            values = protocol.doubt(found, kind)
            cells = {key: protocol.sample.mean(value) for key, value in values.items()}
            rows.append(
                {
                    "candidate": name, "doubt": kind, **_cells(cells["auroc"], "auroc"), "risk": cells["risk"].value,
                    f"risk at {COVERAGE:.0%}": cells["risk_kept"].value,
                    **{f"ratio{suffix}": getattr(cells["ratio"], field) for suffix, field in (("", "value"), (": low", "low"), (": high", "high"))},
                }
            )  # fmt: skip
    return rows


def class_table(protocol: Protocol, readouts: dict[str, list[Readout]]) -> Rows:
    """F1 of each class and candidate, means over seeds."""
    names = protocol.dataset.class_names
    scores = {
        name: np.mean([detection.class_f1(protocol.confusion(one.probabilities["test"])[0]) for one in found], axis=0) for name, found in readouts.items()
    }
    return [
        {
            "class": label, "family": FAMILIES[protocol.family[index]], "windows": int((protocol.truth == index).sum()),
            "capture order": label not in protocol.dataset.assembled, **{name: float(values[index]) for name, values in scores.items()},
        }
        for index, label in enumerate(names)
    ]  # fmt: skip


def block_table(protocol: Protocol, readouts: dict[str, list[Readout]]) -> Rows:
    """How the interval of one difference depends on the length of the blocks."""
    rows: Rows = []
    for block in (protocol.length, detection.BLOCK // 2, detection.BLOCK, 2 * detection.BLOCK, 4 * detection.BLOCK):
        other = Protocol(protocol.config, protocol.dataset, len(protocol.sample.weights) - 1, block)
        estimate = other.sample.difference(other.macro_f1(readouts[BASE]), other.macro_f1(readouts[STATISTICS]))
        rows.append({"windows a block": block, "blocks": len(other.sample.blocks.label), **_cells(estimate, f"{BASE} minus {STATISTICS}")})
    return rows


def gates(protocol: Protocol, readouts: dict[str, list[Readout]]) -> dict[str, Gate]:
    """C4 for the base LSTM, D13 for the temporal one where it was trained."""
    scores = {name: protocol.macro_f1(found) for name, found in readouts.items()}
    found: dict[str, Gate] = {}

    def above(name: str, other: str, strictly: bool) -> Gate:
        estimate = protocol.sample.difference(scores[name], scores[other])
        what = f"macro-F1 of the {name} minus that of {other}, same windows"
        return Gate(what, estimate.value, 0.0, ">" if strictly else ">=", estimate.low, estimate.high, by_interval=strictly)

    for key, other in OPPONENTS.items():
        found[f"C4.{key}"] = above(BASE, other, strictly=key == "rows")
    if TEMPORAL in readouts:
        found["D13.base"] = above(TEMPORAL, BASE, strictly=False)
        error = protocol.sample.mean(protocol.scores(readouts[TEMPORAL])["classwise_error"])
        found["D13.calibration"] = Gate(f"classwise calibration error of the {TEMPORAL}", error.value, 0.03, "<=", error.low, error.high)
        doubt = protocol.doubt(readouts[TEMPORAL], "entropy")
        auroc, ratio = protocol.sample.mean(doubt["auroc"]), protocol.sample.mean(doubt["ratio"])
        what = f"AUROC of the uncertainty of the {TEMPORAL} (entropy of the mean over draws) for misclassification"
        found["D13.uncertainty"] = Gate(what, auroc.value, 0.8, ">=", auroc.low, auroc.high)
        what = f"errors of the {TEMPORAL} among the {COVERAGE:.0%} of windows it doubts least, as a share of its errors among all"
        found["D13.selective"] = Gate(what, ratio.value, 0.5, "<=", ratio.low, ratio.high)
    return found


def figures(protocol: Protocol, readouts: dict[str, list[Readout]], rows: Rows, folder: Path) -> None:
    """Reliability, selective risk and macro-F1, drawn from the first seed where there is a line a candidate."""
    networks = [name for name in (BASE, TEMPORAL) if name in readouts]
    drawn = {name: detection.reliability(protocol.truth, readouts[name][0].probabilities["test"]) for name in (*networks, STATISTICS)}
    curves = {name: detection.risk_curve(*protocol.doubts(readouts[name][0], "entropy")) for name in (*networks, STATISTICS)}
    folder.mkdir(parents=True, exist_ok=True)
    source = protocol.dataset.source
    reliability_figure(drawn, source).savefig(folder / "predictors_reliability.png")
    risk_figure(curves, COVERAGE, source).savefig(folder / "predictors_risk.png")
    scores_figure(rows, networks, source).savefig(folder / "predictors_scores.png")
