"""Figures of an evaluation. Each returns a matplotlib figure with its own canvas, so that no global state is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED, ACCENT = "#1f2933", "#8a94a0", "#0b7285"


def _canvas(width: float, height: float, **grid: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**grid)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)


def comparison_figure(rows: Sequence[Mapping[str, Any]], source: str) -> Figure:
    """Mean return of each policy with its interval; higher (nearer to 0) is better."""
    figure, axes = _canvas(9, 0.5 * len(rows) + 1.4)
    places = np.arange(len(rows))
    values = np.array([row["return"] for row in rows])
    spread = np.array([[row["return"] - row["low"], row["high"] - row["return"]] for row in rows]).T
    colours = [ACCENT if row["policy"] == "agent" else MUTED for row in rows]
    axes.barh(places, values, color=colours, height=0.62)
    axes.errorbar(values, places, xerr=spread, fmt="none", ecolor=INK, capsize=3, lw=1.2)
    for place, row in zip(places, rows, strict=True):
        axes.text(row["low"] + 0.01 * values.min(), place, f"{row['return']:.1f} ", ha="right", va="center", fontsize=9, color=INK)
    axes.set_yticks(places, [row["policy"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(1.12 * min(row["low"] for row in rows), 0)
    axes.set_xlabel("mean return an episode, 95 % interval (0 is a network that loses nothing)")
    axes.set_title(f"Held-out episodes, {source} traffic", loc="left", fontsize=11, color=INK)
    _plain(axes)
    return figure


def learning_figure(curves: Mapping[str, Sequence[tuple[int, float]]], references: Mapping[str, float], source: str) -> Figure:
    """Mean training return over environment steps, a line a seed, with levels to compare with."""
    figure, axes = _canvas(8, 4.2)
    for name, points in curves.items():
        steps, values = np.array(points).T
        axes.plot(steps, values, lw=1.6, label=name)
    for (name, level), style in zip(references.items(), ("--", ":", "-."), strict=False):
        axes.axhline(level, color=INK, lw=1, ls=style, label=name)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("mean return of finished episodes")
    axes.set_title(f"Training, {source} traffic", loc="left", fontsize=11, color=INK)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    _plain(axes)
    return figure
