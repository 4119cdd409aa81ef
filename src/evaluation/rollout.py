"""Episodes played by a policy: paired seeds, one batch, nothing learned on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

PLANNER = "planner"
"""The policy that sees the truth."""

SIDES = ("seen", "held out", "attack-free")
"""Sides of an evaluation, all on held-out traces: attackers of training, attackers never met, nobody."""


class Policy(Protocol):
    """Anything with Stable-Baselines3's `predict`; observations and actions are batched."""

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[NDArray[Any], Any]:
        """Actions for a batch of observations, and the policy's memory (or None)."""
        ...


class BatchEnv(Protocol):
    """A gymnasium vector environment with SAME_STEP autoreset whose `final_info` holds `summary` and `end`."""

    num_envs: int

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every environment."""
        ...

    def step(self, actions: Any) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Act in every environment."""
        ...


@dataclass(frozen=True)
class Episodes:
    """N episodes, one a seed; entry i of every array is the episode of seed `first_seed + i`."""

    returns: NDArray[np.float64]
    """(N,) sum of rewards."""
    summary: dict[str, NDArray[np.float64]]
    """(N,) each: what `Simulation.summary` counts, apart from the reward."""
    end: NDArray[np.int64]
    """(N,) index into the environment's ends."""

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())


@dataclass(frozen=True)
class Side:
    """The same N episodes under every policy."""

    episodes: dict[str, list[Episodes]]
    """By policy; a list entry a training seed, one where nothing was trained."""
    attacker: NDArray[np.str_]
    """(N,) who was drawn to attack; empty in an attack-free episode."""
    start: NDArray[np.int64]
    """(N,) step of the attack's beginning, -1 in an attack-free episode."""

    def returns(self, policy: str) -> NDArray[np.float64]:
        """(runs, N)"""
        return np.stack([run.returns for run in self.episodes[policy]])


@dataclass(frozen=True)
class Contest:
    """What was played, before anything is made of it."""

    sides: dict[str, Side]
    """`seen`, `held out` and `attack-free`; each holds the same policies, in the same order."""
    agents: tuple[str, ...]
    """Names of the trained ones among the policies; gates are about the first."""
    words: dict[str, str]
    """By policy compared with: what tuning chose."""
    validation: dict[str, float]
    """By policy compared with: mean return on the traces on which it was tuned."""
    blinded: dict[str, list[Episodes]]
    """By sensor: the first group of agents on the `held out` side with noise for its readings, an entry a training seed."""
    shuffled: list[Episodes]
    """The same agents and side, the devices' telemetry under one another's names."""
    exploits: dict[str, Episodes]
    """By script that reads no sensor, on the `held out` side."""

    @property
    def heuristic(self) -> str:
        """Of the policies that an operator could deploy without learning, the best on the traces of tuning; the same on every side."""
        return max((name for name in self.validation if name != PLANNER), key=lambda name: self.validation[name])


def play(env: BatchEnv, policy: Policy, seed: int) -> Episodes:
    """One episode in each of `env`'s environments, environment i with seed `seed` + i.

    Environments that end early go on into episodes that are not counted, so that the batch keeps its shape.
    """
    observation, _ = env.reset(seed=seed)
    count = env.num_envs
    returns = np.zeros(count)
    end = np.zeros(count, np.int64)
    summary: dict[str, NDArray[np.float64]] = {}
    running = np.ones(count, np.bool_)
    state: Any = None
    starts = np.ones(count, np.bool_)
    while running.any():
        actions, state = policy.predict(observation, state=state, episode_start=starts, deterministic=True)
        observation, rewards, terminated, truncated, info = env.step(actions)
        starts = terminated | truncated
        returns[running] += rewards[running]
        ending = running & starts
        if ending.any():
            final = info["final_info"]
            end[ending] = final["end"][ending]
            for name, column in final["summary"].items():
                summary.setdefault(name, np.zeros(count))[ending] = column[ending]
            running &= ~starts
    return Episodes(returns, summary, end)
