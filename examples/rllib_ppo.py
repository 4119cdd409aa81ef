"""RLlib's PPO on its new API stack, with environments in a worker process of their own."""

from typing import Any

import ray
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.tune import register_env

from envs import IoTEnv
from examples.common import Clock, compare, flags, launch

UPDATE = 4_096
"""Environment steps an update."""


class Greedy:
    """The trained module, answering to `predict`."""

    def __init__(self, module: RLModule) -> None:
        self.module = module

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[Any, None]:
        """The likeliest action of each observation."""
        with torch.no_grad():
            answer = self.module.forward_inference({"obs": torch.from_numpy(observation)})
        return answer["action_dist_inputs"].argmax(1).numpy(), None


def main() -> None:
    """Train, then compare."""
    args = flags(__doc__, timesteps=200_000, n_envs=16).parse_args()
    # RLlib batches single environments itself; it counts on another autoreset mode than IoTVectorEnv's.
    register_env("iot-defense", lambda settings: IoTEnv(**settings))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    config = (
        PPOConfig()
        .environment("iot-defense", env_config={"scenario": args.scenario, "split": "agent", "flatten": True})
        .env_runners(num_env_runners=1, num_envs_per_env_runner=args.n_envs)
        .training(
            train_batch_size_per_learner=UPDATE,
            minibatch_size=512,
            num_epochs=8,
            lr=1e-3,
            gamma=0.98,
            lambda_=0.95,
            clip_param=0.2,
            entropy_coeff=0.005,
            grad_clip=0.5,
            # Returns are in the hundreds, and RLlib clips the critic's squared error, at 10 unless told otherwise.
            vf_clip_param=float("inf"),
            vf_loss_coeff=0.001,
        )
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[128, 128], fcnet_activation="tanh", vf_share_layers=False))
        .debugging(seed=args.seed, log_level="ERROR")
    )
    algorithm = config.build_algo()
    clock, steps = Clock(), 0
    while steps < args.timesteps:
        result = algorithm.train()
        steps = int(result["num_env_steps_sampled_lifetime"])
        print(f"{steps:>9,} steps: mean return {result['env_runners'].get('episode_return_mean', float('nan')):.1f}")
    compare("RLlib PPO", Greedy(algorithm.get_module()), args, steps, clock)
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    launch(main)
