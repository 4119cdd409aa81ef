"""D8: do attributions find what matters? Integrated gradients on real test windows, checked by deletion and insertion against random order.

Windows are spread evenly over the classes and over each class's test windows. Those that a network calls by the class of the median
benign window are left out of the curves: nothing of them can be deleted. Intervals are over windows, which stand far apart.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import RESULTS, Gate, PartOptions
from benchmarks.networks import NETWORKS, Trained, train_network
from src.config import DataConfig
from src.data.dataset import Dataset, load_dataset
from src.data.taxonomy import family_index
from src.data.windows import gather, window_starts
from src.evaluation.statistics import Estimate, mean_estimate
from src.models.explanations import BenignReference, Curves, Explanation, curves, explain, predict
from src.training.explanation_figures import attention_figure, attribution_figure, curve_figure, tracking_figure

SEED = 0
COUNTS = ("Number", "Tot sum", "ack_count", "syn_count", "fin_count", "rst_count")
"""Columns that grow with the packets that a row holds: 100 for floods and Mirai, 10 for all else, as the extractor was set and not as the traffic was."""


def spread(dataset: Dataset, side: str, length: int, label: int, count: int) -> NDArray[np.float32]:
    """At most `count` raw windows (n, T, F) of a class, evenly spread over its windows."""
    rows = dataset.splits[side]
    starts = window_starts(rows.segment, length)
    starts = starts[rows.label[starts] == label]
    return gather(rows.features, starts[np.unique(np.linspace(0, len(starts) - 1, count).astype(np.int64))], length)


def measure(options: PartOptions) -> tuple[dict[str, Gate], dict[str, list[dict[str, Any]]]]:
    """Gates `D8.deletion`, `D8.insertion` (the worse of both networks) and their tables; figures go beside the result file."""
    config = DataConfig(root=options.root)
    dataset, length = load_dataset(config, SEED), config.window
    per_class, epochs = (4, 3) if options.quick else (18, 10)
    benign = np.flatnonzero(family_index(dataset.class_names) == 0)
    reference = BenignReference.fit(np.concatenate([spread(dataset, "fit", length, int(label), 1000) for label in benign]))
    chosen = [spread(dataset, "test", length, label, per_class) for label in range(len(dataset.class_names))]
    windows, truth = np.concatenate(chosen), np.repeat(np.arange(len(chosen)), [len(part) for part in chosen])
    areas, reasons, attention, differences = [], [], [], []
    for name in NETWORKS:
        trained = train_network(name, dataset, length, epochs=epochs, stride=10 if options.quick else 5, seed=SEED)
        found = explain(trained.model, windows, reference, dataset.feature_names, dataset.class_names, steps=32 if options.quick else 64)
        usual = predict(trained.model, reference.baseline[None])[0].argmax()
        moved = np.array([one.probabilities.argmax() != usual for one in found])
        attributions = np.stack([one.attributions for one in found])
        drawn = curves(trained.model, windows[moved], attributions[moved], reference.baseline, np.random.default_rng(SEED))
        rows, difference = _areas(name, drawn, [one for one, kept in zip(found, moved, strict=True) if kept])
        areas += rows
        differences.append(difference)
        reasons += _reasons(name, found, truth)
        attention += _attention(name, trained, found)
        _draw(name, options, drawn, trained, found, truth)
    worse = f"by attribution less random order, the worse of {len(NETWORKS)} networks"
    falls, rises = (
        max((one["deletion"] for one in differences), key=lambda one: one.high),
        min((one["insertion"] for one in differences), key=lambda one: one.low),
    )
    gates = {
        "D8.deletion": Gate(f"area under the deletion curve {worse}", falls.value, 0.0, "<", falls.low, falls.high, by_interval=True),
        "D8.insertion": Gate(f"area under the insertion curve {worse}", rises.value, 0.0, ">", rises.low, rises.high, by_interval=True),
    }
    tables = {"deletion and insertion": areas, "reasons by class": reasons, "strongest attention": attention}
    return gates, tables


def _areas(name: str, drawn: Curves, found: list[Explanation]) -> tuple[list[dict[str, Any]], dict[str, Estimate]]:
    """A row a curve, with how far attributions miss what they should add up to (share of the logit's rise), and the differences by curve."""
    area, rng = drawn.areas(), np.random.default_rng(SEED)
    differences = {key: mean_estimate(area[key] - area[f"{key}_random"], 2000, 0.95, rng) for key in ("deletion", "insertion")}
    missed = [one.incomplete / max(abs(one.rise), 1.0) for one in found]
    rows = [
        {
            "network": name, "curve": key, "windows": len(found), "area": float(area[key].mean()), "random order": float(area[f"{key}_random"].mean()),
            "difference": one.value, "low": one.low, "high": one.high,
            "rise missed, median": float(np.median(missed)), "rise missed, 95 %": float(np.quantile(missed, 0.95)),
        }
        for key, one in differences.items()
    ]  # fmt: skip
    return rows, differences


def _reasons(name: str, found: list[Explanation], truth: NDArray[np.int64]) -> list[dict[str, Any]]:
    """For each class the features that most often stand among the three strongest reasons of windows called rightly, and what `COUNTS` bear of it."""
    rows = []
    artefacts = np.isin(found[0].feature_names, COUNTS)
    for label, class_name in enumerate(found[0].class_names):
        right = [one for one, is_label in zip(found, truth == label, strict=True) if is_label and one.predicted == class_name]
        counted = Counter(one.feature_names[feature] for one in right for feature in one.top(3))
        often = ", ".join(f"{feature} {100 * count / len(right):.0f} %" for feature, count in counted.most_common(4))
        totals = [one.attributions.sum(axis=0).clip(min=0) for one in right]
        share = float(np.mean([total[artefacts].sum() / max(total.sum(), 1e-12) for total in totals])) if right else None
        row: dict[str, Any] = {"network": name, "class": class_name, "called rightly": len(right), "windows": int((truth == label).sum())}
        rows.append({**row, "from packets a row holds": share, "among the top three": often})
    return rows


def _attention(name: str, trained: Trained, found: list[Explanation]) -> list[dict[str, Any]]:
    """Per layer and head: where the mean map lies farthest above an even spread, and entropy and distance after the first and the last epoch."""
    rows = []
    for layer in range(len(found[0].attention)):
        mean = np.mean([one.attention[layer] for one in found], axis=0)  # (heads, T, T)
        for head, weights in enumerate(mean):
            query, key = np.unravel_index(weights.argmax(), weights.shape)
            past = [row for row in trained.tracking if (row["layer"], row["head"]) == (layer, head)]
            row: dict[str, Any] = {"network": name, "layer": layer + 1, "head": head + 1, "query step": int(query), "key step": int(key)}
            row["mean weight"] = float(weights.max())
            for measure_name in ("entropy", "distance"):
                row |= {f"{measure_name}, first epoch": past[0][measure_name], f"{measure_name}, last": past[-1][measure_name]}
            rows.append(row)
    return rows


def _draw(name: str, options: PartOptions, drawn: Curves, trained: Trained, found: list[Explanation], truth: NDArray[np.int64]) -> None:
    """Figures of a full run: curves, tracking, and the surest rightly called window of a spoofing attack, which no single row gives away."""
    if options.quick:
        return
    short = name.split()[0]
    curve_figure(drawn, name).savefig(RESULTS / f"explanations_{short}_curves.png")
    right = [one for one, label in zip(found, truth, strict=True) if one.predicted == one.class_names[label] == "Spoofing"]
    shown = max(right or found, key=lambda one: one.confidence)
    attribution_figure(shown).savefig(RESULTS / f"explanations_{short}_attributions.png")
    attention_figure(shown).savefig(RESULTS / f"explanations_{short}_attention.png")
    if trained.tracking:
        tracking_figure(trained.tracking).savefig(RESULTS / f"explanations_{short}_tracking.png")
