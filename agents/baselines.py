"""Policies to compare with. All are batched, and answer to Stable-Baselines3's `predict`; observations are flat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.attackers import FLOODS
from envs.dynamics import Order
from envs.scenarios import FAMILIES
from envs.world import KINDS, Layout

Actions = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]

SIGNALS = ("risk", "uncertainty", "anomaly")
"""What a threshold rule can watch: the running means of the observation's `trend`, in its order."""


def address(device: NDArray[np.int64], order: NDArray[np.int64] | int) -> Actions:
    """Action index of an order to a device; MONITOR is 0 whatever the device."""
    return np.where(np.asarray(order) == Order.MONITOR, 0, device * KINDS + order)


def most_urgent(valid: NDArray[np.bool_], wishes: Sequence[tuple[Order, NDArray[np.bool_], Floats]]) -> Actions:
    """One order an environment: of the last wish that anyone has, the device where it is most urgent.

    Args:
        valid: (E, D, 5) orders that would change something.
        wishes: the least important first: order, (E, D) where it is due, (E, D) how urgent, not below 0.

    Returns:
        (E,) addressed orders; MONITOR where nothing is due.
    """
    action = np.zeros(len(valid), np.int64)
    for order, due, urgency in wishes:
        ready = np.where(valid[..., order - 1] & due, urgency, -1.0)
        action = np.where(ready.max(axis=1) >= 0, ready.argmax(axis=1) * KINDS + int(order), action)
    return action


@dataclass(frozen=True)
class Constant:
    """Always the same action: an index, or in joint mode one kind on every device."""

    action: int
    devices: int = 0
    """Devices in joint mode; 0 means addressed orders."""

    def predict(self, observation: NDArray[np.float32], state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[Actions, None]:
        """(E,), or (E, devices) in joint mode."""
        shape = (len(observation), self.devices) if self.devices else (len(observation),)
        return np.full(shape, self.action, np.int64), None


def constants(names: Sequence[str]) -> dict[str, Constant]:
    """Every single order repeated for the whole episode, and each kind on all devices at once (in joint mode); `names` are the devices'."""
    kinds = list(Order)[1:]
    single = {f"{order.name} {name}": Constant(1 + d * KINDS + order - 1) for d, name in enumerate(names) for order in kinds}
    return {**single, **{f"{order.name} all": Constant(int(order), len(names)) for order in kinds}}


class Random:
    """Uniform over the orders that would change something, with MONITOR."""

    def __init__(self, layout: Layout, seed: int) -> None:
        """`layout` says where the masks lie."""
        self.layout = layout
        self.rng = np.random.default_rng(seed)

    def predict(self, observation: NDArray[np.float32], state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[Actions, None]:
        """(E,)"""
        allowed = self.layout.split(observation)["valid"].reshape(len(observation), -1) > 0  # (E, D * 5)
        draws = self.rng.random((len(observation), allowed.shape[1] + 1))
        draws[:, 1:][~allowed] = -1.0
        return draws.argmax(axis=1), None


@dataclass(frozen=True)
class Threshold:
    """Act on the device with the highest running signal: a strong order above `high`, a mild one above `low`.

    Controls that are still in force on a device whose signal has fallen below `calm` are lifted when nothing else is due.
    """

    layout: Layout
    signal: str
    """One of `SIGNALS`."""
    low: float
    mild: Order
    high: float
    strong: Order
    calm: float = 0.0

    def predict(self, observation: NDArray[np.float32], state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[Actions, None]:
        """(E,)"""
        parts = self.layout.split(observation)
        signal = parts["trend"][..., SIGNALS.index(self.signal)]  # (E, D)
        held = parts["controls"][..., :2].max(axis=2) > 0
        wishes = (
            (Order.RELEASE, held & (signal < self.calm), 1.0 - signal),
            (self.mild, signal > self.low, signal),
            (self.strong, signal > self.high, signal),
        )
        return most_urgent(parts["valid"] > 0, wishes), None

    def __str__(self) -> str:
        """The rule in words."""
        return f"{self.signal} > {self.low:.2f}: {self.mild.name}, > {self.high:.2f}: {self.strong.name}, release < {self.calm:.2f}"


def threshold_candidates(layout: Layout, signal: str = "risk") -> Iterator[Threshold]:
    """The grid that tuning walks: one-level and two-level rules."""
    levels = np.round(np.arange(0.1, 0.95, 0.1), 2).tolist()
    for high in levels:
        for strong in (Order.RATE_LIMIT, Order.BLOCK, Order.ISOLATE, Order.RESTORE):
            yield Threshold(layout, signal, high, strong, high, strong)
        for low in (level for level in levels if level < high):
            for strong in (Order.ISOLATE, Order.RESTORE):
                yield Threshold(layout, signal, low, Order.BLOCK, high, strong)
                yield Threshold(layout, signal, low, Order.BLOCK, high, strong, calm=low / 2)


READINGS = ("attack", "anomaly")
"""What CUSUM adds up: the probability that the window is not benign, or the autoencoder's score."""


@dataclass(frozen=True)
class Cusum:
    """Page's cumulative sum (1954), one a device: small but lasting evidence adds up, and a single loud window does not decide.

    Each window adds its log-odds of attack less `drift`; the sum is held between 0 and `high`, where the alarm is given and the device
    restored. Above `low` it is blocked; back at 0, what is in force is lifted. A silent device's sum stays; that of a device being
    restored starts anew. Memory goes through `predict`'s `state`, (E, D).
    """

    layout: Layout
    reading: str
    """One of `READINGS`."""
    drift: float
    """Log-odds that a window must exceed to count as evidence: half-way between what is usual in peace and under attack, at its best."""
    low: float
    """As a share of `high`; 1 is never."""
    high: float

    CLIP = 4.0
    """Largest log-odds that one window is trusted with, either way."""

    def predict(self, observation: Floats, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[Actions, Floats]:
        """(E,) and the sums."""
        parts = self.layout.split(observation)
        sums = _remembered(state, episode_start, np.zeros((len(observation), self.layout.devices), np.float32))
        readings = parts["sensors"]
        chance = np.clip(1.0 - readings[..., 0] if self.reading == "attack" else readings[..., -1], 0.001, 0.999)
        evidence = np.clip(np.log(chance / (1.0 - chance)), -self.CLIP, self.CLIP) - self.drift
        sums = np.clip(sums + np.where(parts["silent"][..., 0] > 0, 0.0, evidence), 0.0, self.high)
        sums = np.where((parts["controls"][..., 3:] > 0).any(axis=2), 0.0, sums).astype(np.float32)
        held = parts["controls"][..., :3].max(axis=2) > 0
        urgency = sums * (1.0 + parts["device"][..., 0])  # of equal sums, the more critical device's
        wishes = (
            (Order.RELEASE, held & (sums == 0), urgency),
            (Order.BLOCK, sums > self.low * self.high, urgency),
            (Order.RESTORE, sums >= self.high, urgency),
        )
        return most_urgent(parts["valid"] > 0, wishes), sums

    def __str__(self) -> str:
        """The rule in words."""
        block = f", BLOCK from {self.low * self.high:.1f}" if self.low < 1 else ""
        return f"CUSUM of {self.reading}, drift {self.drift:g}: RESTORE at {self.high:g}{block}"


def cusum_candidates(layout: Layout) -> Iterator[Cusum]:
    """The grid that tuning walks."""
    for reading, drifts, highs in (("attack", (-1.0, -0.5, 0.0, 0.5), (4.0, 6.0, 8.0)), ("anomaly", (0.5, 1.0, 2.0), (4.0, 8.0, 16.0))):
        for drift, low, high in product(drifts, (0.6, 1.0), highs):
            yield Cusum(layout, reading, drift, low, high)


class Casebook(NamedTuple):
    """What a playbook remembers of each device."""

    families: Floats
    """(E, D, 8) running mean of the families' probabilities, benign first."""
    persisted: Floats
    """(E, D) steps for which the device has been suspicious although it was throttled or blocked."""


@dataclass(frozen=True)
class Playbook:
    """Incident response as an operations centre writes it down (NIST SP 800-61: contain, eradicate, recover), by likeliest family and by stage.

    1. A device is suspicious when the running mean of its attack probability exceeds `watch`: floods are throttled, and scans, forced
       passwords, web attacks and spoofing blocked.
    2. One that stays suspicious for `patience` steps under that control, or whose mean exceeds `confirm` at once, is confirmed, and isolated.
    3. An isolated device is restored; so is a confirmed one that may not be isolated.
    4. A device whose mean has fallen below half of `watch` is released.

    Of devices at the same stage the one with the most criticality x suspicion comes first. Memory goes through `predict`'s `state`.
    """

    layout: Layout
    watch: float
    confirm: float
    patience: int
    """Steps."""
    smoothing: float
    """Weight of the newest window in the running mean."""

    def predict(self, observation: Floats, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[Actions, Casebook]:
        """(E,) and what is remembered."""
        parts = self.layout.split(observation)
        fresh = np.zeros((len(observation), self.layout.devices, len(FAMILIES)), np.float32)
        fresh[..., 0] = 1.0
        book = Casebook(fresh, np.zeros(fresh.shape[:2], np.float32))
        families, persisted = _remembered(state, episode_start, book)
        controls = parts["controls"] > 0  # (E, D, 5)
        heard = parts["silent"] == 0  # (E, D, 1)
        families = np.where(heard, families + self.smoothing * (parts["sensors"][..., : len(FAMILIES)] - families), families)
        families = np.where(controls[..., 3:].any(axis=2, keepdims=True), fresh, families)  # re-imaged: what was seen before says nothing
        suspicion = 1.0 - families[..., 0]
        likeliest = 1 + families[..., 1:].argmax(axis=2)
        flood = np.isin(likeliest, [FAMILIES.index(name) for name in FLOODS])
        suspicious, held = suspicion > self.watch, controls[..., :2].any(axis=2)
        persisted = np.where(suspicious & held, persisted + 1.0, 0.0).astype(np.float32)
        confirmed = (suspicion > self.confirm) | (persisted > self.patience)
        isolated = controls[..., 2]
        spared = parts["valid"][..., Order.ISOLATE - 1] == 0
        urgency = suspicion * (1.0 + parts["device"][..., 0])
        wishes = (
            (Order.RELEASE, controls[..., :3].any(axis=2) & (suspicion < self.watch / 2), 1.0 - suspicion),
            (Order.RATE_LIMIT, suspicious & flood, urgency),
            (Order.BLOCK, suspicious & ~flood, urgency),
            (Order.ISOLATE, confirmed & ~isolated, urgency),
            (Order.RESTORE, isolated | (confirmed & spared), urgency),
        )
        return most_urgent(parts["valid"] > 0, wishes), Casebook(families.astype(np.float32), persisted)

    def __str__(self) -> str:
        """The rule in words."""
        return f"playbook: suspicious > {self.watch:g}, confirmed > {self.confirm:g} or after {self.patience} steps, smoothing {self.smoothing:g}"


def playbook_candidates(layout: Layout) -> Iterator[Playbook]:
    """The grid that tuning walks."""
    for watch, confirm, patience, smoothing in product((0.15, 0.2, 0.3, 0.4), (0.55, 0.8), (1, 3, 6), (0.15, 0.3)):
        yield Playbook(layout, watch, confirm, patience, smoothing)


def _remembered(state: Any, episode_start: Any, fresh: Any) -> Any:
    """Memory to go on with: an array, or a named tuple of arrays, (E, ...); `fresh` where there is none yet or an episode starts."""
    if state is None:
        return fresh
    if isinstance(fresh, tuple):
        return type(fresh)(*(_remembered(old, episode_start, new) for old, new in zip(state, fresh, strict=True)))
    begun = np.zeros(len(fresh), np.bool_) if episode_start is None else np.asarray(episode_start, np.bool_)
    return np.where(begun.reshape(-1, *[1] * (fresh.ndim - 1)), fresh, state)
