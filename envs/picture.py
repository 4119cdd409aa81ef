"""The picture of `render_mode="rgb_array"`: the network by zones above, the episode as device x time and losses below.

One axes in pixels, y downwards, so that every place is a number here. What does not change in an episode is drawn once and
kept as pixels; a frame draws only the rest over it.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection, LineCollection, PolyCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.text import Text
from numpy.typing import NDArray

from envs.attackers import Stage
from envs.dynamics import Order
from envs.rendering import (
    CONTROL_COLOURS,
    CONTROLS,
    LETTERS,
    RISK_RAMP,
    STAGE_COLOURS,
    TERM_COLOURS,
    Frame,
    Scene,
    clock,
    situation,
    words,
)  # fmt: skip
from src.errors import UserError

WIDTH = 1280
DPI = 100
MARGIN = 24
ASIDE = 420
INK, MUTED, FAINT, RULE, PAPER, PANEL = "#1f2933", "#5f6b76", "#9aa5b1", "#d5dbe1", "#ffffff", "#f8f9fb"
ALARM = "#a3123a"
STAGE_RGB = np.array([to_rgb(colour) for colour in STAGE_COLOURS])
CONTROL_RGB = np.array([to_rgb(colour) for colour in CONTROL_COLOURS])
RISK_MAP = LinearSegmentedColormap.from_list("risk", RISK_RAMP)
PALETTE = tuple(
    tuple(round(255 * value) for value in colour)
    for colour in (
        *map(to_rgb, (*STAGE_COLOURS, *CONTROL_COLOURS, *TERM_COLOURS, INK, MUTED, FAINT, RULE, PAPER, PANEL, ALARM)),
        *RISK_MAP(np.linspace(0, 1, 32))[:, :3].tolist(),
    )
)
"""What an indexed picture must hold."""

STAGE_MARKS = ("", "?", "!", "\N{HEAVY MULTIPLICATION X}", "\N{HIGH VOLTAGE SIGN}")
"""Inside a node, so that a stage is read without its colour."""


class Box(NamedTuple):
    """A rectangle in pixels."""

    x: float
    y: float
    w: float
    h: float

    @property
    def right(self) -> float:
        """Right edge."""
        return self.x + self.w

    @property
    def bottom(self) -> float:
        """Lower edge."""
        return self.y + self.h


@dataclass(frozen=True)
class Places:
    """Where zones and devices lie."""

    zones: list[Box]
    nodes: NDArray[np.float64]
    """(D, 2) middle of each device's cell."""
    cell: tuple[float, float]


HEAD, PAD, GAP, GUTTER, FOLD = 26.0, 10.0, 26.0, 54.0, 30.0
"""Height of a zone's title; inner margin of a zone; between zones above each other; between columns; between parts of a folded one."""


def place(scene: Scene, area: Box) -> Places:
    """Zones in columns by their distance from the internet, devices in a grid inside; cells as large as fit.

    A column of too many zones is folded into several side by side.

    Raises:
        UserError: for a network that does not fit.
    """
    far = _distances(scene)
    sizes = [scene.zone.count(z) for z in range(len(scene.zones))]
    columns = [[z for z in range(len(sizes)) if far[z] == c] for c in range(max(far) + 1)]
    columns = [column for column in columns if column]
    for w in np.arange(230.0, 16.0, -2.0):
        for h in (0.9 * w, 0.78 * w, 0.68 * w):
            found = [_fold(column, sizes, w, h, area.h) for column in columns]
            total = sum(part[1] for part in found if part) + GUTTER * (len(columns) - 1)
            if None not in found and total <= area.w:
                stacks = [(stack, k, GUTTER if i == 0 else FOLD) for part in found if part for i, (stack, k) in enumerate(part[0])]
                return _settle(scene, sizes, area, stacks, w, h)
    raise UserError(f"a network of {len(sizes)} zones and {len(scene.devices)} devices does not fit the picture; look at it with render_mode='ansi'")


def _fold(column: list[int], sizes: list[int], w: float, h: float, high: float) -> tuple[list[tuple[list[int], int]], float] | None:
    """The narrowest way to set zones one above the other, in one stack or more: (zones, devices side by side) of each, and the width."""
    best: tuple[list[tuple[list[int], int]], float] | None = None
    for parts in range(1, len(column) + 1):
        each = math.ceil(len(column) / parts)
        stacks = []
        for stack in (column[i : i + each] for i in range(0, len(column), each)):
            longest = max(sizes[z] for z in stack)
            fits = (k for k in range(1, max(longest, 1) + 1) if sum(HEAD + PAD + math.ceil(sizes[z] / k) * h for z in stack) + GAP * (len(stack) - 1) <= high)
            stacks.append((stack, next(fits, 0)))
        wide = sum(k * w + 2 * PAD for _, k in stacks) + FOLD * (len(stacks) - 1)
        if all(k for _, k in stacks) and (best is None or wide < best[1]):
            best = stacks, wide
    return best


def _settle(scene: Scene, sizes: list[int], area: Box, stacks: list[tuple[list[int], int, float]], w: float, h: float) -> Places:
    def total() -> float:
        return sum(k * w + 2 * PAD + before for _, k, before in stacks) - stacks[0][2]

    w += min(0.3 * w, (area.w - total()) / sum(k for _, k, _ in stacks))  # what is left over in width goes to the cells
    zones = [Box(0, 0, 0, 0)] * len(sizes)
    nodes = np.zeros((len(scene.devices), 2))
    x = area.x + (area.w - total()) / 2 - stacks[0][2]
    for stack, k, before in stacks:
        x += before
        rows = [math.ceil(sizes[z] / k) for z in stack]
        y = area.y + (area.h - sum(HEAD + PAD + r * h for r in rows) - GAP * (len(stack) - 1)) / 2
        for z, r in zip(stack, rows, strict=True):
            zones[z] = Box(x, y, k * w + 2 * PAD, HEAD + PAD + r * h)
            members = [d for d in range(len(scene.devices)) if scene.zone[d] == z]
            for i, d in enumerate(members):
                nodes[d] = x + PAD + (i % k + 0.5) * w, y + HEAD + (i // k + 0.5) * h
            y = zones[z].bottom + GAP
        x += k * w + 2 * PAD
    return Places(zones, nodes, (w, h))


def _distances(scene: Scene) -> list[int]:
    """Steps from the internet to each zone, from 0; zones that nothing reaches come last."""
    far = dict.fromkeys(scene.exposed, 0)
    edge = list(scene.exposed)
    while edge:
        edge = [b for a, b in scene.reach if a in edge and b not in far and not far.update({b: far[a] + 1})]
    last = max(far.values(), default=-1) + 1
    return [far.get(z, last) for z in range(len(scene.zones))]


class Picture:
    """Draws the frames of one scene; `truth` colours by stage, else by risk."""

    def __init__(self, scene: Scene, truth: bool) -> None:
        """Lay the scene out and draw what stays."""
        self.scene, self.truth = scene, truth
        count = len(scene.devices)
        self.height = 580 if count <= 2 else 700 if count <= 8 else 800 if count <= 16 else 1080
        self._figure = Figure(figsize=(WIDTH / DPI, self.height / DPI), dpi=DPI, facecolor=PAPER)
        self._canvas = FigureCanvasAgg(self._figure)
        self._axes: Any = self._figure.add_axes((0, 0, 1, 1))
        self._axes.set_xlim(0, WIDTH)
        self._axes.set_ylim(self.height, 0)
        self._axes.axis("off")
        rows = float(np.clip(14 * count, 60, 200) if count <= 16 else np.clip(10 * count, 200, 400))
        self.loss = Box(132, self.height - 34 - 64, WIDTH - 132 - MARGIN, 64)
        self.time = Box(132, self.loss.y - 14 - rows, self.loss.w, rows)
        legend = self.time.y - 46
        area = Box(MARGIN + 92, 76, WIDTH - 2 * MARGIN - 92, legend - 12 - 76)
        self.places = place(scene, area)
        w, h = self.places.cell
        critical = np.sqrt(np.array(scene.criticality) / max(scene.criticality))
        longest = max(len(name) for name in scene.devices)
        self.label_size = float(np.clip(min(0.1 * h + 3.0, (w - 4) / (0.6 * longest)), 7.0, 13.0))
        self.bar_height = float(np.clip(0.045 * h, 3.0, 7.0))
        below = 0.09 * h + 1.4 * self.label_size + self.bar_height  # name and risk bar
        moat = float(np.clip(0.06 * h, 3.5, 9.0))  # room for a ring
        top = min((h - below) / 2 - 0.03 * h - moat, 0.26 * w, 48.0)
        self.radius = np.maximum(top * (0.45 + 0.55 * critical), 4.0)  # (D,) area grows with criticality
        self.centres = self.places.nodes - [0, below / 2]
        self.name_y = self.centres[:, 1] + top + moat + 0.02 * h + 0.6 * self.label_size
        self.bar_y = self.name_y + 0.8 * self.label_size + 0.015 * h
        self.order = sorted(range(count), key=lambda d: scene.zone[d])
        """Rows of the timeline: devices by zone."""
        self._zones()
        self._labels()
        self._legend(legend)
        self._frames_of_plots()
        self._canvas.draw()
        self._still = self._canvas.copy_from_bbox(self._figure.bbox)

    def draw(self, frames: Sequence[Frame]) -> NDArray[np.uint8]:
        """(height, 1280, 3) the last of an episode's frames, with the ones before it in the timeline."""
        self._canvas.restore_region(self._still)
        for artist in self._moving(frames):
            self._axes.add_artist(artist)
            self._axes.draw_artist(artist)
            artist.remove()
        return np.asarray(self._canvas.buffer_rgba())[..., :3].copy()

    # What stays.

    def _text(self, x: float, y: float, text: str, size: float = 11, colour: str = INK, **more: Any) -> Text:
        """A text in pixels; names are shown as they are, never read as mathematics."""
        settings = {"ha": "left", "va": "center", "parse_math": False, **more}
        return Text(x, y, text, fontsize=size * 72 / DPI, color=colour, **settings)

    def _keep(self, artist: Artist) -> None:
        self._axes.add_artist(artist)

    def _zones(self) -> None:
        """Boxes, the internet, and who reaches whom."""
        scene, zones = self.scene, self.places.zones
        middle = float(np.mean([[zones[z].y, zones[z].bottom] for z in scene.exposed])) if scene.exposed else self.time.y / 2
        first = min(box.x for box in zones)
        hub = (max(first - 92.0, MARGIN + 30.0), middle)
        also: dict[int, list[str]] = {z: [] for z in range(len(zones))}  # what cannot be drawn without crossing a third zone is said in the title
        for z in scene.exposed:
            end = (zones[z].x, float(np.clip(middle, zones[z].y + 20, zones[z].bottom - 20)))
            if not self._arrow((hub[0] + 24, hub[1]), end, (z,)):
                also[z].append("internet")
        both = {(a, b) for a, b in scene.reach if (b, a) in scene.reach}
        for a, b in scene.reach:
            if ((a, b) not in both or a < b) and not self._reach(a, b, (a, b) in both):
                also[b].append(scene.zones[a])
                if (a, b) in both:
                    also[a].append(scene.zones[b])
        self._keep(EllipseCollection([48], [48], [0], units="xy", offsets=[hub], offset_transform=self._axes.transData, fc=PAPER, ec=MUTED, lw=1.2, zorder=3))
        for squeeze in (20, 0):
            self._keep(
                EllipseCollection([squeeze], [48], [0], units="xy", offsets=[hub], offset_transform=self._axes.transData, fc="none", ec=FAINT, lw=0.7, zorder=3)
            )
        self._keep(Line2D([hub[0] - 24, hub[0] + 24], [hub[1], hub[1]], color=FAINT, lw=0.7, zorder=3))
        self._keep(self._text(hub[0], hub[1] + 36, "internet", 11, MUTED, ha="center"))
        for z, box in enumerate(zones):
            self._keep(
                FancyBboxPatch(
                    (box.x + 8, box.y + 8), box.w - 16, box.h - 16, boxstyle="round,pad=8,rounding_size=10", fc=PANEL, ec=RULE, lw=1, zorder=2
                )
            )  # fmt: skip
            title = self._text(box.x + 12, box.y + 14, scene.zones[z], 11.5, MUTED, weight="bold", zorder=3)
            self._keep(title)
            if also[z]:
                note = "\N{LEFTWARDS ARROW} " + ", ".join(also[z])
                start = title.get_window_extent(self._canvas.get_renderer()).x1 + 10
                room = int((box.right - 8 - start) / 6.0)
                where = (start, box.y + 14) if room >= min(len(note), 12) else (box.x + 4, box.bottom + 10)
                self._keep(self._text(*where, textwrap.shorten(note, max(room, 12), placeholder="…"), 10, MUTED, zorder=3))

    def _reach(self, a: int, b: int, both: bool) -> bool:
        """An arrow between two zones, across the gutter or through the gap between them; False where others are in the way."""
        one, other = self.places.zones[a], self.places.zones[b]
        if one.x < other.right and other.x < one.right:  # one above the other
            x, down = (max(one.x, other.x) + min(one.right, other.right)) / 2, one.y < other.y
            return self._arrow((x, one.bottom if down else one.y), (x, other.y if down else other.bottom), (a, b), both)
        right = one.x < other.x
        low, high = max(one.y, other.y) + 18, min(one.bottom, other.bottom) - 18
        level = (low + high) / 2
        # Arrows that lie on one another would look like one with two heads, so those to the left run below.
        shift = 0.0 if right or both else 14.0
        start, end = ((box.right if side else box.x, (level if low < high else box.y + box.h / 2) + shift) for box, side in ((one, right), (other, not right)))
        return self._arrow(start, end, (a, b), both)

    def _arrow(self, start: tuple[float, float], end: tuple[float, float], of: tuple[int, ...], both: bool = False) -> bool:
        """Draw an arrow between the zones `of`, unless it would cross another."""
        way = np.linspace(start, end, 60)
        for z, box in enumerate(self.places.zones):
            inside = (way > (box.x - 4, box.y - 4)) & (way < (box.right + 4, box.bottom + 4))
            if z not in of and np.logical_and.reduce(inside, axis=1).any():
                return False
        style = "<|-|>" if both else "-|>"
        self._keep(FancyArrowPatch(start, end, arrowstyle=style, mutation_scale=11, color=FAINT, lw=1.3, shrinkA=2, shrinkB=2, zorder=1, joinstyle="miter"))
        return True

    def _labels(self) -> None:
        """Names below the nodes, as large as the cells allow."""
        w = self.places.cell[0]
        fits = max(4, int((w - 2) / (0.58 * self.label_size)))
        for d, name in enumerate(self.scene.devices):
            x = self.centres[d, 0]
            shown = name if len(name) <= fits else name[: fits - 4] + "…" + name[-3:]
            heavy = "bold" if self.scene.protected[d] else "normal"
            self._keep(self._text(x, self.name_y[d], shown, self.label_size, INK, ha="center", zorder=4, weight=heavy))
            self._keep(Rectangle((x - 0.3 * w, self.bar_y[d]), 0.6 * w, self.bar_height, fc="#e3e7eb", ec="none", zorder=4))
            if self.scene.protected[d]:
                self._disc(self.centres[d], self.radius[d] + 3.5, ec=INK, lw=1.0, linestyle=":")

    def _disc(self, centre: Any, radius: float, **style: Any) -> None:
        settings = {"fc": "none", "zorder": 4, **style}
        self._keep(EllipseCollection([2 * radius], [2 * radius], [0], units="xy", offsets=[centre], offset_transform=self._axes.transData, **settings))

    def _legend(self, y: float) -> None:
        """One line that names every colour and mark."""
        x = float(MARGIN)
        entries: list[tuple[str, str, str]] = []
        if self.truth:
            entries += [("disc", colour, Stage(i).name.lower()) for i, colour in enumerate(STAGE_COLOURS)]
        entries += [
            ("pill" + letter, colour, order.name.lower().replace("_", " ")) for letter, colour, order in zip(LETTERS, CONTROL_COLOURS, CONTROLS, strict=True)
        ]
        if any(self.scene.protected):
            entries.append(("ring", INK, "protected"))
        if not self.truth:
            ramp = RISK_MAP(np.linspace(0, 1, 60))[None]
            self._image(ramp, Box(x, y - 5, 84, 10))
            self._keep(self._text(x + 90, y, "risk, 0 to 1", 10, MUTED))
            x += 90 + 84
        for kind, colour, name in entries:
            if kind == "disc":
                self._disc((x + 7, y), 6.5, fc=colour, ec=MUTED, lw=0.7)
                self._keep(
                    self._text(x + 7, y, STAGE_MARKS[STAGE_COLOURS.index(colour)], 9, PAPER if name == "impact" else INK, ha="center", zorder=5, weight="bold")
                )
            elif kind == "ring":
                self._disc((x + 7, y), 7, ec=colour, lw=1.0, linestyle=":")
            else:
                self._keep(self._pill(x + 7, y, kind[-1], colour, 9))
            label = self._text(x + 19, y, name, 10, MUTED)
            self._keep(label)
            x = label.get_window_extent(self._canvas.get_renderer()).x1 + 20
        self._keep(self._text(WIDTH - MARGIN, y, "node size: criticality     bar: risk     dashed ring: cut off", 10, MUTED, ha="right"))

    def _pill(self, x: float, y: float, text: str, colour: str, size: float, hollow: bool = False) -> Text:
        text = f"\N{THIN SPACE}{text}\N{THIN SPACE}" if len(text) == 1 else text  # an I alone would be a sliver
        style = {"boxstyle": "round,pad=0.22,rounding_size=0.45", "fc": PAPER if hollow else colour, "ec": colour if hollow else PAPER, "lw": 0.9}
        return self._text(x, y, text, size, colour if hollow else PAPER, ha="center", weight="bold", bbox=style, zorder=6)

    def _image(self, pixels: NDArray[Any], box: Box, keep: bool = True) -> AxesImage:
        image = AxesImage(self._axes, extent=(box.x, box.right, box.bottom, box.y), interpolation="nearest", origin="upper", zorder=3)
        image.set_data(pixels)
        if keep:
            self._keep(image)
        return image

    def _frames_of_plots(self) -> None:
        """Axes of the timeline and of the losses, and the names of rows and terms."""
        scene, time, loss = self.scene, self.time, self.loss
        self._keep(Rectangle((time.x, time.y), time.w, time.h, fc=PANEL, ec="none", zorder=2))
        what = "stage of the attack" if self.truth else "risk"
        self._keep(self._text(MARGIN, time.y - 14, f"{what}, device by step", 10.5, INK, weight="bold"))
        self._keep(
            self._text(WIDTH - MARGIN, time.y - 14, "lower edge of a row: control in force     tick: order given, white: release", 10, MUTED, ha="right")
        )
        high = time.h / len(scene.devices)
        if high >= 7.5:
            for row, d in enumerate(self.order):
                self._keep(self._text(time.x - 8, time.y + (row + 0.5) * high, scene.devices[d], min(10.5, high * 0.92), INK, ha="right"))
        edge = 0
        for z, name in enumerate(scene.zones):
            rows = scene.zone.count(z)
            if not rows:
                continue
            if high < 7.5:
                self._keep(self._text(time.x - 8, time.y + (edge + rows / 2) * high, f"{name} ({rows})", 10, INK, ha="right"))
            edge += rows
            if edge < len(scene.devices):
                self._keep(Line2D([time.x - 4, time.x], [time.y + edge * high] * 2, color=FAINT, lw=0.6, zorder=5))
        self._keep(Line2D([loss.x, loss.right], [loss.y, loss.y], color=RULE, lw=1, zorder=3))
        self._keep(self._text(MARGIN, loss.y + 4, "lost in a step", 10.5, INK, weight="bold", va="top"))
        for i, name in enumerate(scene.terms):
            column, row = divmod(i, 4)
            x, y = MARGIN + 58 * column, loss.y + 25 + 12 * row
            self._keep(Rectangle((x, y - 4), 8, 8, fc=TERM_COLOURS[i % len(TERM_COLOURS)], ec="none"))
            self._keep(self._text(x + 12, y, name, 9.5, MUTED))
        every = next(s for s in (5, 10, 20, 25, 50, 100, 200, 500, 1000, 5000, 10**9) if scene.horizon / s <= 12)
        for step in range(0, scene.horizon + 1, every):
            x = self._x(step)
            self._keep(Line2D([x, x], [loss.bottom, loss.bottom + 4], color=FAINT, lw=0.8))
            self._keep(self._text(x, loss.bottom + 13, str(step), 10, MUTED, ha="center"))
        self._keep(self._text(MARGIN, loss.bottom + 13, "step", 10, MUTED))
        self._keep(Line2D([MARGIN, WIDTH - MARGIN], [58, 58], color=RULE, lw=1))

    # What moves.

    def _x(self, step: float) -> float:
        return self.time.x + self.time.w * step / self.scene.horizon

    def _moving(self, frames: Sequence[Frame]) -> Iterator[Artist]:
        now = frames[-1]
        yield from self._title(now)
        yield from self._nodes(now)
        yield from self._timeline(frames)
        yield from self._losses(frames)
        x = self._x(now.step)
        yield Line2D([x, x], [self.time.y - 3, self.loss.bottom], color=INK, lw=1.1, zorder=7)

    def _title(self, now: Frame) -> Iterator[Artist]:
        scene = self.scene
        yield self._text(MARGIN, 22, scene.scenario, 19, INK, weight="bold")
        yield self._text(MARGIN, 44, f"{scene.traffic} traffic, step {now.step} of {scene.horizon}, {clock(scene, now.step)}", 11.5, MUTED)
        yield self._text(ASIDE, 22, textwrap.shorten(words(scene, now), 96, placeholder=" …"), 14, INK)
        said = situation(now) or "hidden state not shown"
        yield self._text(ASIDE, 44, said, 11.5, ALARM if now.truth and now.truth.attacker and now.step >= now.truth.start else MUTED)
        yield self._text(WIDTH - MARGIN, 22, f"return {now.total:z.1f}", 17, INK, ha="right", weight="bold")
        ended = f"ended: {now.end}" if now.end else f"this step {now.reward:z.3f}"
        yield self._text(WIDTH - MARGIN, 44, ended, 11.5, INK if now.end else MUTED, ha="right", weight="bold" if now.end else "normal")

    def _nodes(self, now: Frame) -> Iterator[Artist]:
        w, h = self.places.cell
        risk = np.array(now.risk)
        colours = STAGE_RGB[list(now.truth.stage)] if now.truth else RISK_MAP(risk)[:, :3]
        diameter = 2 * self.radius
        down = np.array([c[2] > 0 or c[3] > 0 for c in now.controls])
        common: dict[str, Any] = {"units": "xy", "offset_transform": self._axes.transData}
        ring = [self._strongest(c) for c in now.controls]
        ringed = [d for d, k in enumerate(ring) if k >= 0]
        if ringed:
            wide = diameter[ringed] + float(np.clip(0.09 * h, 5.0, 14.0))
            edges = [CONTROL_COLOURS[ring[d]] for d in ringed]
            styles = ["--" if down[d] else "-" for d in ringed]
            yield EllipseCollection(
                wide,
                wide,
                np.zeros(len(ringed)),
                offsets=self.centres[ringed],
                fc=PAPER,
                ec=edges,
                lw=max(1.4, 0.022 * h),
                linestyles=styles,
                zorder=4,
                **common,
            )
        yield EllipseCollection(diameter, diameter, np.zeros(len(risk)), offsets=self.centres, fc=colours, ec=MUTED, lw=0.8, zorder=5, **common)
        for d, radius in enumerate(self.radius):
            x, y = self.centres[d]
            if now.truth is not None and now.truth.stage[d]:
                stage = now.truth.stage[d]
                yield self._text(
                    x, y, STAGE_MARKS[stage], max(7.0, 0.95 * radius), PAPER if stage == Stage.IMPACT else INK, ha="center", weight="bold", zorder=6
                )
            elif now.truth is None and radius >= 9:
                yield self._text(x, y, f"{100 * risk[d]:.0f}", 0.72 * radius, PAPER if risk[d] > 0.62 else INK, ha="center", zorder=6)
        left, top, high = self.centres[:, 0] - 0.3 * w, self.bar_y, self.bar_height
        right = left + 0.6 * w * risk
        bars = np.stack([np.stack([left, right, right, left], 1), np.stack([top, top, top + high, top + high], 1)], 2)  # (D, 4, 2)
        yield PolyCollection(list(bars), facecolors=RISK_MAP(0.35 + 0.65 * risk), edgecolors="none", zorder=5)
        yield from self._badges(now)

    @staticmethod
    def _strongest(controls: tuple[int, ...]) -> int:
        return max((k for k, left in enumerate(controls) if left), default=-1)

    def _badges(self, now: Frame) -> Iterator[Artist]:
        """Right of each node: a pill a control in force, and a hollow one for the order on its way."""
        w, h = self.places.cell
        size = float(np.clip(0.085 * h, 7.5, 11.0))
        for d, controls in enumerate(now.controls):
            pills = [(k, f"{LETTERS[k]} {left}" if w > 90 else LETTERS[k], False) for k, left in enumerate(controls) if left]
            if now.pending[d] and now.pending[d] in CONTROLS:
                k = CONTROLS.index(Order(now.pending[d]))
                pills.append((k, LETTERS[k] + ("…" if w > 90 else ""), True))
            x = min(self.centres[d, 0] + self.radius[d] + 0.16 * h, self.centres[d, 0] + w / 2 - 1.4 * size)
            for i, (k, text, hollow) in enumerate(pills):
                y = self.centres[d, 1] - 0.8 * self.radius[d] + i * 1.75 * size
                yield self._pill(x, y, text, CONTROL_COLOURS[k], size, hollow)

    def _timeline(self, frames: Sequence[Frame]) -> Iterator[Artist]:
        """Four lines of pixels a device: three of stage or risk, the fourth of the control in force."""
        count = len(self.scene.devices)
        pixels = np.zeros((count, 4, self.scene.horizon, 4))
        seen = [frame for frame in frames if 0 < frame.step <= self.scene.horizon]
        if seen:
            at = np.array([frame.step - 1 for frame in seen])
            if self.truth:
                shade = STAGE_RGB[np.array([frame.truth.stage for frame in seen if frame.truth is not None])]  # (T, D, 3)
            else:
                shade = RISK_MAP(np.array([frame.risk for frame in seen]))[..., :3]
            left = np.array([frame.controls for frame in seen]).astype(np.bool_)  # (T, D, 4)
            held = np.any(left, axis=2, keepdims=True)[:, self.order]  # (T, D, 1)
            control = CONTROL_RGB[3 - left[..., ::-1].argmax(axis=2)][:, self.order]  # (T, D, 3) of the strongest
            shade = shade[:, self.order]
            pixels[:, :, at, :3] = shade.transpose(1, 0, 2)[:, None]
            pixels[:, 3, at, :3] = np.where(held, control, shade).transpose(1, 0, 2)
            pixels[:, :, at, 3] = 1.0
        yield self._image(pixels.reshape(4 * count, self.scene.horizon, 4), self.time, keep=False)
        high = self.time.h / count
        row = {d: i for i, d in enumerate(self.order)}
        half = 1.2 if high > 5 else 1.0
        for k, kind in enumerate((*CONTROLS, Order.RELEASE)):
            marks = [
                (self._x(frame.step - 1) + 1.5, self.time.y + row[d] * high) for frame in seen for d, order, done in frame.orders if order == kind and done
            ]
            if marks:
                x, y = np.array(marks).T
                ticks = np.stack([np.stack([x - half, x + half, x + half, x - half], 1), np.stack([y, y, y + high, y + high], 1)], 2)
                release = kind == Order.RELEASE
                yield PolyCollection(
                    list(ticks), facecolors=PAPER if release else CONTROL_COLOURS[k], edgecolors=INK if release else PAPER, linewidths=0.5, zorder=6
                )
        sizes = [self.scene.zone.count(z) for z in range(len(self.scene.zones))]
        edges = np.cumsum(sizes)[:-1].tolist()
        for rows, width in ((range(1, count) if high > 6 else (), 0.7), (edges, 1.8)):
            yield LineCollection(
                [((self.time.x, self.time.y + high * r), (self.time.right, self.time.y + high * r)) for r in rows], colors=PAPER, linewidths=width, zorder=5
            )

    def _losses(self, frames: Sequence[Frame]) -> Iterator[Artist]:
        """Losses by term, stacked downwards; the scale follows the running episode, and a bar that leaves it is named."""
        seen = [frame for frame in frames if frame.step > 0]
        box = self.loss
        highest = max((-frame.reward for frame in seen if not frame.end), default=0.0)
        scale = next((s for s in (k * 10.0**e for e in range(-1, 4) for k in (1, 1.5, 2, 3, 5, 7)) if highest <= s), highest)
        yield self._text(box.x - 8, box.bottom - 1, f"{scale:g}", 10, MUTED, ha="right")
        if not seen:
            return
        losses = np.array([frame.losses for frame in seen])  # (T, terms)
        sums = np.minimum(np.concatenate([np.zeros((len(seen), 1)), losses.cumsum(axis=1)], axis=1) / scale, 1.0) * box.h
        left, right = (np.array([self._x(frame.step - shift) for frame in seen]) for shift in (1, 0))
        for i in range(losses.shape[1]):
            some = losses[:, i] > 0
            if some.any():
                top, low = box.y + sums[some, i], box.y + sums[some, i + 1]
                bars = np.stack([np.stack([left[some], right[some], right[some], left[some]], 1), np.stack([top, top, low, low], 1)], 2)
                yield PolyCollection(list(bars), facecolors=TERM_COLOURS[i % len(TERM_COLOURS)], edgecolors="none", zorder=4)
        if -seen[-1].reward > scale:
            yield self._text(
                right[-1] - 5, box.bottom - 8, f"{-seen[-1].reward:.1f} in the last step", 10, INK, ha="right" if right[-1] > 400 else "left", zorder=8
            )
