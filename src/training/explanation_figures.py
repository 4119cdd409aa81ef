"""Pictures of explanations, each on a canvas of its own: attention beside what it looked at, attributions, curves, attention over training."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from src.data.dataset import Dataset
from src.data.taxonomy import FAMILIES, family_index
from src.data.windows import gather, window_starts
from src.models.explanations import BenignReference, Curves, Explanation, explain, place_in_words, predict
from src.models.temporal_lstm import AdvancedLSTMTemporal
from src.training.log import TrainingLog

INK, MUTED, FOR, AGAINST, USUAL = "#1f2933", "#8a94a0", "#c92a2a", "#1864ab", "#d0ebff"

REFERENCE_WINDOWS, CANDIDATES = 500, 40
"""Benign windows of `fit` that explanations compare with, and windows of each class of `test` among which a telling one is sought."""


def log_explanations(log: TrainingLog, model: AdvancedLSTMTemporal, dataset: Dataset, length: int) -> None:
    """Explain, for each family, the window of `test` that a model calls rightly and most surely: two figures each, and a table of reasons.

    Only families with a window that is called rightly, of the few that are looked at, are explained. Files are
    `explanations/FAMILY_attributions.png`, `explanations/FAMILY_attention.png` and `explanations.json`.
    """
    family = family_index(dataset.class_names)
    benign = [_spread(dataset, "fit", length, int(label), REFERENCE_WINDOWS) for label in np.flatnonzero(family == 0)]
    reference = BenignReference.fit(np.concatenate(benign))
    chosen: dict[str, tuple[float, NDArray[np.float32]]] = {}
    for label in range(len(dataset.class_names)):
        windows = _spread(dataset, "test", length, label, CANDIDATES)
        if len(windows) == 0:
            continue
        said = predict(model, windows)
        sure = np.where(said.argmax(axis=1) == label, said[:, label], -1.0)
        best, name = int(sure.argmax()), FAMILIES[family[label]]
        if sure[best] > chosen.get(name, (-1.0, windows))[0]:
            chosen[name] = (float(sure[best]), windows[best])
    if not chosen:
        return
    found = explain(model, np.stack([window for _, window in chosen.values()]), reference, dataset.feature_names, dataset.class_names)
    for name, one in zip(chosen, found, strict=True):
        log.log_figure(attribution_figure(one), f"explanations/{name}_attributions.png")
        log.log_figure(attention_figure(one), f"explanations/{name}_attention.png")
    rows = [{"family": name, "predicted": one.predicted, **row} for name, one in zip(chosen, found, strict=True) for row in one.rows()[:5]]
    log.log_table(rows, "explanations.json")


def _spread(dataset: Dataset, side: str, length: int, label: int, count: int) -> NDArray[np.float32]:
    """At most `count` raw windows (n, T, F) of a class, evenly spread."""
    rows = dataset.splits[side]
    starts = window_starts(rows.segment, length)
    starts = starts[rows.label[starts] == label]
    return gather(rows.features, starts[np.unique(np.linspace(0, len(starts) - 1, min(count, len(starts))).astype(np.int64))], length)


def attention_figure(explanation: Explanation, features: int = 5, marked: int = 3) -> Figure:
    """Attention maps, a row a layer and a column a head, with the strongest weights ringed; beside them the top features over the same steps.

    A light band behind a feature is where 90 % of benign rows lie. A model without attention shows the features alone.
    """
    layers = len(explanation.attention)
    heads = max((len(weights) for weights in explanation.attention), default=0)
    columns = min(heads, 2 if layers * heads <= 4 else 4)
    folded = layers * -(-heads // max(columns, 1))  # rows of maps: the heads of a layer go on in the next row
    chosen = explanation.top(features) or [int(np.abs(explanation.attributions.sum(axis=0)).argmax())]
    figure = canvas(max(2.15 * columns + 5.2, 7.0), max(2.3 * folded, 1.05 * len(chosen)) + 1.0)
    figure.suptitle(_headline(explanation, figure.get_figwidth()), fontsize=11, color=INK, x=0.01, ha="left")
    if layers:
        left, right = figure.subfigures(1, 2, width_ratios=[2.15 * columns + 0.6, 4.6], squeeze=False)[0]
        _maps(left, explanation, columns, folded, marked)
    else:
        right = figure
    for place, (axes, feature) in enumerate(zip(np.atleast_1d(right.subplots(len(chosen), 1)), chosen, strict=True)):
        _series(axes, explanation, feature, place == len(chosen) - 1)
    return figure


def _maps(figure: Any, explanation: Explanation, columns: int, folded: int, marked: int) -> None:
    grid = figure.subplots(folded, columns, squeeze=False)
    places = [(layer, head) for layer, weights in enumerate(explanation.attention) for head in range(-(-len(weights) // columns) * columns)]
    top = explanation.top_attention(marked)
    shades = PowerNorm(0.5, vmin=0, vmax=max(float(weights.max()) for weights in explanation.attention))  # weak patterns are to be seen, too
    image = None
    for place, (axes, (layer, head)) in enumerate(zip(grid.flat, places, strict=True)):
        if head >= len(explanation.attention[layer]):
            axes.set_axis_off()
            continue
        image = axes.imshow(explanation.attention[layer][head], cmap="Greys", norm=shades)
        axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=9, color=INK, pad=3)
        for row in top:
            if (row["layer"], row["head"]) == (layer, head):
                axes.plot(row["key"], row["query"], "o", ms=9, mfc="none", mec=FOR, mew=1.6, clip_on=False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(4, integer=True))
        axes.tick_params(labelsize=7, length=2, colors=INK)
        axes.set_xlabel("looked-at step" if place >= (folded - 1) * columns else "", fontsize=8)
        axes.set_ylabel("looking step" if place % columns == 0 else "", fontsize=8)
    if image is not None:
        bar = figure.colorbar(image, ax=grid, location="bottom", shrink=0.6, aspect=40, pad=0.02)
        bar.set_label("attention weight (ringed: farthest above an even spread)", fontsize=8)
        bar.ax.tick_params(labelsize=7, length=2)


def _series(axes: Any, explanation: Explanation, feature: int, last: bool) -> None:
    """One raw feature over the steps of the window, before the band of benign rows."""
    values = explanation.window[:, feature].astype(np.float64)
    low, high = explanation.reference.band[:, feature]
    ends = (-0.4, len(values) - 0.6)
    axes.fill_between(ends, low, high, color=USUAL, lw=0)
    axes.hlines([low, high], *ends, color="#74c0fc", lw=0.6)
    axes.plot(values, color=FOR, lw=1.6, marker="o" if len(values) <= 30 else None, ms=3.5)
    axes.set_xlim(*ends)
    every = np.concatenate([values, [low, high]])
    bottom, top = float(every.min()), float(every.max())
    positive, scale = every[every > 0], ""
    if bottom >= 0 and len(positive) and top > 100 * positive.min():
        axes.set_yscale("symlog", linthresh=max(float(positive.min()), top * 1e-9))
        axes.set_ylim(0 if bottom == 0 else bottom / 2, top * 3)
        scale = ", log scale"
    elif top > bottom:
        axes.set_ylim(bottom - 0.15 * (top - bottom), top + 0.15 * (top - bottom))
    axes.set_yticks([bottom, top] if top > bottom else [bottom])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(_number)
    part = 100 * _share(explanation, feature)
    axes.set_title(f"{explanation.feature_names[feature]}  ({part:.0f} % of what speaks for it{scale})", fontsize=9, loc="left", color=INK, pad=3)
    _quiet(axes)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    if last:
        axes.set_xlabel("step (newest on the right); band: 90 % of benign rows", fontsize=8)
    else:
        axes.set_xticklabels([])


def attribution_figure(explanation: Explanation, features: int = 12) -> Figure:
    """Attributions by step of the features with the largest totals, and the totals; red speaks for the predicted class, blue against it."""
    total = explanation.attributions.sum(axis=0)
    chosen = np.argsort(-np.abs(total), kind="stable")[:features]
    values = explanation.attributions[:, chosen].T  # (features, T)
    strongest = max(float(np.quantile(np.abs(values), 0.98)), 1e-12)  # one cell may not wash out all others
    figure = canvas(10, 0.3 * len(chosen) + 2.1)
    figure.suptitle(_headline(explanation, figure.get_figwidth()), fontsize=11, color=INK, x=0.01, ha="left")
    heat, bars = figure.subplots(1, 2, width_ratios=[3, 2], sharey=True)
    image = heat.imshow(values, aspect="auto", cmap="RdBu_r", vmin=-strongest, vmax=strongest)
    heat.set_yticks(range(len(chosen)), [explanation.feature_names[f] for f in chosen])
    heat.set_xlabel("step (newest on the right)", fontsize=9)
    heat.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    heat.tick_params(labelsize=9, length=2, colors=INK)
    figure.colorbar(image, ax=heat, shrink=0.85, aspect=25, pad=0.02, extend="both").ax.tick_params(labelsize=7, length=2)
    bars.barh(range(len(chosen)), total[chosen], color=[FOR if value > 0 else AGAINST for value in total[chosen]], height=0.65)
    bars.axvline(0, color=INK, lw=0.8)
    room = 0.75 * np.ptp(np.append(total[chosen], 0.0))
    bars.set_xlim(min(0.0, float(total[chosen].min())) - 0.02 * room, max(0.0, float(total[chosen].max())) + room)
    for row, feature in enumerate(chosen):
        bars.text(max(total[feature], 0.0), row, "  " + place_in_words(float(explanation.percentile[feature])), va="center", fontsize=7, color=MUTED)
    bars.set_xlabel(f"sum over steps (all {len(total)} features: {total.sum():+.1f})", fontsize=9)
    bars.tick_params(labelleft=False)
    _quiet(bars, 8)
    return figure


def curve_figure(curves: Curves, name: str) -> Figure:
    """Mean deletion and insertion curve, attributions against random order, with 95 % bands over windows of the mean."""
    figure = canvas(9, 3.6)
    areas = curves.areas()
    figure.suptitle(
        f"{name[:1].upper()}{name[1:]}: do the attributions find what matters? ({len(curves.deletion)} windows)", fontsize=11, color=INK, x=0.01, ha="left"
    )
    for axes, key, title in zip(
        figure.subplots(1, 2, sharey=True), ("deletion", "insertion"), ("taken out: lower is better", "put in: higher is better"), strict=True
    ):
        for order, colour, label in ((key, FOR, "strongest attribution first"), (f"{key}_random", MUTED, "random order")):
            values = getattr(curves, order)  # (N, K)
            mean, error = values.mean(axis=0), 1.96 * values.std(axis=0) / np.sqrt(len(values))
            axes.plot(100 * curves.share, mean, color=colour, lw=1.8, label=f"{label} (area {areas[order].mean():.2f})")
            axes.fill_between(100 * curves.share, mean - error, mean + error, color=colour, alpha=0.15, lw=0)
        axes.set_xlabel("cells (step, feature) exchanged, %", fontsize=9)
        axes.set_title(title, fontsize=10, loc="left", color=INK)
        axes.set_ylim(0, 1)
        axes.legend(frameon=False, fontsize=8)
        _quiet(axes)
        if key == "deletion":
            axes.set_ylabel("probability of the predicted class", fontsize=9)
    return figure


def tracking_figure(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Entropy and distance of attention over epochs, a line a head, a colour a layer (`AttentionTracker.rows`)."""
    figure = canvas(9, 3.4)
    lines = sorted({(int(row["layer"]), int(row["head"])) for row in rows})
    colours = ("#0b7285", "#e67700", "#862e9c", "#2b8a3e")
    titles = {"entropy": "entropy, share of an even spread", "distance": "mean |looking - looked-at|, steps"}
    for axes, (key, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        ends = []
        for layer, head in lines:
            mine = [row for row in rows if (row["layer"], row["head"]) == (layer, head)]
            axes.plot([row["epoch"] for row in mine], [row[key] for row in mine], color=colours[layer % 4], lw=1.4, alpha=0.8, marker=".")
            ends.append((mine[-1][key], mine[-1]["epoch"], layer, head))
        gap, lowest = 0.04 * float(np.ptp(axes.get_ylim())), -np.inf
        for value, epoch, layer, head in sorted(ends):  # names from below, none over another
            lowest = max(value, lowest + gap)
            axes.text(epoch, lowest, f"  layer {layer + 1}, head {head + 1}", fontsize=7, va="center", color=colours[layer % 4])
        axes.set_xlim(right=axes.get_xlim()[1] + 0.22 * np.ptp(axes.get_xlim()))
        axes.set_title(title, fontsize=10, loc="left", color=INK)
        axes.set_xlabel("epoch", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _quiet(axes)
    figure.suptitle("Attention while training, on the same windows", fontsize=11, color=INK, x=0.01, ha="left")
    return figure


def _headline(explanation: Explanation, inches: float) -> str:
    """What was predicted, how surely, and why, in lines that fit a figure of that width."""
    lines = [f"Predicted {explanation.predicted}, {100 * explanation.confidence:.0f} % sure"]
    told, unit, rest = ("because " + (", ".join(explanation.reasons()) or "of no one feature")).partition(" percentile of benign")
    why = told + unit + rest.replace(unit, "") if unit else told  # the unit once is enough
    return "\n".join([*lines, *textwrap.wrap(why, int(12 * inches))])


def _number(value: float, _: object = None) -> str:
    """Three digits: `0.05`, `12.3`, `4.5k`, `1.2M`."""
    return f"{value:.3g}" if abs(value) < 1000 else EngFormatter(places=1, sep="")(value)


def _share(explanation: Explanation, feature: int) -> float:
    total = explanation.attributions.sum(axis=0)
    return float(total[feature] / max(total[total > 0].sum(), 1e-12))


def canvas(width: float, height: float) -> Figure:
    """An empty figure, apart from any window system."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)  # no global pyplot state, no window system
    return figure


def _quiet(axes: Any, size: int = 7) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=size, colors=INK, length=2)
