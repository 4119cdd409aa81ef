"""Stable-Baselines3's vector interface over one compiled batch, without an object per environment; and what an agent is shown of it."""

from __future__ import annotations

import time
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from agents.belief import Belief, Memory
from agents.sight import Sight, hidden_state
from envs.world import Simulation
from src.errors import UserError


class Batch(Protocol):
    """What is asked of a batch: `IoTVectorEnv` has it, and `IoTDuelVectorEnv`."""

    num_envs: int

    @property
    def single_observation_space(self) -> gymnasium.Space:
        """One environment's observations."""
        ...

    @property
    def single_action_space(self) -> gymnasium.Space:
        """One environment's actions."""
        ...

    @property
    def simulation(self) -> Simulation:
        """The worlds."""
        ...

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every environment."""
        ...

    def step(self, actions: Any) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Act in every environment."""
        ...

    def action_masks(self) -> NDArray[np.bool_]:
        """(E, actions) what would change something."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """Everything that the coming steps depend on."""
        ...

    def restore(self, saved: dict[str, Any]) -> Any:
        """Go on from a snapshot; the observations there."""
        ...

    def close(self) -> Any:
        """Let go of it."""
        ...


class IoTSB3VecEnv(VecEnv):
    """What Stable-Baselines3 calls a `VecEnv`, over `IoTVectorEnv` or `IoTDuelVectorEnv` with flat observations.

    Where an episode ends, `infos[i]` holds `terminal_observation` (size,), `TimeLimit.truncated`, `episode` (`r` return, `l` steps,
    `t` seconds since it was built), `summary` and `end` as `IoTEnv` reports them; elsewhere it is empty.
    `seed(s)` followed by `reset()` gives environment i the seed s + i.
    """

    def __init__(self, env: Batch) -> None:
        """Wrap a batch.

        Raises:
            UserError: when its observations are not flat.
        """
        if not env.simulation.config.env.flatten:
            raise UserError("training reads flat observations: build the environment with flatten=True")
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self._actions: NDArray[np.int64] = np.zeros(0, np.int64)
        self._returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, np.int64)
        self._began = time.perf_counter()

    def reset(self) -> NDArray[np.float32]:
        """Start an episode everywhere: (E, size)."""
        observation, info = self.env.reset(seed=list(self._seeds))
        self.reset_infos = [{name: column[i] for name, column in info.items()} for i in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0.0
        self._lengths[:] = 0
        return observation

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step every environment."""
        observation, rewards, terminated, truncated, info = self.env.step(self._actions)
        dones = terminated | truncated
        self._returns += rewards
        self._lengths += 1
        # A dict of its own for each environment: wrappers may write to it, and an empty one costs next to nothing.
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if dones.any():
            summary, end = info["final_info"]["summary"], info["final_info"]["end"]
            seconds = time.perf_counter() - self._began
            for e in np.flatnonzero(dones):
                infos[e] = {
                    "terminal_observation": info["final_obs"][e],
                    "TimeLimit.truncated": bool(truncated[e] and not terminated[e]),
                    "episode": {"r": float(self._returns[e]), "l": int(self._lengths[e]), "t": seconds},
                    "summary": {name: float(column[e]) for name, column in summary.items()},
                    "end": int(end[e]),
                }
            self._returns[dones] = 0.0
            self._lengths[dones] = 0
        return observation, rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Close the batch."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The batch's attribute, once for each environment asked for."""
        value = getattr(self.env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the batch.

        Raises:
            UserError: when only some environments are named, for they share their attributes.
        """
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise UserError(f"the {self.num_envs} environments share their attributes; '{attr_name}' can only be set for all of them")
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any) -> list[Any]:
        """Rows of what a method of the batch returns, one for each environment asked for (`action_masks`, as MaskablePPO needs it)."""
        rows = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [rows[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """True for `Monitor`, whose episode statistics are reported here, and False for every other wrapper."""
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]

    def get_images(self) -> list[None]:
        """Nothing: a batch is not drawn."""
        return [None] * self.num_envs

    def state(self) -> dict[str, Any]:
        """Everything that the coming steps depend on, as tensors and text, for a checkpoint."""
        saved = self.env.snapshot()
        return {
            **{name: torch.from_numpy(part) if isinstance(part, np.ndarray) else part for name, part in saved.items()},
            "returns": torch.from_numpy(self._returns.copy()),
            "lengths": torch.from_numpy(self._lengths.copy()),
        }

    def restore(self, state: dict[str, Any]) -> NDArray[np.float32]:
        """Go on from `state()` of a batch of the same size; the observations there, (E, size)."""
        observation = self.env.restore({name: part.numpy() if isinstance(part, torch.Tensor) else part for name, part in state.items()})
        self._returns[:] = state["returns"].numpy()
        self._lengths[:] = state["lengths"].numpy()
        return observation


class ShownVecEnv(VecEnvWrapper):
    """An `IoTSB3VecEnv` over `IoTVectorEnv` that shows what `Sight` says, and keeps the belief that it may need.

    The end of the horizon counts as an end, not as a cut: the time left is observed, and no reward comes after it. So nothing is
    asked about the observation there, and `terminal_observation` is that of the next episode's beginning.
    """

    def __init__(self, venv: IoTSB3VecEnv, sight: Sight, belief: Belief | None) -> None:
        """Wrap a batch; `belief` is that of its network, where `sight` shows one."""
        self.sight, self.belief = sight, belief
        self._simulation = venv.env.simulation
        self._memory: Memory | None = None
        self._parts: dict[str, Any] = {}
        super().__init__(venv, sight.space(self._simulation.layout.devices))

    def reset(self) -> NDArray[np.float32]:
        """Start an episode everywhere, with nothing remembered."""
        self._memory = None
        return self._show(self.venv.reset(), None)  # type: ignore[arg-type]

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Keep the actions for `step_wait`, and in mind."""
        if self.belief is not None and self._memory is not None:
            self._memory = self.belief.advance(self._memory, self._parts, actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Step every environment."""
        observation, rewards, dones, infos = self.venv.step_wait()
        shown = self._show(observation, dones)  # type: ignore[arg-type]
        for e in np.flatnonzero(dones):
            infos[e] |= {"terminal_observation": shown[e], "TimeLimit.truncated": False}
        return shown, rewards, dones, infos

    def _show(self, observation: NDArray[np.float32], starts: NDArray[np.bool_] | None) -> NDArray[np.float32]:
        believed = None
        if self.belief is None:
            self._parts = self._simulation.layout.split(observation)
        else:
            self._parts, self._memory = self.belief.hear(self._memory, observation, starts)
            believed = self.belief.inputs(self._memory, self._parts)
        return self.sight.show(self._parts, believed, hidden_state(self._simulation) if self.sight.truth else None)

    def state(self) -> dict[str, Any]:
        """Everything that the coming steps depend on, as tensors and text, for a checkpoint."""
        remembered = () if self._memory is None else self._memory
        return {"batch": self.venv.state(), "memory": [torch.from_numpy(part.copy()) for part in remembered]}  # type: ignore[attr-defined]

    def restore(self, state: dict[str, Any]) -> NDArray[np.float32]:
        """Go on from `state()` of a batch of the same size; what is shown there."""
        observation = self.venv.restore(state["batch"])  # type: ignore[attr-defined]
        self._parts, believed = self._simulation.layout.split(observation), None
        if self.belief is not None:
            self._memory = Memory(*(part.numpy() for part in state["memory"]))
            believed = self.belief.inputs(self._memory, self._parts)
        return self.sight.show(self._parts, believed, hidden_state(self._simulation) if self.sight.truth else None)
