"""Figures of detectors side by side. Each returns a matplotlib figure with its own canvas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from src.evaluation.detection import Values
from src.evaluation.figures import ACCENT, INK, MUTED, _canvas, _plain

COLOURS = (ACCENT, "#d9480f", MUTED, "#5f3dc4")


def reliability_figure(curves: Mapping[str, tuple[Values, Values, Values]], source: str) -> Figure:
    """Accuracy over confidence, a panel a detector: mean confidence, accuracy and share of windows, each (bins,), NaN where a bin is empty."""
    figure, panels = _canvas(max(3.4 * len(curves), 6.8), 4.8, nrows=2, ncols=len(curves), sharex=True, height_ratios=(3, 1), squeeze=False)
    for (upper, lower), (name, (confidence, right, share)), colour in zip(panels.T, curves.items(), COLOURS, strict=False):
        held = share > 0
        error = float((share * np.abs(np.nan_to_num(confidence - right))).sum())
        upper.plot([0, 1], [0, 1], color=MUTED, lw=1, ls="--")
        upper.plot(confidence[held], right[held], color=colour, marker="o", ms=4, lw=1.6, clip_on=False)
        upper.set_title(name, loc="left", fontsize=10, color=INK)
        upper.text(0.97, 0.04, f"calibration error {error:.3f}", ha="right", fontsize=9, color=INK, transform=upper.transAxes)
        upper.set_xlim(0, 1)
        upper.set_ylim(0, 1)
        middle = (np.arange(len(share)) + 0.5) / len(share)
        lower.bar(middle, share, width=0.9 / len(share), color=colour)
        lower.set_xlabel("confidence")
        for axes in (upper, lower):
            _plain(axes)
    panels[0, 0].set_ylabel("share right")
    panels[1, 0].set_ylabel("windows")
    for axes in panels[1]:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.suptitle(f"Held-out windows, {source} traffic: is a detector as often right as it says?", x=0.01, ha="left", fontsize=11, color=INK)
    return figure


def confusion_figure(truth: NDArray[np.integer], called: NDArray[np.integer], names: Sequence[str], source: str) -> Figure:
    """Confusion matrix of (W,) windows in per cent of each true class; cells below half a per cent stay empty. Classes that do not occur have no row."""
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (truth, called), 1)
    present = np.flatnonzero(counts.sum(axis=1))
    share = 100 * counts[present] / counts[present].sum(axis=1, keepdims=True)
    figure, axes = _canvas(7, 0.6 * len(present) + 1.6)
    axes.imshow(share, cmap="GnBu", vmin=0, vmax=100, aspect="auto")
    for row, column in np.argwhere(share >= 0.5):
        axes.text(column, row, f"{share[row, column]:.0f}", ha="center", va="center", fontsize=9, color="white" if share[row, column] > 55 else INK)
    axes.set_xticks(range(len(names)), names, fontsize=9)
    axes.set_yticks(range(len(present)), [f"{name} ({count:,.0f})" for name, count in zip(names, counts.sum(axis=1), strict=True) if count > 0], fontsize=9)
    axes.set_xlabel("called")
    axes.set_title(f"Held-out windows, {source} traffic: % of each family", loc="left", fontsize=11, color=INK)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def risk_figure(curves: Mapping[str, tuple[Values, Values]], coverage: float, source: str) -> Figure:
    """Share of errors among the windows kept, over the share kept, least doubtful first; `coverage` is marked."""
    figure, axes = _canvas(7, 4.2)
    for (name, (kept, risk)), colour in zip(curves.items(), COLOURS, strict=False):
        shown = np.unique(np.linspace(len(kept) // 100, len(kept) - 1, 400).astype(int))  # the first few windows are noise
        axes.plot(kept[shown], risk[shown], color=colour, lw=1.8, label=name)
        here = int(coverage * len(kept)) - 1
        axes.plot(kept[here], risk[here], "o", color=colour, ms=5)
        axes.annotate(f"{risk[here]:.3f}", (kept[here], risk[here]), xytext=(-4, 6), textcoords="offset points", ha="right", fontsize=9, color=colour)
    axes.axvline(coverage, color=INK, lw=0.8, ls=":")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("windows decided, the least doubtful first; the rest is left to a person")
    axes.set_ylabel("share of errors among them")
    axes.set_title(f"Held-out windows, {source} traffic: errors left when the doubtful are set aside", loc="left", fontsize=11, color=INK)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    _plain(axes)
    return figure


def scores_figure(rows: Sequence[Mapping[str, Any]], accented: Sequence[str], source: str) -> Figure:
    """Macro-F1 of each candidate with its interval, the best on top; rows hold `candidate, macro_f1, low, high`."""
    ordered = sorted(rows, key=lambda row: -row["macro_f1"])
    figure, axes = _canvas(8, 0.42 * len(rows) + 1.2)
    places = np.arange(len(ordered))
    for place, row in zip(places, ordered, strict=True):
        colour = ACCENT if row["candidate"] in accented else MUTED
        axes.plot([row["low"], row["high"]], [place, place], color=colour, lw=3, solid_capstyle="round")
        axes.plot(row["macro_f1"], place, "o", color=colour, ms=8)
        axes.text(row["high"] + 0.006, place, f"{row['macro_f1']:.3f}", va="center", fontsize=9, color=INK)
    axes.set_yticks(places, [row["candidate"] for row in ordered])
    axes.set_xlim(min(row["low"] for row in ordered) - 0.02, max(row["high"] for row in ordered) + 0.04)
    axes.set_ylim(len(ordered) - 0.5, -0.5)
    axes.set_xlabel("macro-F1, mean over seeds, with its 95 % interval")
    axes.set_title(f"Held-out windows, {source} traffic", loc="left", fontsize=11, color=INK)
    axes.grid(axis="x", color="#e4e7eb", lw=0.8)
    axes.set_axisbelow(True)
    _plain(axes)
    return figure
