"""Figures of an evaluation. Each returns a matplotlib figure with its own canvas, so that no global state is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED, ACCENT = "#1f2933", "#8a94a0", "#0b7285"
COLOURS = (MUTED, "#d9480f", ACCENT, "#5f3dc4")
"""Of a few policies side by side: best constant, best heuristic, agent, planner."""


def _canvas(width: float, height: float, **grid: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**grid)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)


def comparison_figure(sides: Mapping[str, Sequence[Mapping[str, Any]]], agent: str, source: str) -> Figure:
    """Mean return of each policy with its interval, a panel a side with attackers; higher (nearer to 0) is better. Ordered by the first panel."""
    names = [name for name in sides if name != "attack-free"]
    order = [row["policy"] for row in sorted(sides[names[0]], key=lambda row: -row["return"])]
    figure, panels = _canvas(11, 0.42 * len(order) + 1.3, ncols=len(names), sharey=True, squeeze=False)
    heading = {"seen": "attackers of training", "held out": "attackers never met"}
    for axes, name in zip(panels[0], names, strict=True):
        rows = sorted(sides[name], key=lambda row: order.index(row["policy"]))
        places = np.arange(len(rows))
        values = np.array([row["return"] for row in rows])
        spread = np.array([[row["return"] - row["low"], row["high"] - row["return"]] for row in rows]).T
        colours = [ACCENT if row["policy"] == agent else MUTED for row in rows]
        axes.barh(places, values, color=colours, height=0.62)
        axes.errorbar(values, places, xerr=spread, fmt="none", ecolor=INK, capsize=3, lw=1.2)
        for place, row in zip(places, rows, strict=True):
            axes.text(row["low"] + 0.015 * values.min(), place, f"{row['return']:.1f}", ha="right", va="center", fontsize=9, color=INK)
        axes.set_yticks(places, [row["policy"] for row in rows])
        axes.set_xlim(1.18 * min(row["low"] for row in rows), 0)
        axes.set_title(heading.get(name, name), loc="left", fontsize=10, color=INK)
        axes.set_xlabel("mean return, 95 % interval (0: nothing lost)")
        _plain(axes)
    panels[0, 0].invert_yaxis()
    figure.suptitle(f"Held-out traces, {source} traffic", x=0.01, ha="left", fontsize=11, color=INK)
    return figure


def profile_figure(rows: Sequence[Mapping[str, Any]], agent: str, source: str) -> Figure:
    """Performance profile: share of runs and episodes above each level of the return, with bands; a curve further up and right is better."""
    figure, axes = _canvas(8, 4.2)
    for name, colour in _colours([row["policy"] for row in rows], agent):
        mine = [row for row in rows if row["policy"] == name]
        levels, share, low, high = (np.array([row[key] for row in mine]) for key in ("level", "share", "share_low", "share_high"))
        axes.plot(levels, share, color=colour, lw=2, label=name)
        axes.fill_between(levels, low, high, color=colour, alpha=0.15, lw=0)
    axes.set_ylim(0, 1.01)
    axes.set_xlim(right=0)
    axes.set_xlabel("return of an episode")
    axes.set_ylabel("share of runs and episodes above it")
    axes.set_title(f"Performance profile against attackers never met, {source} traffic", loc="left", fontsize=11, color=INK)
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    _plain(axes)
    return figure


def attacker_figure(rows: Sequence[Mapping[str, Any]], policies: Sequence[str], agent: str, source: str) -> Figure:
    """Mean return by attacker, for a few policies; attackers never met are marked."""
    figure, axes = _canvas(9, 4.2)
    places, width = np.arange(len(rows)), 0.8 / len(policies)
    for i, (name, colour) in enumerate(_colours(policies, agent)):
        axes.bar(places + (i - (len(policies) - 1) / 2) * width, [row[name] for row in rows], width=0.92 * width, color=colour, label=name)
    axes.set_xticks(places, [row["attacker"].replace("_", " ") + ("\n(never met)" if row["side"] == "held out" else "") for row in rows], fontsize=9)
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("mean return (0: nothing lost)")
    axes.set_title(f"By attacker, {source} traffic", loc="left", fontsize=11, color=INK, pad=34)
    axes.legend(frameon=False, fontsize=9, loc="lower right", ncols=len(policies))
    low, _ = axes.get_ylim()
    axes.set_ylim(1.12 * low, 0)  # room for the legend
    axes.grid(axis="y", color="#e4e7eb", lw=0.8)
    axes.set_axisbelow(True)
    _plain(axes)
    axes.spines[["bottom"]].set_visible(False)
    return figure


SAFETY = {
    "false_isolations_per_device_day": "devices cut off for nothing,\na device-day",
    "false_downtime_hours_per_device_day": "hours cut off for nothing,\na device-day",
    "orders_per_hour": "orders an hour",
    "violations": "steps a protected device was\ncut off, an episode",
}
"""What a defender must not do where nobody attacks; less is better."""


def safety_figure(rows: Sequence[Mapping[str, Any]], agent: str, source: str) -> Figure:
    """What each policy does on days without an attack, on scales that keep zeros in sight."""
    figure, panels = _canvas(11, 0.34 * len(rows) + 1.5, ncols=len(SAFETY), sharey=True)
    places = np.arange(len(rows))
    for axes, (key, heading) in zip(panels, SAFETY.items(), strict=True):
        values = np.array([row[key] or 0.0 for row in rows])
        axes.barh(places, values, color=[ACCENT if row["policy"] == agent else MUTED for row in rows], height=0.62)
        for place, value in zip(places, values, strict=True):
            axes.text(value, place, f" {value:.3g}", va="center", fontsize=9, color=INK)
        axes.set_xscale("symlog", linthresh=1.0)
        axes.set_xlim(0, max(10.0, 10 * values.max()))  # room for the numbers
        axes.set_title(heading, loc="left", fontsize=9, color=INK)
        _plain(axes)
        axes.set_xticks([])
        axes.set_xticks([], minor=True)
        axes.spines[["bottom"]].set_visible(False)
    panels[0].set_yticks(places, [row["policy"] for row in rows])
    panels[0].invert_yaxis()
    figure.suptitle(f"Attack-free episodes, {source} traffic (logarithmic above 1)", x=0.01, ha="left", fontsize=11, color=INK)
    return figure


def learning_figure(curves: Mapping[str, Sequence[tuple[int, float]]], references: Mapping[str, float], source: str) -> Figure:
    """Mean training return over environment steps, a line a seed, with levels to compare with."""
    figure, axes = _canvas(8, 4.2)
    for name, points in curves.items():
        steps, values = np.array(points).T
        axes.plot(steps, values, lw=1.6, marker="o", ms=4, markevery=[-1], label=name)
    for (name, level), style in zip(references.items(), ("--", ":", "-."), strict=False):
        axes.axhline(level, color=INK, lw=1, ls=style, label=f"{name} (evaluation)")
    axes.set_xlabel("environment steps")
    axes.set_ylabel("mean return of finished episodes")
    axes.set_title(f"Training, {source} traffic", loc="left", fontsize=11, color=INK)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    _plain(axes)
    return figure


def _colours(names: Sequence[str], agent: str) -> list[tuple[str, str]]:
    """Each name once, with a colour; the agent's is always the same."""
    others = iter([colour for colour in COLOURS if colour != ACCENT])
    return [(name, ACCENT if name == agent else next(others)) for name in dict.fromkeys(names)]
