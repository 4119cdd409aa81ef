"""The privileged planner: it sees the hidden state, and is the reference that learned policies are held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.baselines import address
from envs.attackers import Stage
from envs.dynamics import Order
from envs.world import Simulation


@dataclass(frozen=True)
class Planner:
    """One order a step, to the device where it saves most; greedy, so a strong reference rather than a proven optimum.

    Footholds are restored, the most harmful first. A device under attack is blocked; where the block was got round, it is
    lifted and set anew. Controls on devices that nobody works on are lifted.
    """

    simulation: Simulation

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[NDArray[np.int64], None]:
        """(E,)"""
        sim = self.simulation
        devices, world = sim.devices, sim.world
        stage = devices["stage"]  # (E, D)
        weight = np.broadcast_to(world.criticality, stage.shape)
        valid = sim.allowed()  # (E, D, 5)
        isolated = devices["isolate"] > 0
        held = isolated | (devices["block"] > 0) | (devices["rate_limit"] > 0)
        blocked = (devices["block"] > 0) & ~devices["evaded"]
        attacked = stage == Stage.ATTACKED
        wishes = (
            (Order.RELEASE, np.where(held & (stage == Stage.CLEAN), weight, -1.0)),
            (Order.RELEASE, np.where(attacked & (devices["block"] > 0) & devices["evaded"] & ~isolated, weight, -1.0)),
            (Order.BLOCK, np.where(attacked & ~blocked & ~isolated, weight, -1.0)),
            (Order.RESTORE, np.where(stage >= Stage.COMPROMISED, weight * np.where(isolated, 0.5, 1.0) * np.where(stage == Stage.IMPACT, 4.0, 1.0), -1.0)),
        )
        action = np.zeros(len(stage), np.int64)
        for order, wish in wishes:
            ready = np.where(valid[..., order - 1], wish, -1.0)
            best = ready.argmax(axis=1)
            action = np.where(ready[np.arange(len(ready)), best] > 0, address(best, order), action)
        return action, None
