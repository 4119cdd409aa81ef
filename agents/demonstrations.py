"""A start from what is known: an actor learns to do as the Bayes filter does (behaviour cloning), and its critic what that is worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn

from agents.bayes import BayesFilter
from agents.belief import Knowledge
from agents.vec_env import ShownVecEnv
from src.config import Config
from src.data.bank import TraceBank

TAUGHT = ("ppo", "a2c", "maskable_ppo")
"""Algorithms with an actor that can be shown what to do: values are not orders, and an LSTM would want whole episodes."""

EPOCHS, BATCH, RATE = 4, 256, 1e-3
"""Passes over what was demonstrated, samples a gradient step, and rate of Adam."""

STRAYING = 0.05
"""Share of the steps in which something else is done than what is demonstrated, so that the student sees where that leads."""


def imitate(model: BaseAlgorithm, scaler: VecNormalize, config: Config, bank: TraceBank, knowledge: Knowledge, steps: int, seed: int) -> None:
    """Let `model`'s actor imitate the Bayes filter on `steps` steps of its own environment, and its critic learn the returns.

    Without the critic's part, the first updates from rewards would follow a critic that knows nothing, and undo the actor's.

    Args:
        model: an untrained actor-critic algorithm without an LSTM.
        scaler: its environment, over a `ShownVecEnv`; left to be reset.
        config: sections `env`, `attackers` and `reward`.
        bank: what the filter learns from.
        knowledge: or has learned.
        steps: of all environments together.
        seed: of the order of the samples, and of the straying.
    """
    shown: ShownVecEnv = scaler.venv  # type: ignore[assignment]
    env = shown.venv.env  # type: ignore[attr-defined]
    teacher = BayesFilter(config, bank, env.simulation.layout, knowledge=knowledge)
    rng, shuffle = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    scaler.seed(seed)
    seen: Any = scaler.reset()
    state, starts = None, np.ones(env.num_envs, np.bool_)
    count = -(-steps // env.num_envs)
    X = np.empty((count, *seen.shape), np.float32)  # (T, E, size); the large one, so it is kept once
    Y, rewards, ends = np.empty(X.shape[:2], np.int64), np.empty(X.shape[:2], np.float32), np.empty(X.shape[:2], np.bool_)
    for t in range(count):
        parts, memory = teacher.belief.hear(state, env.simulation.observe(), starts)
        X[t], Y[t] = seen, teacher.decide(memory, parts)
        masks = env.action_masks()
        any_order = np.where(masks, rng.random(masks.shape), -1.0).argmax(axis=1)
        taken = np.where(rng.random(env.num_envs) < STRAYING, any_order, Y[t])
        state = teacher.belief.advance(memory, parts, taken)
        seen, rewards[t], starts, _ = scaler.step(taken)  # type: ignore[assignment]
        ends[t] = starts
    value, whole = _returns(rewards, ends, scaler.gamma)
    shown_then, policy = torch.from_numpy(X).flatten(0, 1), model.policy
    every, known = torch.arange(len(shown_then)), torch.from_numpy(np.flatnonzero(whole))

    def fit(network: Any, loss: Callable[[Tensor, Tensor], Tensor], wanted: NDArray[Any], rows: Tensor) -> None:
        answers, optimizer = torch.from_numpy(wanted).flatten(), torch.optim.Adam(network.parameters(), RATE)
        for _ in range(EPOCHS):
            for batch in rows[torch.randperm(len(rows), generator=shuffle)].split(BATCH):
                cost = loss(network(shown_then[batch].to(model.device)), answers[batch].to(model.device))
                optimizer.zero_grad()
                cost.backward()
                optimizer.step()

    fit(policy.action_net, nn.functional.cross_entropy, Y, every)
    if len(known):  # else no episode ended, and no return is known
        fit(policy.value_net, lambda found, wanted: nn.functional.mse_loss(found.squeeze(1), wanted), value, known)


def _returns(rewards: NDArray[np.float32], ends: NDArray[np.bool_], gamma: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(T, E) discounted returns, and (T, E) where the episode's end was seen, so that they are whole."""
    value, whole = np.zeros_like(rewards), np.zeros_like(ends)
    later, seen = np.zeros_like(rewards[0]), np.zeros_like(ends[0])
    for t in range(len(rewards) - 1, -1, -1):
        seen = seen | ends[t]
        later = rewards[t] + gamma * np.where(ends[t], 0.0, later).astype(np.float32)
        value[t], whole[t] = later, seen
    return value, whole
