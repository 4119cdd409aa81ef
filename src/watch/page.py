"""A watch as one self-contained page: what happened when, what was recommended, and why."""

from __future__ import annotations

import base64
import html
import io
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure

from src.artifacts import command, git_commit, write_text
from src.evaluation.report import STYLE
from src.watch.findings import Counters, Finding, clock

MOST_FINDINGS = 50_000
"""That a page remembers, the newest."""
SHOWN = 40
"""Alerts in the table."""
WRAPPED = ".wrapped :is(td,th):last-child{white-space:normal;text-align:left;min-width:26em}"
"""Style of a last column that may hold a sentence."""
UNKNOWN = (
    "What a live site cannot know is shown to the agent as follows: no control is in force and none was paid for (nothing is carried out), no device is "
    "patched, the time left is always whole, and a device is silent where no whole window of it came in an interval. The belief is told that its advice was "
    "not followed, and how often this site is attacked."
)


class Incident:
    """Gathers findings for the page; what is oldest is forgotten."""

    def __init__(self) -> None:
        """Begin empty."""
        self.findings: deque[Finding] = deque(maxlen=MOST_FINDINGS)

    def write(self, path: Path, title: str, devices: Sequence[str], counters: Counters, words: Mapping[str, str]) -> Path:
        """Write the page.

        Args:
            path: of it.
            title: above it.
            devices: of the site, in their order.
            counters: of the watch.
            words: more of what the page shall say, by heading.

        Raises:
            UserError: when it cannot be written.
        """
        found, seen = list(self.findings), [name for name in devices if any(one.device == name for one in self.findings)]
        alerts = [one for one in found if one.alert]
        first = next((one for one in found if one.order != "MONITOR"), None)
        cards = [
            (f"{counters.frames:,}", "frames"), (f"{counters.windows:,}", "windows read"), (f"{len(alerts):,}", "alerts, with advice that was given again"),
            (f"{counters.dropped:,}", "frames dropped"),
            ("none" if first is None else html.escape(first.order), "first order" if first is None else f"first order, {clock(first.time)} UTC"),
        ]  # fmt: skip
        parts = [
            f"<h1>{html.escape(title)}</h1>",
            f"<p class=note><code>{html.escape(command())}</code>, commit <code>{html.escape(git_commit())}</code></p>",
            "".join(f"<p class=note><b>{html.escape(name)}</b>: {html.escape(text)}</p>" for name, text in words.items()),
            "<div class=cards>" + "".join(f"<div class=card><b>{number}</b>{html.escape(text)}</div>" for number, text in cards) + "</div>",
            "<h2>Risk of each device, and what was recommended</h2>",
            _figure(timeline(found, seen)) if seen else "<p class=note>No device finished a window.</p>",
            "<h2>Devices</h2>", _devices(found, seen),
            f"<h2>Alerts</h2><p class=note>The first {SHOWN} and every change of advice after them.</p>", _alerts(alerts),
            f"<h2>What is not known</h2><p class=note>{html.escape(UNKNOWN)}</p>",
        ]  # fmt: skip
        head = f"<meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}{WRAPPED}</style>"
        page = f"<!doctype html><html lang=en>{head}<body>{''.join(parts)}</body></html>\n"
        write_text(path, page)
        return path


def timeline(found: Sequence[Finding], devices: Sequence[str]) -> bytes:
    """A PNG: risk of each device over time; orders of the agent above it, of the rule below."""
    figure = Figure(figsize=(12, 1.2 + 1.35 * len(devices)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(devices), 1, sharex=True, squeeze=False)[:, 0]
    colours = {"RATE_LIMIT": "#e8a33d", "BLOCK": "#d9480f", "ISOLATE": "#a3123a", "RESTORE": "#5f3dc4", "RELEASE": "#2b8a3e"}
    for axis, name in zip(axes, devices, strict=True):
        mine = [one for one in found if one.device == name]
        time, risk = _dates([one.time for one in mine]), np.array([one.risk for one in mine])
        flagged = np.array([one.flagged for one in mine])
        axis.plot(time, risk, color="#0b7285", linewidth=0.8, alpha=0.7)
        axis.scatter(time[~flagged], risk[~flagged], s=5, color="#0b7285")
        axis.scatter(time[flagged], risk[flagged], s=9, color="#a3123a")
        for height, marker, orders in ((1.12, "v", [one.order for one in mine]), (-0.12, "^", [one.rule for one in mine])):
            for kind, colour in colours.items():
                chosen = np.array([order.startswith(kind) for order in orders])
                axis.scatter(time[chosen], np.full(int(chosen.sum()), height), s=18, marker=marker, color=colour, clip_on=False)
        axis.set_ylim(-0.2, 1.2)
        axis.set_yticks([0, 0.5, 1])
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.spines[["top", "right"]].set_visible(False)
    locator = AutoDateLocator()
    axes[-1].xaxis.set_major_locator(locator)
    axes[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator))
    handles = [axes[0].scatter([], [], s=18, color=colour, label=kind) for kind, colour in colours.items()]
    figure.legend(handles=handles, ncols=len(handles), loc="outside upper right", frameon=False, fontsize=8)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def _figure(picture: bytes) -> str:
    said = "Risk of each window (red: above the site's threshold). Marks above: what the agent would order; below: what the comparison rule would."
    encoded = base64.b64encode(picture).decode()
    return f'<figure><img alt="timeline" src="data:image/png;base64,{encoded}"><figcaption>{said}</figcaption></figure>'


def _dates(times: Sequence[float]) -> np.ndarray:
    """Times as matplotlib has them; those that no calendar holds at its ends."""
    bounded = np.clip(np.array(times), 0.0, 4e9)
    return np.asarray(date2num(bounded.astype("datetime64[s]") + np.round(1e6 * (bounded % 1)).astype("timedelta64[us]")))


def _devices(found: Sequence[Finding], devices: Sequence[str]) -> str:
    rows = []
    for name in devices:
        mine = [one for one in found if one.device == name]
        ordered = [[getattr(one, who) for one in mine if getattr(one, who) != "MONITOR"] for who in ("order", "rule")]
        read = [one for one in mine if not one.again] or mine  # where the windows themselves were forgotten
        means = (np.mean([one.flagged for one in read]), np.mean([one.risk for one in read]), max(one.held for one in mine))
        rows.append(
            [
                name, ", ".join(mine[0].addresses), f"{len(read):,}", *(f"{mean:.3f}" for mean in means), *(f"{len(orders):,}" for orders in ordered),
            ]
        )  # fmt: skip
    return _table(["device", "addresses", "windows", "share flagged", "mean risk", "largest foothold belief", "orders, agent", "orders, rule"], rows)


def _alerts(alerts: Sequence[Finding]) -> str:
    changed = [one for before, one in zip([None, *alerts], alerts, strict=False) if before is None or one.order != before.order]
    chosen = [*alerts[:SHOWN], *(one for one in changed if one not in alerts[:SHOWN])][: 3 * SHOWN]
    rows = [
        [
            clock(one.time), one.device, f"{one.risk:.2f}", f"{one.uncertainty:.2f}", f"{one.anomaly:.2f}", f"{one.predicted} {one.confidence:.2f}",
            f"{one.held:.2f}", one.order, one.rule, "; ".join(one.reasons),
        ]
        for one in chosen
    ]  # fmt: skip
    return _table(["time (UTC)", "device", "risk", "doubt", "anomaly", "looks like", "foothold", "agent", "rule", "because"], rows, "wrapped")


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], style: str = "") -> str:
    if not rows:
        return "<p class=note>None.</p>"
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=scroll><table class='{style}'><tr>{top}</tr>{body}</table></div>"
