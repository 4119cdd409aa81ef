"""Stage 4: what the trained autoencoder says of held-out windows, and how right it is.

`python -m src.sae.evaluation --dataset NAME --version NAME [--target-fpr RATE] [--out FOLDER]`

Nothing is fitted here. A window raises an alarm when its score (`AnomalyDetector`: a distance of marks from those of benign windows, in which the
reconstruction error is one among many) lies above a quantile of the scores of benign *validation* windows, chosen so that at most `target_fpr` of
traffic like that is flagged (a conformal p-value below `target_fpr`: Vovk et al. 2005). Where those are too few to tell so low a rate, the
threshold is for the lowest that they can tell, and that is said; the test split never moves it. `src.sae.measures` says what alarms are worth.

`eval/NAME` holds, of each test window: `reconstruction_errors.npy`, the mean squared error of its reconstruction in scaled units; `scores.npy`, on
which the threshold is; `anomaly_scores.npy`, one minus the score's conformal p-value; `predictions.npy`, 1 where it raises an alarm.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from src.artifacts import content_digest, new_artifact, open_artifact
from src.errors import UserError
from src.models.lstm_sae import ROUNDING, AnomalyDetector
from src.sae import encoding
from src.sae.layout import Layout, Say, finish, layout_of, parser, read_json, teller
from src.sae.measures import NEEDS, Marks, Measure, judge, rank, read_array

KIND = "sae-evaluation"
AT_ONCE = 2048
"""Windows read from disk and scored at once."""


@dataclass(frozen=True)
class EvaluationSettings:
    """How stage 4 judges."""

    target_fpr: float = 0.01
    """Share of benign windows that may raise an alarm."""
    resamples: int = 500
    """Draws of sessions behind each interval."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        """Check.

        Raises:
            UserError: for a rate that is none.
        """
        if not 0 < self.target_fpr < 1:
            raise UserError(f"--target-fpr is {self.target_fpr:g}; it must lie between 0 and 1, both excluded")


def score(detector: AnomalyDetector, windows: NDArray[np.float32], say: Say, what: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores (N,) of windows (N, T, F), and the mean squared errors (N,) of their reconstruction in scaled units; the higher, the more abnormal.

    The windows may lie on disk: a part at a time is in memory.
    """
    scores, errors = np.empty(len(windows)), np.empty(len(windows))
    told = began = time.perf_counter()
    for first in range(0, len(windows), AT_ONCE):
        part = np.array(windows[first : first + AT_ONCE], dtype=np.float32)  # a copy in memory
        here = slice(first, first + len(part))
        scores[here] = detector.score(part)
        with torch.inference_mode():
            scaled = detector.model.scaler(torch.from_numpy(part))
            errors[here] = (detector.model.rebuild(scaled) - scaled).double().square().mean(dim=(1, 2)).numpy()
        if time.perf_counter() - told > 10:
            told = time.perf_counter()
            say(f"{what}: {first + len(part):,} of {len(windows):,} windows, {(first + len(part)) / (told - began):,.0f} a second")
    return scores, errors


def alarm_threshold(benign: NDArray[np.floating], target_fpr: float) -> tuple[float, float]:
    """The score above which a conformal p-value among benign scores (M,) is below `target_fpr`, and the largest p-value above it.

    The p-value of a score is (1 + benign scores at least as large) / (M + 1), where rounding makes no difference, as in `AnomalyDetector`. None is
    below 1 / (M + 1): where that is too much, the threshold is the largest benign score, and the second figure says so by being above the target.
    """
    most = max(math.ceil(target_fpr * (len(benign) + 1) - 1e-9) - 2, 0)  # benign errors that may be at least as large
    return float(np.sort(benign)[len(benign) - 1 - most]) / (1 - ROUNDING), (most + 1) / (len(benign) + 1)


def evaluate(layout: Layout, settings: EvaluationSettings, say: Say) -> dict[str, Any]:
    """Score validation and test windows, set the threshold on the former, judge on the latter, and write `eval/NAME`.

    Returns:
        What `evaluation_results.json` holds.

    Raises:
        UserError: when a former stage is missing or altered, the model was trained on other windows, or a split holds nothing to work with.
    """
    began = time.perf_counter()
    open_artifact(layout.encoded, encoding.KIND)
    encoded = content_digest(layout.encoded)
    detector, trained = AnomalyDetector.load(layout.model)
    if trained.get("encoded", {}).get("digest") != encoded:
        raise UserError(f"'{layout.model}' was trained on other windows than '{layout.encoded}' holds; run stage 3 again")
    shape = detector.model.config
    marks = {split: Marks.read(layout.encoded, split) for split in ("val", "test")}
    windows = {split: read_array(layout.encoded / f"X_{split}_sequences.npy") for split in marks}
    for split, array in windows.items():
        if len(array) != len(marks[split]):
            raise UserError(f"'{layout.encoded}': {len(array)} windows of {split} and {len(marks[split])} marks; run stage 2 again")
        if not len(array):
            raise UserError(f"'{layout.encoded}' holds no window of {split}; take more rows, or shorter windows, in stage 2")
        if array.shape[1:] != (shape.sequence_length, shape.input_size):
            raise UserError(
                f"'{layout.model}' reads windows of {shape.sequence_length} x {shape.input_size}, and those of {split} are {array.shape[1:]}; run stage 2 again"
            )
    scored = {split: score(detector, array, say, f"scoring {split}") for split, array in windows.items()}
    for split, pair in scored.items():
        if count := int((~np.isfinite(pair).all(axis=0)).sum()):
            raise UserError(f"scores of {count} windows of {split} are not finite; train again (stage 3)")
    scores, errors = scored["test"]
    usual = marks["val"].attack == 0
    source = "benign validation windows"
    if not usual.any():
        usual, source = marks["val"].attack < 0, "validation windows without a label (none is known to be benign)"
    if not usual.any():
        raise UserError(f"'{layout.encoded}' holds no benign validation window, so no threshold can be set; split the data otherwise in stage 2")
    threshold, rate = alarm_threshold(scored["val"][0][usual], settings.target_fpr)
    limit = {
        "threshold": threshold,
        "target_fpr": settings.target_fpr,
        "nominal_fpr": rate,
        "rule": "alarm where the score is above the threshold: its conformal p-value among the reference is at most nominal_fpr",
        "reference": source,
        "reference_windows": int(usual.sum()),
    }
    if rate > settings.target_fpr + 1e-9:
        limit["note"] = f"{int(usual.sum())} {source} cannot tell a rate below {rate:.3g}: that is used instead of {settings.target_fpr:g}"
        say(f"note: {limit['note']}")
    metadata = read_json(layout.encoded / "metadata.json")
    found: dict[str, Any] = {
        "dataset": layout.dataset,
        "version": layout.version,
        "settings": asdict(settings),
        "notes": metadata.get("notes", []),
        "threshold": limit,
        "test": {
            **judge(marks["test"], scores, threshold, settings.resamples, settings.seed),
            "reconstruction_error_alone": rank(marks["test"], errors, settings.resamples, settings.seed),
        },
        "validation": {"windows": {name: int((marks["val"].attack == value).sum()) for name, value in (("benign", 0), ("attack", 1), ("unknown", -1))}},
    }
    laid = metadata.get("windows_before_reduction", {}).get("test", len(scores))
    if laid > len(scores):
        # Alarms of the windows that were left out are missing, and the hours are not.
        reason = f"{len(scores):,} of {laid:,} test windows were kept in stage 2, so alarms an hour cannot be counted; raise --sample-size and --memory-limit"
        found["test"]["time"] |= {name: {"value": None, "low": None, "high": None, "reason": reason} for name in ("alerts_per_hour", "false_alerts_per_hour")}
        say(f"note: {reason}")
    found["seconds"] = round(time.perf_counter() - began, 1)
    judged = {"encoded": encoded, "model": content_digest(layout.model)}
    with new_artifact(layout.eval, KIND, {"dataset": layout.dataset, "version": layout.version, "settings": asdict(settings), "judged": judged}) as target:
        for name, tree in (("evaluation_results", found), ("threshold", limit)):
            (target / f"{name}.json").write_text(json.dumps(tree, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        np.save(target / "reconstruction_errors.npy", errors)
        np.save(target / "scores.npy", scores)
        np.save(target / "anomaly_scores.npy", detector.rarity(scores))
        np.save(target / "predictions.npy", (scores > threshold).astype(np.int8))
    for line in summary(found):
        say(line)
    return found


def summary(found: Mapping[str, Any]) -> list[str]:
    """The results in a few lines."""
    test, limit = found["test"], found["threshold"]
    counts = ", ".join(f"{count:,} {name}" for name, count in test["windows"].items() if count)
    lines = [f"test: {counts} windows of {test['sessions']:,} sessions; {test['alarms']:,} raise an alarm"]
    told = [
        f"{name.replace('_', ' ')} {_words(test[name])}" for name in ("roc_auc", "pr_auc", "prevalence", "precision", "recall", "f1", "fpr", "event_recall")
    ]
    asked = "" if limit["nominal_fpr"] <= limit["target_fpr"] + 1e-9 else f" ({limit['target_fpr']:g} were asked for)"
    lines.append(f"at a threshold for {limit['nominal_fpr']:.3g} false alarms{asked}: " + ", ".join(told))
    if test["roc_auc"]["value"] is None:
        lines.append(f"roc auc is not known: {test['roc_auc']['reason']}")
    else:
        lines.append(f"the reconstruction error alone has roc auc {_words(test['reconstruction_error_alone']['roc_auc'])}")
    if any(test[name]["low"] is not None for name in NEEDS):
        held = test["sessions_with"]
        lines.append(f"intervals are over {held['attack']:,} sessions with attack windows and {held['benign']:,} with benign ones")
    return lines


def _words(one: Measure) -> str:
    if one["value"] is None:
        return "-"
    return f"{one['value']:.3f}" + ("" if one["low"] is None else f" [{one['low']:.3f}, {one['high']:.3f}]")


def run(words: list[str] | None) -> None:
    """Evaluate as the command line says.

    Raises:
        UserError: for wrong input.
    """
    flags = parser("src.sae.evaluation", "Score held-out windows and judge the detector (stage 4).")
    flags.add_argument("--target-fpr", type=float, default=EvaluationSettings.target_fpr, metavar="RATE", help="share of benign windows that may be flagged")
    given = flags.parse_args(words)
    evaluate(layout_of(given), EvaluationSettings(given.target_fpr), teller())


if __name__ == "__main__":
    sys.exit(finish(run))
