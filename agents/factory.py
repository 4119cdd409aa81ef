"""Algorithms by name, built from configuration."""

from __future__ import annotations

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from agents.networks import DeviceSetPolicy
from envs.world import Layout
from src.config import Config, nearest
from src.errors import UserError


class AlgorithmFactory:
    """Builds an algorithm with every hyperparameter of the configuration's `rl` section."""

    def __init__(self, config: Config) -> None:
        """Keep the configuration."""
        self.config = config
        self._builders = {"ppo": self._ppo}

    def build(self, name: str, env: VecEnv, layout: Layout, seed: int) -> PPO:
        """An untrained algorithm. Sets the global random seeds, as Stable-Baselines3 does.

        Raises:
            UserError: for an unknown name, or a scenario in joint mode.
        """
        if name not in self._builders:
            raise UserError(f"unknown algorithm '{name}': {nearest(name, self._builders)}")
        return self._builders[name](env, layout, seed)

    def _ppo(self, env: VecEnv, layout: Layout, seed: int) -> PPO:
        """Proximal policy optimisation (Schulman et al. 2017)."""
        rl = self.config.rl
        return PPO(
            DeviceSetPolicy,
            env,
            learning_rate=lambda remaining: rl.learning_rate * (0.1 + 0.9 * remaining),
            n_steps=rl.n_steps,
            batch_size=rl.batch_size,
            n_epochs=rl.n_epochs,
            gamma=rl.gamma,
            gae_lambda=rl.gae_lambda,
            clip_range=rl.clip_range,
            ent_coef=rl.ent_coef,
            vf_coef=rl.vf_coef,
            max_grad_norm=rl.max_grad_norm,
            seed=seed,
            device=self.config.compute.device,
            policy_kwargs={"layout": layout, "hidden_size": rl.hidden_size},
        )
