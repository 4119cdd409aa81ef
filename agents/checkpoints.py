"""Checkpoints of a training run, exact: who goes on from one ends where the uninterrupted run would have ended (on a CPU)."""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from src.artifacts import check_seal, seal
from src.errors import UserError

_REMEMBERED = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
"""Arrays of a replay buffer, (transitions, environments, ...) each."""


def write_checkpoint(path: Path, mark: str, model: BaseAlgorithm, scaler: VecNormalize, more: dict[str, Any]) -> None:
    """Everything that the coming steps depend on, written whole or not at all.

    Args:
        path: the file; a former checkpoint there is replaced.
        mark: digest of what the run depends on.
        model: between two rollouts, its update done.
        scaler: the model's environment, over a `ShownVecEnv`.
        more: what the caller wants back; tensors, numbers and text.

    Raises:
        UserError: when the folder cannot be written.
    """
    twister: Any = np.random.get_state()  # noqa: NPY002 - what Stable-Baselines3 draws its batches from
    state = {
        "mark": mark,
        "timesteps": model.num_timesteps,
        "updates": model._n_updates,
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
        "episode_starts": torch.from_numpy(np.asarray(model._last_episode_starts).copy()),
        "env": scaler.venv.state(),  # type: ignore[attr-defined]
        "scale": {"mean": float(scaler.ret_rms.mean), "var": float(scaler.ret_rms.var), "count": float(scaler.ret_rms.count)},
        "discounted": torch.from_numpy(scaler.returns.copy()),
        "torch": torch.get_rng_state(),
        "numpy": [twister[0], torch.from_numpy(twister[1].copy()), *twister[2:]],
        "python": json.dumps(random.getstate()),
        "learner": _learner(model),
        "more": more,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _partial(path).open("wb") as stream:
            torch.save(state, stream)
        seal(_partial(path))
        os.replace(_partial(path), path)
    except OSError as error:
        raise UserError(f"cannot write checkpoint '{path}': {error.strerror}; choose a writable folder with --set compute.artifacts=FOLDER") from error


def restore_checkpoint(path: Path, mark: str, model: BaseAlgorithm, scaler: VecNormalize) -> dict[str, Any]:
    """Put a checkpoint's state into a fresh model and its environments, and into the global random numbers; returns what was kept `more`.

    Raises:
        UserError: when the file cannot be read, was altered, or is another run's.
    """
    check_seal(path, "delete it, or train without --resume")
    try:
        state = torch.load(path, map_location=model.device, weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, UnpicklingError) as error:
        raise UserError(f"checkpoint '{path}' cannot be read ({error.__class__.__name__}); delete it, or train without --resume") from error
    if state["mark"] != mark:
        raise UserError(f"checkpoint '{path}' is of a run with another configuration or trace bank; delete it, or train without --resume")
    model.policy.load_state_dict(state["policy"])
    model.policy.optimizer.load_state_dict(state["optimizer"])
    model.num_timesteps, model._n_updates = state["timesteps"], state["updates"]
    model._last_obs = scaler.venv.restore(state["env"])  # type: ignore[attr-defined]
    model._last_original_obs = model._last_obs  # as it is: observations are not scaled
    model._last_episode_starts = state["episode_starts"].cpu().numpy()
    scaler.ret_rms.mean, scaler.ret_rms.var = np.array(state["scale"]["mean"]), np.array(state["scale"]["var"])
    scaler.ret_rms.count = state["scale"]["count"]
    scaler.returns = state["discounted"].cpu().numpy()
    torch.set_rng_state(state["torch"].cpu())
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.cpu().numpy(), *rest))  # noqa: NPY002
    version, numbers, gauss = json.loads(state["python"])
    random.setstate((version, tuple(numbers), gauss))
    _take_up(model, state["learner"])
    return state["more"]


def _learner(model: BaseAlgorithm) -> dict[str, Any]:
    """What one kind of algorithm carries from update to update beside the policy: an LSTM's state, or the transitions remembered."""
    if isinstance(model, RecurrentPPO):
        return {"recurrent": [[part.clone() for part in pair] for pair in model._last_lstm_states]}  # type: ignore[union-attr]
    if not isinstance(model, OffPolicyAlgorithm):
        return {}
    buffer = model.replay_buffer
    assert isinstance(buffer, ReplayBuffer)
    filled = buffer.buffer_size if buffer.full else buffer.pos
    kept = {name: torch.from_numpy(getattr(buffer, name)[:filled].copy()) for name in _REMEMBERED}
    return {
        **kept,
        "pos": buffer.pos,
        "full": buffer.full,
        "calls": model._n_calls,  # type: ignore[attr-defined]
        "exploration": model.exploration_rate,  # type: ignore[attr-defined]
        "random_actions": json.dumps(model.action_space.np_random.bit_generator.state),
    }  # type: ignore[attr-defined]


def _take_up(model: BaseAlgorithm, kept: dict[str, Any]) -> None:
    if isinstance(model, RecurrentPPO):
        model._last_lstm_states = RNNStates(*(tuple(pair) for pair in kept["recurrent"]))  # type: ignore[arg-type]
    elif isinstance(model, OffPolicyAlgorithm):
        buffer = model.replay_buffer
        assert isinstance(buffer, ReplayBuffer)
        for name in _REMEMBERED:
            rows = kept[name].cpu().numpy()
            getattr(buffer, name)[: len(rows)] = rows
        buffer.pos, buffer.full = kept["pos"], kept["full"]
        model._n_calls, model.exploration_rate = kept["calls"], kept["exploration"]  # type: ignore[attr-defined]
        model.action_space.np_random.bit_generator.state = json.loads(kept["random_actions"])


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint, and what a killed run may have left of the next one."""
    path.unlink(missing_ok=True)
    _partial(path).unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


@contextlib.contextmanager
def own_randomness() -> Iterator[None]:
    """Leave the global random numbers, which Stable-Baselines3 seeds and draws from, as they were."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(pytorch)
