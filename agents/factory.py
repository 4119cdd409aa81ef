"""Algorithms by name, built from configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sb3_contrib import QRDQN, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.networks import Shape
from agents.policies import ActorCritic, MaskableActorCritic, QuantilePolicy, RecurrentActorCritic, ValuePolicy
from agents.sight import Sight
from envs.world import Layout
from src.config import Config, DQNConfig, OnPolicyConfig, nearest
from src.errors import UserError

VALUED = ("dqn", "qrdqn")
"""Algorithms without an actor: they learn what each action is worth, and are shown no truth."""


def believes(config: Config) -> bool:
    """Whether the configured algorithm is shown a belief; an LSTM remembers for itself, and RLlib's PPO has no memory."""
    return config.rl.memory == "belief" and config.rl.algorithm not in ("recurrent_ppo", "rllib_ppo")


def sight(config: Config, layout: Layout) -> Sight:
    """What the configured algorithm is shown of observations of a layout."""
    return Sight(layout, believes(config), config.rl.privileged_critic and config.rl.algorithm not in VALUED)


class AlgorithmFactory:
    """Builds an algorithm with every hyperparameter of its section below the configuration's `rl`."""

    def __init__(self, config: Config) -> None:
        """Keep the configuration."""
        self.config = config
        self._builders: dict[str, Callable[[VecEnv, Shape, int], BaseAlgorithm]] = {
            "ppo": self._ppo,
            "a2c": self._a2c,
            "dqn": self._dqn,
            "qrdqn": self._qrdqn,
            "maskable_ppo": self._maskable_ppo,
            "recurrent_ppo": self._recurrent_ppo,
        }

    def build(self, name: str, env: VecEnv, sight: Sight, seed: int) -> BaseAlgorithm:
        """An untrained algorithm over an environment that shows what `sight` says. Sets the global random seeds, as Stable-Baselines3 does.

        Raises:
            UserError: for an unknown name, or a scenario in joint mode.
        """
        if name not in self._builders:
            raise UserError(f"unknown algorithm '{name}': {nearest(name, self._builders)}")
        rl = self.config.rl
        return self._builders[name](env, Shape(rl.network, sight.width, sight.wide, sight.layout.devices, rl.hidden_size, rl.masked), seed)

    def _shared(self, env: VecEnv, seed: int, rate: float) -> dict[str, Any]:
        return {"env": env, "seed": seed, "device": self.config.compute.device, "learning_rate": lambda remaining: rate * (0.1 + 0.9 * remaining)}

    def _on_policy(self, settings: OnPolicyConfig, env: VecEnv, seed: int) -> dict[str, Any]:
        names = ("n_steps", "gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm")
        return {**self._shared(env, seed, settings.learning_rate), **{name: getattr(settings, name) for name in names}}

    def _ppo(self, env: VecEnv, shape: Shape, seed: int) -> BaseAlgorithm:
        ppo = self.config.rl.ppo
        return PPO(
            ActorCritic, **self._on_policy(ppo, env, seed), batch_size=ppo.batch_size, n_epochs=ppo.n_epochs, clip_range=ppo.clip_range,
            policy_kwargs={"shape": shape},
        )  # fmt: skip

    def _a2c(self, env: VecEnv, shape: Shape, seed: int) -> BaseAlgorithm:
        return A2C(ActorCritic, **self._on_policy(self.config.rl.a2c, env, seed), use_rms_prop=False, policy_kwargs={"shape": shape})

    def _maskable_ppo(self, env: VecEnv, shape: Shape, seed: int) -> BaseAlgorithm:
        ppo = self.config.rl.maskable_ppo
        return MaskablePPO(
            MaskableActorCritic, **self._on_policy(ppo, env, seed), batch_size=ppo.batch_size, n_epochs=ppo.n_epochs, clip_range=ppo.clip_range,
            policy_kwargs={"shape": shape},
        )  # fmt: skip

    def _recurrent_ppo(self, env: VecEnv, shape: Shape, seed: int) -> BaseAlgorithm:
        ppo = self.config.rl.recurrent_ppo
        return RecurrentPPO(
            RecurrentActorCritic, **self._on_policy(ppo, env, seed), batch_size=ppo.batch_size, n_epochs=ppo.n_epochs, clip_range=ppo.clip_range,
            policy_kwargs={"shape": shape, "devices": shape.devices, "units": ppo.units},
        )  # fmt: skip

    def _off_policy(self, settings: DQNConfig, env: VecEnv, seed: int) -> dict[str, Any]:
        names = (
            "buffer_size", "learning_starts", "batch_size", "gamma", "n_steps", "train_freq", "gradient_steps", "target_update_interval",
            "exploration_fraction", "exploration_final_eps", "max_grad_norm",
        )  # fmt: skip
        return {**self._shared(env, seed, settings.learning_rate), **{name: getattr(settings, name) for name in names}}

    def _dqn(self, env: VecEnv, shape: Shape, seed: int) -> BaseAlgorithm:
        return DQN(ValuePolicy, **self._off_policy(self.config.rl.dqn, env, seed), policy_kwargs={"shape": shape})

    def _qrdqn(self, env: VecEnv, shape: Shape, seed: int) -> BaseAlgorithm:
        dqn = self.config.rl.qrdqn
        return QRDQN(QuantilePolicy, **self._off_policy(dqn, env, seed), policy_kwargs={"shape": shape, "n_quantiles": dqn.n_quantiles})
