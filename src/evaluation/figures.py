"""Figures of an evaluation. Each returns a matplotlib figure with its own canvas, so that no global state is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

INK, MUTED, ACCENT = "#1f2933", "#8a94a0", "#0b7285"
STAGE_COLOURS = ("#f1f3f5", "#ffe8a3", "#ffb866", "#f06548", "#a3123a")
CONTROL_COLOURS = ("none", "#4dabf7", "#1864ab", "#5f3dc4", "#2b8a3e")


@dataclass(frozen=True)
class Timeline:
    """One episode of T steps on D devices."""

    devices: tuple[str, ...]
    stage_names: tuple[str, ...]
    control_names: tuple[str, ...]
    stage: NDArray[np.int64]
    """(T, D) index into `stage_names`."""
    control: NDArray[np.int64]
    """(T, D) index into `control_names`, the strongest in force."""
    risk: NDArray[np.float32]
    """(T, D) running risk."""
    reward: NDArray[np.float64]
    """(T,)"""
    step_seconds: float


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


def timeline_figure(timeline: Timeline, title: str) -> Figure:
    """Device x time: stage of the attack as colour, control in force as a bar below it; running risk; loss a step."""
    steps, count = timeline.stage.shape
    figure, axes = _canvas(12, 0.42 * count + 3.2, nrows=3, ncols=1, sharex=True, height_ratios=[count * 0.42, 0.9, 0.9])
    stages = ListedColormap(STAGE_COLOURS)
    edges = np.arange(steps + 1) * timeline.step_seconds / 60.0  # minutes
    axes[0].pcolormesh(edges, np.arange(count + 1) - 0.5, timeline.stage.T, cmap=stages, norm=BoundaryNorm(np.arange(6) - 0.5, 5))
    for d in range(count):
        for kind, colour in list(enumerate(CONTROL_COLOURS))[1:]:
            active = timeline.control[:, d] == kind
            axes[0].fill_between(edges[:-1], d + 0.18, d + 0.42, where=active, step="post", color=colour, lw=0)
    axes[0].set_yticks(range(count), timeline.devices, fontsize=9)
    axes[0].invert_yaxis()
    axes[0].set_title(title, loc="left", fontsize=11, color=INK)
    named = [Patch(facecolor=colour, edgecolor=MUTED, label=name.lower()) for name, colour in zip(timeline.stage_names, STAGE_COLOURS, strict=True)]
    named += [Patch(facecolor=c, label=n.replace("_", " ").lower()) for n, c in list(zip(timeline.control_names, CONTROL_COLOURS, strict=True))[1:]]
    figure.legend(handles=named, loc="outside lower center", ncols=9, frameon=False, fontsize=9)
    axes[1].plot(edges[1:], timeline.risk.max(axis=1), color=ACCENT, lw=1.4, label="highest")
    axes[1].plot(edges[1:], timeline.risk.mean(axis=1), color=MUTED, lw=1.2, label="mean")
    axes[1].set_ylim(0, 1)
    axes[1].set_ylabel("risk")
    axes[1].legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
    axes[2].fill_between(edges[1:], timeline.reward, color="#f06548", alpha=0.7, lw=0, step="pre")
    axes[2].set_ylabel("reward")
    axes[2].set_xlabel("minutes")
    for one in axes:
        _plain(one)
    return figure
