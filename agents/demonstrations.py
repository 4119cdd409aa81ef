"""A start from what is known: an actor learns to do as the Bayes filter does, before it learns from rewards (behaviour cloning)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from agents.bayes import BayesFilter, Foresight
from agents.belief import Knowledge
from agents.vec_env import ShownVecEnv
from src.config import Config
from src.data.bank import TraceBank

EPOCHS, BATCH, RATE = 4, 256, 1e-3
"""Passes over what was demonstrated, samples a gradient step, and rate of Adam."""

STRAYING = 0.05
"""Share of the steps in which something else is done than what is demonstrated, so that the student sees where that leads."""


def imitate(model: BaseAlgorithm, scaler: VecNormalize, config: Config, bank: TraceBank, knowledge: Knowledge, seed: int) -> None:
    """Let `model`'s actor imitate the Bayes filter on `rl.demonstrations` steps of its own environment.

    Args:
        model: an untrained actor-critic algorithm without an LSTM.
        scaler: its environment, over a `ShownVecEnv`; left to be reset.
        config: sections `env`, `attackers`, `reward` and `rl`.
        bank: what the filter learns from.
        knowledge: or has learned.
        seed: of the order of the samples, and of the straying.
    """
    shown: ShownVecEnv = scaler.venv  # type: ignore[assignment]
    env = shown.venv.env  # type: ignore[attr-defined]
    teacher = BayesFilter(config, bank, env.simulation.layout, Foresight(restore=120.0, late=2.0), knowledge=knowledge)
    rng, shuffle = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    shown.seed(seed)
    seen, state, starts = shown.reset(), None, np.ones(env.num_envs, np.bool_)
    inputs, orders = [], []
    for _ in range(-(-config.rl.demonstrations // env.num_envs)):
        parts, memory = teacher.belief.hear(state, env.simulation.observe(), starts)
        wise = teacher.decide(memory, parts)
        inputs.append(seen)
        orders.append(wise)
        masks = env.action_masks()
        any_order = np.where(masks, rng.random(masks.shape), -1.0).argmax(axis=1)
        taken = np.where(rng.random(env.num_envs) < STRAYING, any_order, wise)
        state = teacher.belief.advance(memory, parts, taken)
        seen, _, starts, _ = shown.step(taken)  # type: ignore[assignment]
    X, Y = torch.from_numpy(np.concatenate(inputs)), torch.from_numpy(np.concatenate(orders))
    actor: Any = model.policy.action_net
    optimizer = torch.optim.Adam(actor.parameters(), RATE)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(X), generator=shuffle).split(BATCH):
            loss = nn.functional.cross_entropy(actor(X[rows].to(model.device)), Y[rows].to(model.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
