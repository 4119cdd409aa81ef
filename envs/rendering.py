"""What an environment looks like: a plain snapshot of it, the same as a table, and the viewer behind `IoTEnv.render`.

`Scene` is what does not change in an episode, `Frame` what does; both are tuples and numbers all through, so that a
recording is their JSON. The picture is drawn by `envs.picture`, which alone imports matplotlib.
"""

from __future__ import annotations

import io
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from envs.attackers import Stage
from envs.dynamics import TERMS, End, Order
from envs.world import KINDS, Simulation

if TYPE_CHECKING:
    from envs.picture import Picture

CONTROLS = (Order.RATE_LIMIT, Order.BLOCK, Order.ISOLATE, Order.RESTORE)
"""Orders that stay in force, in the order of `Frame.controls`."""

STAGE_COLOURS = ("#f1f3f5", "#ffe8a3", "#ffb866", "#f06548", "#a3123a")
"""By `Stage`, each darker than the one before, so that the order is seen without hue; the report's timelines use the same."""

CONTROL_COLOURS = ("#56b4e9", "#0072b2", "#5f3dc4", "#00805a")
"""By `CONTROLS`; badges carry the letter too."""

TERM_COLOURS = ("#8a94a0", "#d55e00", "#56b4e9", "#009e73", "#cc79a7", "#e69f00", "#0072b2")
"""Terms of the reward, in their order (Okabe and Ito's palette)."""

RISK_RAMP = ("#f6f4ee", "#fbe3b0", "#f2b04f", "#c4691c", "#5e2a08")
"""Risk from 0 to 1; warm, so that every control's colour stands out on it."""

LETTERS = ("L", "B", "I", "R")
"""Badges, by `CONTROLS`: limit, block, isolate, restore."""

WIDEST = 1000
"""Columns of a table that no terminal bounds; rich would shorten names where they do not fit."""


@dataclass(frozen=True)
class Scene:
    """What does not change in an episode. D devices, Z zones."""

    scenario: str
    devices: tuple[str, ...]
    """(D,) names, in the order of the action space."""
    types: tuple[str, ...]
    """(D,)"""
    zones: tuple[str, ...]
    """(Z,)"""
    zone: tuple[int, ...]
    """(D,) index into `zones`."""
    exposed: tuple[int, ...]
    """Zones that the internet reaches."""
    reach: tuple[tuple[int, int], ...]
    """Pairs of different zones: a foothold in the first can attack the second."""
    criticality: tuple[float, ...]
    """(D,) sums to 1."""
    protected: tuple[bool, ...]
    """(D,)"""
    horizon: int
    step_seconds: float
    terms: tuple[str, ...]
    """Names of `Frame.losses`."""
    traffic: str
    """Where the traffic comes from: `real` or `synthetic profile`."""


@dataclass(frozen=True)
class Truth:
    """What the defender never sees."""

    stage: tuple[int, ...]
    """(D,) `Stage`"""
    shown: tuple[str | None, ...]
    """(D,) class of the traffic window shown; None where nothing of it was received."""
    evaded: tuple[bool, ...]
    """(D,) whether a block was got round."""
    attacker: str | None
    """Profile; None in an attack-free episode."""
    start: int
    """Step at which the attacker appears, -1 for never."""
    dormant: bool


@dataclass(frozen=True)
class Frame:
    """One environment at the end of a step, or after a reset (`step` 0)."""

    step: int
    orders: tuple[tuple[int, int, bool], ...]
    """What was ordered in the step: device, `Order`, and whether it changed something (as far as is known; see `frame`)."""
    controls: tuple[tuple[int, int, int, int], ...]
    """(D,) remaining steps by `CONTROLS`."""
    pending: tuple[int, ...]
    """(D,) `Order` on its way, 0 for none."""
    risk: tuple[float, ...]
    """(D,) running means of the sensors."""
    uncertainty: tuple[float, ...]
    anomaly: tuple[float, ...]
    service: tuple[float, ...]
    """(D,) share of legitimate traffic delivered."""
    silent: tuple[bool, ...]
    """(D,) nothing was received from it in the step."""
    allowed: tuple[int, ...]
    """(D,) orders that would change something now: bit `Order` - 1 of each."""
    given: int
    """Orders so far that changed something."""
    reward: float
    losses: tuple[float, ...]
    """What each term of the reward took, weighted; they sum to -`reward`."""
    total: float
    """Return so far."""
    end: str | None
    """Why the episode ended, None while it runs."""
    truth: Truth | None
    """None unless it was asked for."""


def scene(simulation: Simulation) -> Scene:
    """The network that a batch of environments plays."""
    network, env = simulation.network, simulation.config.env
    zones = range(len(network.zones))
    return Scene(
        scenario=network.name,
        devices=tuple(network.names),
        types=tuple(network.types),
        zones=tuple(network.zones),
        zone=tuple(network.zone.tolist()),
        exposed=tuple(z for z in zones if network.reach[0, z]),
        reach=tuple((a, b) for a in zones for b in zones if a != b and network.reach[1 + a, b]),
        criticality=tuple(network.criticality.round(6).tolist()),
        protected=tuple(network.protected.tolist()),
        horizon=env.horizon,
        step_seconds=env.step_seconds,
        terms=TERMS,
        traffic=simulation.bank.source,
    )


def frame(simulation: Simulation, e: int = 0, *, truth: bool, before: Frame | None = None) -> Frame:
    """Environment `e` as it is now.

    Args:
        simulation: a batch of environments.
        e: which of them.
        truth: whether to show what the defender does not see.
        before: the frame one step earlier. Without it an order counts as one that changed something. With it, that is known
            for a single order; of several in one step, those that the masks allowed count.
    """
    site, devices = simulation.sites[e], simulation.devices[e]
    weights = [float(getattr(simulation.config.reward, name)) for name in TERMS]
    parts = simulation.layout.split(simulation.observe()[e])
    allowed = simulation.allowed()[e] @ (1 << np.arange(KINDS))  # (D,)
    step, given = int(site["step"]), int(site["orders"])
    ordered = _ordered(simulation, e) if step else []
    obeyed = [True] * len(ordered)
    if before is not None and before.step == step - 1 and given - before.given < len(ordered):
        obeyed = [given > before.given and bool(before.allowed[d] >> (order - 1) & 1) for d, order in ordered]
    return Frame(
        step=step,
        orders=tuple((d, order, done) for (d, order), done in zip(ordered, obeyed, strict=True)),
        controls=tuple(zip(*(devices[order.name.lower()].tolist() for order in CONTROLS), strict=True)),
        pending=tuple(devices["pending"].tolist()),
        risk=_rounded(parts["trend"][:, 0]),
        uncertainty=_rounded(parts["trend"][:, 1]),
        anomaly=_rounded(parts["trend"][:, 2]),
        service=_rounded(parts["service"][:, 0]),
        silent=tuple((parts["silent"][:, 0] > 0).tolist()),
        allowed=tuple(allowed.tolist()),
        given=given,
        reward=float(simulation.rewards[e]) if step else 0.0,
        losses=tuple(w * float(loss) if step else 0.0 for w, loss in zip(weights, simulation.terms[e], strict=True)),
        total=0.0 - sum(w * float(site[name]) for w, name in zip(weights, TERMS, strict=True)),  # not -sum, which may be -0.0
        end=End(site["end"]).name.lower() if site["end"] else None,
        truth=_truth(simulation, e) if truth else None,
    )


def _ordered(simulation: Simulation, e: int) -> list[tuple[int, int]]:
    """Device and `Order` of what was ordered in the last step."""
    actions = simulation.actions
    if actions is None:
        return []
    if simulation.joint:
        return [(int(d), int(actions[e, d])) for d in np.flatnonzero(actions[e])]
    number = int(actions[e, 0]) - 1
    return [(number // KINDS, 1 + number % KINDS)] if number >= 0 else []


def _rounded(values: NDArray[Any]) -> tuple[float, ...]:
    return tuple(np.round(values.astype(np.float64), 4).tolist())


def _truth(simulation: Simulation, e: int) -> Truth:
    site, devices, bank = simulation.sites[e], simulation.devices[e], simulation.bank
    hidden = simulation.truth(e)
    shown = (bank.class_names[label] for label in bank.label[devices["window"]])
    heard = simulation.trails[e, :, int(site["step"]) % simulation.trails.shape[2]] >= 0
    return Truth(
        stage=tuple(devices["stage"].tolist()),
        shown=tuple(name if arrived else None for name, arrived in zip(shown, heard, strict=True)),
        evaded=tuple(devices["evaded"].tolist()),
        attacker=hidden["profile"] if hidden["start"] >= 0 else None,
        start=hidden["start"],
        dormant=hidden["dormant"] > 0,
    )


def words(scene: Scene, frame: Frame, most: int = 3) -> str:
    """The orders of a step as a sentence's worth of text; at most `most` are named."""
    if not frame.orders:
        return "MONITOR" if frame.step else "episode begins"
    named = [f"{Order(order).name} {scene.devices[d]}{'' if done else ' (passed over)'}" for d, order, done in frame.orders[:most]]
    return ", ".join(named) + (f" and {len(frame.orders) - most} more" if len(frame.orders) > most else "")


def clock(scene: Scene, step: int) -> str:
    """Time since the episode began."""
    minutes, seconds = divmod(round(step * scene.step_seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {seconds:02d} s"


def situation(frame: Frame) -> str:
    """What the attacker is doing, for those who may know; empty without the truth."""
    truth = frame.truth
    if truth is None:
        return ""
    if truth.attacker is None:
        return "no attacker in this episode"
    if frame.step < truth.start:
        return f"{truth.attacker} arrives at step {truth.start}"
    return f"{truth.attacker} since step {truth.start}{', lying low' if truth.dormant else ''}"


def headline(scene: Scene, frame: Frame) -> str:
    """Where the episode stands; `z` keeps a loss that rounds to nothing from reading -0.00."""
    place = f"{scene.scenario}, {scene.traffic} traffic  step {frame.step} of {scene.horizon} ({clock(scene, frame.step)})"
    return f"{place}  return {frame.total:z.2f}, this step {frame.reward:z.3f}"


def table(scene: Scene, frame: Frame, most: int | None = None) -> Table:
    """The network as a table, a row a device; with `most`, the rows that need the defender's eye first."""
    rows = list(range(len(scene.devices)))
    if most is not None and len(rows) > most:
        busy = [sum(frame.controls[d]) > 0 or frame.pending[d] > 0 or (frame.truth is not None and frame.truth.stage[d] > 0) for d in rows]
        rows = sorted(sorted(rows, key=lambda d: (not busy[d], -frame.risk[d]))[:most])
    losses = "  ".join(f"{name} {-loss:z.3f}" for name, loss in zip(scene.terms, frame.losses, strict=True) if loss)
    foot = [f"order: {words(scene, frame)}", f"lost: {losses or 'nothing'}", situation(frame), f"ended: {frame.end}" if frame.end else ""]
    if len(rows) < len(scene.devices):
        foot.append(f"{len(scene.devices) - len(rows)} more devices are not shown")
    out = Table(caption=Text("\n".join(line for line in foot if line)), box=box.SIMPLE_HEAD, pad_edge=False)
    out.caption_justify = "left"
    for name in ("device", "zone", "risk", "unc.", "anomaly", "service", "controls"):
        out.add_column(name, justify="right" if name in ("unc.", "anomaly", "service") else "left", no_wrap=True)
    if frame.truth is not None:
        out.add_column("stage (hidden)", no_wrap=True)
        out.add_column("traffic (hidden)", no_wrap=True)
    for d in rows:
        cells = [
            Text(scene.devices[d] + (" *" if scene.protected[d] else "")),
            Text(scene.zones[scene.zone[d]], style="dim"),
            _bar(frame.risk[d], frame.silent[d]),
            Text(f"{frame.uncertainty[d]:.2f}"),
            Text(f"{frame.anomaly[d]:.2f}"),
            Text(f"{frame.service[d]:.0%}", style="" if frame.service[d] > 0.99 else "bold"),
            _held(frame, d),
        ]
        if frame.truth is not None:
            stage = Stage(frame.truth.stage[d])
            cells.append(Text(stage.name.lower(), style="dim" if stage == Stage.CLEAN else f"bold #1f2933 on {STAGE_COLOURS[stage]}"))
            cells.append(Text(frame.truth.shown[d] or "silent", style="dim"))
        out.add_row(*cells)
    return out


def _page(scene: Scene, frame: Frame, most: int | None = None) -> Group:
    """The headline on a line of its own, for a title would be wrapped to the width of the table, and the table."""
    return Group(Text(headline(scene, frame)), table(scene, frame, most))


def _bar(risk: float, silent: bool) -> Text:
    filled = round(10 * risk)
    colour = "dim" if silent else "green" if risk < 0.35 else "yellow" if risk < 0.65 else "red"
    return Text.assemble(("█" * filled + "░" * (10 - filled), colour), f" {risk:.2f}", " silent" if silent else "")


def _held(frame: Frame, d: int) -> Text:
    found = [f"{order.name.lower()} {left}" for order, left in zip(CONTROLS, frame.controls[d], strict=True) if left]
    if frame.pending[d]:
        found.append(f"{Order(frame.pending[d]).name.lower()} ordered")
    if frame.truth is not None and frame.truth.evaded[d]:
        found.append("got round")
    return Text(", ".join(found) or "-")


class Viewer:
    """Shows one environment: keeps the frames of the running episode and presents the last one.

    `human` redraws a table in place, at the pace of `fps`, where standard output is a terminal, and prints it elsewhere;
    `ansi` returns it as text; `rgb_array` returns the picture.
    """

    def __init__(self, mode: str, fps: float) -> None:
        """`mode` is one of IoTEnv's render modes."""
        self.mode, self.fps = mode, fps
        self.frames: list[Frame] = []
        self._bare()

    def forget(self) -> None:
        """A new episode begins: what was shown of the last one stays on the terminal, and out of the picture."""
        self.close()
        self.frames = []

    def show(self, simulation: Simulation, truth: bool) -> NDArray[np.uint8] | str | None:
        """Present environment 0; steps that were not shown are blank in the picture's timeline."""
        step = int(simulation.sites[0]["step"])
        while self.frames and self.frames[-1].step >= step:  # shown twice, or put back to an earlier step
            self.frames.pop()
        self.frames.append(frame(simulation, truth=truth, before=self.frames[-1] if self.frames else None))
        here = scene(simulation)
        if self.mode == "rgb_array":
            if self._picture is None:
                from envs.picture import Picture  # matplotlib takes longer to import than everything else here

                self._picture = Picture(here, truth)
            return self._picture.draw(self.frames)
        if self.mode == "ansi":
            out = io.StringIO()
            Console(file=out, width=WIDEST, color_system=None).print(_page(here, self.frames[-1]))
            return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
        return self._print(here)

    def close(self) -> None:
        """Leave the last table on the terminal and stop redrawing it."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print(self, here: Scene) -> None:
        console = Console(file=sys.stdout)
        if not console.is_terminal:
            Console(file=sys.stdout, width=WIDEST).print(_page(here, self.frames[-1]))
            return
        if self._live is None:
            self._live = Live(console=console, auto_refresh=False)
            self._live.start()
            console.show_cursor(True)  # nobody may call close()
        self._live.update(_page(here, self.frames[-1], most=max(4, console.height - 12)), refresh=True)
        time.sleep(max(0.0, self._due - time.monotonic()))
        self._due = time.monotonic() + 1.0 / self.fps

    def _bare(self) -> None:
        self._live: Live | None = None
        self._picture: Picture | None = None
        self._due = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Frames only: neither a terminal nor a canvas is copied with an environment."""
        return {"mode": self.mode, "fps": self.fps, "frames": list(self.frames)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bare()
