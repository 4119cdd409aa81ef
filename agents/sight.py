"""What a learning agent is shown: the flat observation as networks like it, with a belief for memory, and the truth for its critic."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from scipy.special import logit

from agents.belief import Belief, Floats
from envs.attackers import PROFILES, Stage
from envs.world import KINDS, Layout, Simulation
from src.data.bank import FEATURE_BOUND

PLAIN = {"valid": KINDS, "device": 5, "controls": 5, "service": 1, "silent": 1}
"""Parts of the flat observation that are shown as they are, first; floats a device of each."""

FEATURE_SCALE = 0.5 / FEATURE_BOUND
"""Traffic features enter at the scale of the other inputs. At their own they are by far the largest, and being different for
every window they invite the network to know training windows by heart."""

READING_MARGIN, READING_SCALE = 0.005, 1 / 3
"""Readings in [0, 1] enter as log-odds, in which evidence adds up and .01 lies as far from .1 as .9 from .99: kept off 0 and 1
by the margin, then brought to the scale of the other inputs."""

MOST = 10.0
"""No input is larger."""

TRUTH = len(Stage) + 6 + len(PROFILES)
"""Floats a device of the truth."""


@dataclass(frozen=True)
class Sight:
    """What is shown of each device, device by device, and at the end the observation's context.

    With a belief, the defender's orders and the belief, which is all that the past readings tell; the readings and features themselves
    are left out, for there are few enough windows of training for a network to know them by heart. Without, features and readings.
    """

    layout: Layout
    """Of the flat observations; how many devices it has does not matter."""
    belief: bool
    truth: bool = False
    """Whether the hidden state follows each device's floats, for a critic, while training."""

    @cached_property
    def width(self) -> int:
        """Floats a device, without the truth."""
        if self.belief:
            return sum(PLAIN.values()) + Belief.INPUTS
        return self.layout.width

    @cached_property
    def wide(self) -> int:
        """Floats a device, with the truth where it is shown."""
        return self.width + (TRUTH if self.truth else 0)

    def space(self, devices: int) -> spaces.Box:
        """Bounds of what is shown."""
        return spaces.Box(-MOST, MOST, (devices * self.wide + Layout.CONTEXT,), np.float32)

    def show(self, parts: dict[str, Floats], believed: Floats | None, truth: Floats | None = None) -> NDArray[np.float32]:
        """(E, D x wide + 2) from an observation's parts, `Belief.inputs`, and `hidden_state`; zeros stand for a truth that is not given."""
        shown = [parts[name] for name in PLAIN]
        if believed is not None:
            shown.append(believed)
        else:
            shown += self._readings(parts)
        if self.truth:
            shown.append(np.zeros((*shown[0].shape[:2], TRUTH), np.float32) if truth is None else truth)
        each = np.concatenate(shown, axis=2)  # (E, D, wide)
        return np.concatenate([each.reshape(len(each), -1), parts["context"]], axis=1, dtype=np.float32)

    def _readings(self, parts: dict[str, Any]) -> list[Floats]:
        F = self.layout.features
        features, readings = [parts["features"]], [parts["sensors"], parts["trend"]]
        if "past" in parts:
            past = parts["past"].reshape(*parts["past"].shape[:2], self.layout.history - 1, -1)  # (E, D, k - 1, F + S)
            features.append(past[..., :F].reshape(*past.shape[:2], -1))
            readings.append(past[..., F:].reshape(*past.shape[:2], -1))
        odds = logit(np.clip(np.concatenate(readings, axis=2), READING_MARGIN, 1.0 - READING_MARGIN))
        return [np.concatenate(features, axis=2) * FEATURE_SCALE, odds * READING_SCALE]


def hidden_state(simulation: Simulation) -> NDArray[np.float32]:
    """(E, D, TRUTH) the truth: each device's stage one-hot, block got round, scouted, attack shown, attacker present, hiding, never coming, who."""
    devices, sites = simulation.devices, simulation.sites
    start, shape = sites["start"], devices.shape
    about = [(start >= 0) & (sites["step"] >= start), sites["dormant"] > 0, start < 0]
    flags = [devices["evaded"], devices["known"], devices["attack_shown"], *(np.broadcast_to(one[:, None], shape) for one in about)]
    who = np.broadcast_to(np.eye(len(PROFILES), dtype=np.float32)[sites["profile"]][:, None], (*shape, len(PROFILES)))
    return np.concatenate([np.eye(len(Stage), dtype=np.float32)[devices["stage"]], np.stack(flags, axis=2), who], axis=2, dtype=np.float32)
