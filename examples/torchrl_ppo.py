"""TorchRL's PPO: its collector, advantage and clipped loss, over the vector environment."""

from typing import Any

import torch
from gymnasium.vector import AutoresetMode, VectorWrapper
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Categorical
from torchrl.collectors import Collector
from torchrl.envs import GymWrapper, RewardScaling
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from envs import IoTVectorEnv
from examples.common import Clock, compare, flags, launch

STEPS, EPOCHS, MINIBATCHES, LEARNING_RATE = 128, 4, 8, 1e-3


class Lean(VectorWrapper):
    """Only the part of `info` that TorchRL needs: its reader of vector environments fails on anything nested, whoever's environment it is."""

    autoreset_mode = AutoresetMode.SAME_STEP

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Without `info`."""
        return self.env.reset(seed=seed, options=options)[0], {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """With the last observations of the episodes that ended, which TorchRL puts where they belong."""
        *result, info = self.env.step(actions)
        return (*result, {name: info[name] for name in ("final_obs", "_final_obs") if name in info})


class Greedy:
    """The trained network, answering to `predict`."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    @torch.no_grad()
    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[Any, None]:
        """The likeliest action of each observation."""
        return self.network(torch.from_numpy(observation)).argmax(1).numpy(), None


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(nn.Linear(inputs, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, outputs))


def main() -> None:
    """Train, then compare."""
    args = flags(__doc__, timesteps=400_000, n_envs=64).parse_args()
    torch.manual_seed(args.seed)
    batch = IoTVectorEnv(args.n_envs, scenario=args.scenario, split="agent", flatten=True)
    # Categorical actions, for one-hot ones would be vectors; rewards scaled, for returns are in the hundreds.
    env = GymWrapper(Lean(batch), categorical_action_encoding=True).append_transform(RewardScaling(loc=0.0, scale=0.1))
    env.set_seed(args.seed)
    size, actions = batch.single_observation_space.shape[0], int(batch.single_action_space.n)
    network, critic = mlp(size, actions), ValueOperator(mlp(size, 1), in_keys=["observation"])
    actor = ProbabilisticActor(
        TensorDictModule(network, in_keys=["observation"], out_keys=["logits"]),
        in_keys=["logits"],
        spec=env.action_spec,
        distribution_class=Categorical,
        return_log_prob=True,
    )
    advantage = GAE(gamma=0.98, lmbda=0.95, value_network=critic)
    loss = ClipPPOLoss(actor, critic, clip_epsilon=0.2, entropy_coeff=0.005, critic_coeff=0.5, normalize_advantage=True)
    optimizer = torch.optim.Adam(loss.parameters(), lr=LEARNING_RATE)
    frames = STEPS * args.n_envs
    updates = max(1, args.timesteps // frames)
    collector = Collector(env, actor, frames_per_batch=frames, total_frames=updates * frames, auto_register_policy_transforms=True)
    clock = Clock()
    for data in collector:  # (E, STEPS)
        with torch.no_grad():
            advantage(data)
        flat = data.reshape(-1)
        for _ in range(EPOCHS):
            for chosen in torch.randperm(frames).chunk(MINIBATCHES):
                parts = loss(flat[chosen])
                total = parts["loss_objective"] + parts["loss_critic"] + parts["loss_entropy"]
                optimizer.zero_grad()
                total.backward()
                nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()
    compare("TorchRL PPO", Greedy(network), args, updates * frames, clock)
    collector.shutdown()


if __name__ == "__main__":
    launch(main)
