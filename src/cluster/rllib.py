"""RLlib's PPO on the registered environment, saved as every other agent is, so that it plays beside them."""
# pyright: reportMissingImports=false
# (Ray is no part of requirements.txt)

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.tune import register_env
from safetensors.torch import save_file
from torch import Tensor

import envs  # noqa: F401  (registers the environment)
from agents.learned import KIND
from agents.sight import Sight
from agents.training import OnMetrics, RLTrainer
from envs.world import Simulation
from src.artifacts import new_artifact

NAME = "iot-defense"
LAYERS = {
    "encoder.actor_encoder.net.mlp.0": "head.flat.0", "encoder.actor_encoder.net.mlp.2": "head.flat.2", "pi.net.mlp.0": "head.flat.4",
}  # fmt: skip
"""RLlib's name of each layer of its actor, and that of `agents.networks.Actor` over a flat network: both are the same perceptron."""


class Shown(gymnasium.ObservationWrapper):
    """The environment as the networks of all agents are shown it, without a belief: scaled features, log-odds of readings."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        """Wrap a flat environment."""
        super().__init__(env)
        simulation: Simulation = env.unwrapped.simulation  # type: ignore[attr-defined]
        self.layout, self.sight = simulation.layout, Sight(simulation.layout, belief=False)
        self.observation_space = self.sight.space(self.layout.devices)

    def observation(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """(size,) -> (D x width + 2,)."""
        return self.sight.show(self.layout.split(observation[None]), None)[0]


class RLlibTrainer(RLTrainer):
    """Trains with RLlib, in this process: a task of the cluster is one training. It has no memory, and orders that would change nothing are not ruled out.

    RLlib's checkpoints would have to be unpickled, so there are none: a training that is cut off begins anew, and ends with the same weights.
    """

    def train(self, seed: int, on_metrics: OnMetrics | None = None, resume: bool = False) -> Path:
        """Train one agent and save it.

        Args:
            seed: same seed, same configuration and bank: same weights.
            on_metrics: called after every update.
            resume: return at once where the agent is already trained.

        Raises:
            UserError: for an altered artifact, or a folder that cannot be written.
        """
        target, rl = self.target(seed), self.config.rl
        if resume and self.trained(seed):
            return target
        register_env(NAME, lambda settings: Shown(gymnasium.make("IoTDefense-v0", **settings)))
        ppo = rl.rllib_ppo
        given = {"bank": self.bank, "split": "agent", "config": self.config, "sensor": self.sensor, "flatten": True, "action_mode": "discrete"}
        layers = DefaultModelConfig(fcnet_hiddens=[rl.hidden_size, rl.hidden_size], fcnet_activation="relu", vf_share_layers=False)
        algorithm = (
            PPOConfig()
            .environment(NAME, env_config=given)
            .env_runners(num_env_runners=0, num_envs_per_env_runner=rl.n_envs)
            .learners(num_learners=0)
            .training(
                train_batch_size_per_learner=rl.n_envs * ppo.n_steps,
                minibatch_size=ppo.batch_size,
                num_epochs=ppo.n_epochs,
                lr=ppo.learning_rate,
                gamma=ppo.gamma,
                lambda_=ppo.gae_lambda,
                clip_param=ppo.clip_range,
                entropy_coeff=ppo.ent_coef,
                grad_clip=ppo.max_grad_norm,
                # Returns are in the tens, and RLlib clips the critic's squared error, at 10 unless told otherwise.
                vf_clip_param=float("inf"),
                vf_loss_coeff=ppo.vf_coef,
            )
            .rl_module(model_config=layers)
            .debugging(seed=seed, log_level="ERROR")
            .build_algo()
        )
        try:
            steps = 0
            while steps < rl.total_timesteps:
                found = algorithm.train()
                steps = int(found["num_env_steps_sampled_lifetime"])
                if on_metrics is not None:
                    on_metrics(_figures(found), steps)
            self._keep(target, algorithm.get_module().state_dict(), seed, steps)
        finally:
            algorithm.stop()
        return target

    def _keep(self, target: Path, weights: dict[str, Tensor], seed: int, steps: int) -> None:
        env = gymnasium.make("IoTDefense-v0", bank=self.bank, split="agent", config=self.config, sensor=self.sensor, flatten=True, action_mode="discrete")
        simulation: Simulation = env.unwrapped.simulation  # type: ignore[attr-defined]
        meta = {**self._told(simulation, seed, steps), "network": {"kind": "flat", "hidden_size": self.config.rl.hidden_size, "masked": False}}
        with new_artifact(target, KIND, meta) as folder:
            kept = {f"{mine}.{part}": torch.as_tensor(weights[f"{theirs}.{part}"]) for theirs, mine in LAYERS.items() for part in ("weight", "bias")}
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}, folder / "policy.safetensors")


def _figures(found: dict[str, Any]) -> dict[str, float]:
    """What RLlib says of an update, by the names that the other algorithms' figures have."""
    learned, played = found["learners"]["default_policy"], found["env_runners"]
    named = {"policy_loss": "policy_gradient_loss", "vf_loss_unclipped": "value_loss", "entropy": "entropy", "vf_explained_var": "explained_variance"}
    figures = {f"train/{name}": float(learned[key]) for key, name in named.items() if key in learned}
    if "episode_return_mean" in played and np.isfinite(played["episode_return_mean"]):
        figures["rollout/reward_mean"] = float(played["episode_return_mean"])
    return figures
