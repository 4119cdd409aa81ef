"""Attackers to compare with in a duel. All are batched, and answer to Stable-Baselines3's `predict`; observations are flat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.attackers import Stage
from envs.duel import MOVES, AttackerLayout, moves_allowed
from envs.dynamics import Move

Moves = NDArray[np.int64]


class RandomAttacker:
    """Uniform over the moves that would change something, with LIE_LOW."""

    def __init__(self, layout: AttackerLayout, seed: int) -> None:
        """`layout` says where the masks lie."""
        self.layout = layout
        self.rng = np.random.default_rng(seed)

    def predict(self, observation: NDArray[np.float32], state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[Moves, None]:
        """(E,)"""
        allowed = moves_allowed(self.layout, observation)  # (E, 1 + 3D)
        return np.where(allowed, self.rng.random(allowed.shape), -1.0).argmax(axis=1), None


@dataclass(frozen=True)
class GreedyAttacker:
    """Always forward: harm from every foothold, then round what stops it, then to the next device, the most valuable known one first.

    It never hides and never lets go.
    """

    layout: AttackerLayout

    def predict(self, observation: NDArray[np.float32], state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[Moves, None]:
        """(E,)"""
        parts = self.layout.split(observation)
        stage = parts["stage"].argmax(axis=2)  # (E, D)
        worth = 1.0 + parts["criticality"][..., 0]
        advance, rotate = parts["valid"][..., Move.ADVANCE - 1] > 0, parts["valid"][..., Move.ROTATE - 1] > 0
        action = np.zeros(len(stage), np.int64)
        for move, wanted in (
            (Move.ADVANCE, advance & (stage != Stage.CLEAN)),  # nothing better to do: work goes on
            (Move.ADVANCE, advance & (stage == Stage.CLEAN)),
            (Move.ROTATE, rotate & (stage == Stage.ATTACKED) & (parts["stopped"][..., 0] > 0)),
            (Move.ADVANCE, advance & (stage == Stage.COMPROMISED) & (parts["pressing"][..., 0] == 0)),
        ):
            wish = np.where(wanted, worth, 0.0)
            best = wish.argmax(axis=1)
            action = np.where(wanted.any(axis=1), 1 + best * MOVES + move - 1, action)
        return action, None
