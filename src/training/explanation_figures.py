"""Pictures of explanations, with canvases of their own: attention with the features that it looked at, attributions, curves, tracking."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from src.models.explanations import Curves, Explanation

INK, MUTED, ACCENT, AGAINST = "#1f2933", "#8a94a0", "#c92a2a", "#1864ab"


def _canvas(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    return figure


def _quiet(axes: Any, *, size: int = 8) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=size, colors=INK, length=2)


def headline(explanation: Explanation, reasons: int = 3) -> str:
    """What was predicted, how surely, and why, in words; on two lines or three."""
    why = "; ".join(explanation.reasons(reasons)) or "no feature speaks for it"
    first = f"Predicted {explanation.predicted}, {100 * explanation.confidence:.0f} % sure"
    return "\n".join([first, *textwrap.wrap(why, 100)])


def _series(axes: Any, explanation: Explanation, feature: int, last: bool) -> None:
    """One feature over the window, on a signed logarithmic axis, over the band of benign rows."""
    values = explanation.window[:, feature]
    low, high = explanation.reference.band[:, feature]
    steps = np.arange(len(values))
    axes.fill_between([-0.4, len(values) - 0.6], low, high, color="#d0ebff", lw=0)
    axes.plot(steps, values, color=ACCENT, lw=1.6, marker="o" if len(values) <= 30 else None, ms=3)
    every = np.concatenate([values, [low, high]])
    if np.abs(every).max() > 50 * max(np.abs(every[every != 0]).min(initial=np.inf), 1e-12):
        smallest = max(float(np.abs(every[every != 0]).min()), 1e-9)
        axes.set_yscale("symlog", linthresh=smallest)
    axes.set_title(f"{explanation.feature_names[feature]}: {100 * share(explanation, feature):.0f} % of the evidence", fontsize=9, loc="left", color=INK, pad=3)
    axes.set_xlim(-0.4, len(values) - 0.6)
    axes.locator_params(axis="y", nbins=3) if axes.get_yscale() == "linear" else axes.yaxis.set_major_locator(_few_decades(every))
    _quiet(axes)
    if last:
        axes.set_xlabel("time step (newest on the right)", fontsize=9)
    else:
        axes.set_xticklabels([])


def share(explanation: Explanation, feature: int) -> float:
    """Attribution of a feature as a share of all that speaks for the predicted class."""
    total = explanation.attributions.sum(axis=0)
    return float(total[feature] / max(total[total > 0].sum(), 1e-12))


def _few_decades(values: np.ndarray) -> Any:
    from matplotlib.ticker import FixedLocator

    largest, smallest = float(values.max()), float(values.min())
    return FixedLocator([float(f"{tick:.0e}") for tick in (smallest, largest)])
