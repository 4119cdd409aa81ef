"""PPO in one file and plain PyTorch, in the manner of CleanRL, on the vector environment itself; orders that are not valid are masked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn
from torch.distributions import Categorical

from agents.networks import Actor, Critic, Shape
from agents.sight import Sight
from envs import IoTVectorEnv
from envs.world import Layout
from examples.common import Clock, compare, flags, launch, masks

STEPS, MINIBATCHES, EPOCHS = 128, 8, 4
GAMMA, LAMBDA, CLIP, ENTROPY, VALUE, MAX_NORM = 0.98, 0.95, 0.2, 0.005, 0.5, 0.5
LEARNING_RATE = 1e-3
REWARD_SCALE = 0.1
"""Returns are in the tens to hundreds; the critic learns better of smaller ones."""


class Mlp(nn.Module):
    """Actor and critic over the flat observation."""

    def __init__(self, inputs: int, actions: int) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(inputs, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, actions))
        self.critic = nn.Sequential(nn.Linear(inputs, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 1))
        nn.init.orthogonal_(self.actor[-1].weight, 0.01)  # starts without a preference

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """(B, inputs) -> logits (B, actions) and values (B,)."""
        return self.actor(observation), self.critic(observation).squeeze(1)


class DeviceSet(nn.Module):
    """The product's networks, one for all devices, without its belief."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.sight = Sight(layout, belief=False)
        shape = Shape("devices", self.sight.width, self.sight.wide, layout.devices, hidden_size=64, masked=True)
        self.actor, self.critic = Actor(shape), Critic(shape)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """(B, inputs) -> logits (B, actions) and values (B,)."""
        shown = torch.from_numpy(self.sight.show(self.sight.layout.split(observation.numpy()), None))
        return self.actor(shown), self.critic(shown).squeeze(1)


class Agent:
    """The network, masked."""

    def __init__(self, env: IoTVectorEnv, devices_as_a_set: bool) -> None:
        """`env` knows the spaces, and where in an observation the masks lie."""
        self.layout = env.simulation.layout
        self.network: nn.Module
        if devices_as_a_set:  # one network for all devices, whatever their number
            self.network = DeviceSet(self.layout)
        else:
            self.network = Mlp(env.single_observation_space.shape[0], int(env.single_action_space.n))

    def __call__(self, observation: Tensor, mask: Tensor) -> tuple[Categorical, Tensor]:
        """Policy over the actions that are allowed, and values (B,)."""
        logits, value = self.network(observation)
        return Categorical(logits=logits.masked_fill(~mask, -1e9), validate_args=False), value

    @torch.no_grad()
    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[Any, None]:
        """What `compare` asks for."""
        policy, _ = self(torch.from_numpy(observation), torch.from_numpy(masks(self.layout, observation)))
        return (policy.mode if deterministic else policy.sample()).numpy(), None


def main() -> None:
    """Train, then compare."""
    words = flags(__doc__, timesteps=600_000, n_envs=64)
    words.add_argument("--device-set", action="store_true", help="the product's networks, which know that devices are a set, in place of an MLP")
    args = words.parse_args()
    torch.manual_seed(args.seed)
    env = IoTVectorEnv(args.n_envs, scenario=args.scenario, split="agent", flatten=True)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP  # what the handling of `final_obs` below relies on
    E, size, actions = args.n_envs, env.single_observation_space.shape[0], int(env.single_action_space.n)
    agent = Agent(env, args.device_set)
    optimizer = torch.optim.Adam(agent.network.parameters(), lr=LEARNING_RATE, eps=1e-5)

    b_observation = torch.zeros(STEPS, E, size)
    b_mask = torch.zeros(STEPS, E, actions, dtype=torch.bool)
    b_action = torch.zeros(STEPS, E, dtype=torch.long)
    b_logp, b_reward, b_done, b_value = (torch.zeros(STEPS, E) for _ in range(4))

    clock = Clock()
    updates = max(1, args.timesteps // (STEPS * E))
    observation, _ = env.reset(seed=args.seed)
    running = np.zeros(E)
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1.0 - 0.9 * update / updates)
        returns: list[float] = []
        for t in range(STEPS):
            b_observation[t], b_mask[t] = torch.from_numpy(observation), torch.from_numpy(env.action_masks())
            with torch.no_grad():
                policy, b_value[t] = agent(b_observation[t], b_mask[t])
                b_action[t] = policy.sample()
                b_logp[t] = policy.log_prob(b_action[t])
            observation, reward, terminated, truncated, info = env.step(b_action[t].numpy())
            over = terminated | truncated
            running += reward
            returns += running[over].tolist()
            running[over] = 0.0
            reward = reward * REWARD_SCALE
            if truncated.any():
                # Cut off, not over: the value of the last observation stands for what would have followed. `observation` is
                # already the next episode's first; the last one of the old episode is in `final_obs`.
                last = info["final_obs"][truncated]
                with torch.no_grad():
                    _, value = agent(torch.from_numpy(last), torch.ones(len(last), actions, dtype=torch.bool))
                reward[truncated] += GAMMA * value.numpy()
            b_reward[t], b_done[t] = torch.from_numpy(reward), torch.from_numpy(over)

        # Generalised advantage estimation (Schulman et al. 2016).
        with torch.no_grad():
            _, following = agent(torch.from_numpy(observation), torch.from_numpy(env.action_masks()))
        advantage, gained = torch.zeros(STEPS, E), torch.zeros(E)
        for t in reversed(range(STEPS)):
            goes_on = 1.0 - b_done[t]
            gained = b_reward[t] + GAMMA * goes_on * following - b_value[t] + GAMMA * LAMBDA * goes_on * gained
            advantage[t], following = gained, b_value[t]
        target = (advantage + b_value).flatten()
        flat = [part.flatten(0, 1) for part in (b_observation, b_mask, b_action, b_logp, advantage)]

        for _ in range(EPOCHS):
            for chosen in torch.randperm(STEPS * E).chunk(MINIBATCHES):
                obs, mask, action, old_logp, adv = (part[chosen] for part in flat)
                policy, value = agent(obs, mask)
                adv = (adv - adv.mean()) / (adv.std() + 1e-8)
                ratio = (policy.log_prob(action) - old_logp).exp()
                actor_loss = -torch.min(ratio * adv, ratio.clamp(1 - CLIP, 1 + CLIP) * adv).mean()
                critic_loss = 0.5 * (value - target[chosen]).square().mean()
                # An action that is never drawn has probability 0, and p log p is 0 there.
                entropy = -(policy.probs * policy.logits.clamp(min=-50)).sum(1).mean()
                loss = actor_loss + VALUE * critic_loss - ENTROPY * entropy
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.network.parameters(), MAX_NORM)
                optimizer.step()
        if returns and update % max(1, updates // 10) == 0:
            print(f"{(update + 1) * STEPS * E:>9,} steps: mean return {np.mean(returns):.1f}")
    name = "PPO, device set" if args.device_set else "PPO, MLP"
    compare(name, agent, args, updates * STEPS * E, clock)


if __name__ == "__main__":
    launch(main)
