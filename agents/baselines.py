"""Policies to compare with. All are batched, and answer to Stable-Baselines3's `predict`; observations are flat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.dynamics import Order
from envs.world import KINDS, Layout

Actions = NDArray[np.int64]

SIGNALS = ("risk", "uncertainty", "anomaly")
"""What a threshold rule can watch: the running means of the observation's `trend`, in its order."""


def address(device: NDArray[np.int64], order: NDArray[np.int64] | int) -> Actions:
    """Action index of an order to a device; MONITOR is 0 whatever the device."""
    return np.where(np.asarray(order) == Order.MONITOR, 0, device * KINDS + order)


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
        valid = parts["valid"] > 0  # (E, D, 5)
        action = np.zeros(len(observation), np.int64)
        held = parts["controls"][..., :2].max(axis=2) > 0
        lift = np.where(valid[..., Order.RELEASE - 1] & held & (signal < self.calm), 1.0 - signal, -1.0)
        for order, ready in (
            (Order.RELEASE, lift),
            (self.mild, np.where(valid[..., self.mild - 1] & (signal > self.low), signal, -1.0)),
            (self.strong, np.where(valid[..., self.strong - 1] & (signal > self.high), signal, -1.0)),
        ):
            best = ready.argmax(axis=1)
            due = ready[np.arange(len(ready)), best] >= 0
            action = np.where(due, address(best, order), action)
        return action, None

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
