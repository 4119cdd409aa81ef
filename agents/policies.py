"""The networks of `agents.networks` as policies of Stable-Baselines3 and sb3-contrib, one class for each kind of algorithm."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.qrdqn.policies import QRDQNPolicy, QuantileNetwork
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor, nn

from agents.networks import Actor, Critic, DeviceMemory, Shape, Values
from src.errors import UserError


class Through(nn.Module):
    """In the place of Stable-Baselines3's shared layers: actor and critic read what is shown themselves."""

    latent_dim_pi = latent_dim_vf = 1

    def forward(self, shown: Tensor) -> tuple[Tensor, Tensor]:
        """As it came, for both."""
        return shown, shown

    def forward_actor(self, shown: Tensor) -> Tensor:
        """As it came."""
        return shown

    def forward_critic(self, shown: Tensor) -> Tensor:
        """As it came."""
        return shown


def discrete(space: spaces.Space) -> int:
    """Number of actions.

    Raises:
        UserError: in joint mode, for which there is no such policy.
    """
    if not isinstance(space, spaces.Discrete):
        raise UserError("agents learn one addressed order a step: set env.action_mode to discrete, not joint")
    return int(space.n)


class _Furnished:
    """Our networks in the places of an actor-critic policy's own."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, lr_schedule: Any, *, shape: Shape, **kwargs: Any) -> None:
        discrete(action_space)
        self.shape = shape
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)  # type: ignore[call-arg]

    def _build(self, lr_schedule: Any) -> None:
        _furnish(self, self.shape, lr_schedule)


class ActorCritic(_Furnished, ActorCriticPolicy):
    """Of PPO and A2C."""


class MaskableActorCritic(_Furnished, MaskableActorCriticPolicy):
    """Of MaskablePPO."""


class RecurrentActorCritic(_Furnished, RecurrentActorCriticPolicy):
    """Of RecurrentPPO: each device has its own state of one shared LSTM, which the actor trains and the critic reads."""

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, lr_schedule: Any, *, shape: Shape, devices: int, units: int, **kwargs: Any
    ) -> None:
        """Build networks and optimiser."""
        small = {"lstm_hidden_size": 1, "shared_lstm": True, "enable_critic_lstm": False}  # of the LSTM that is replaced below
        super().__init__(observation_space, action_space, lr_schedule, shape=shape, **small, **kwargs)
        memory = DeviceMemory(shape, devices, units)
        self.lstm_actor = memory  # type: ignore[assignment]
        self.lstm_hidden_state_shape = (1, 1, memory.hidden_size)
        _furnish(self, memory.remembering(), lr_schedule)


def _furnish(policy: Any, shape: Shape, lr_schedule: Any) -> None:
    policy.mlp_extractor, policy.action_net, policy.value_net = Through(), Actor(shape), Critic(shape)
    policy.to(policy.device)
    policy.optimizer = policy.optimizer_class(policy.parameters(), lr=lr_schedule(1), **policy.optimizer_kwargs)


class ValuePolicy(DQNPolicy):
    """Of DQN."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, lr_schedule: Any, *, shape: Shape, **kwargs: Any) -> None:
        """Build networks and optimiser."""
        discrete(action_space)
        self.shape = shape
        super().__init__(observation_space, action_space, lr_schedule, net_arch=[], **kwargs)  # type: ignore[arg-type]

    def make_q_net(self) -> QNetwork:
        """Network or target network."""
        made = super().make_q_net()
        made.q_net = Values(self.shape)  # type: ignore[assignment]
        return made.to(self.device)


class QuantilePolicy(QRDQNPolicy):
    """Of QR-DQN."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, lr_schedule: Any, *, shape: Shape, n_quantiles: int, **kwargs: Any) -> None:
        """Build networks and optimiser."""
        discrete(action_space)
        self.shape = shape
        super().__init__(observation_space, action_space, lr_schedule, n_quantiles=n_quantiles, net_arch=[], **kwargs)  # type: ignore[arg-type]

    def make_quantile_net(self) -> QuantileNetwork:
        """Network or target network."""
        made = super().make_quantile_net()
        made.quantile_net = Values(self.shape, self.n_quantiles)  # type: ignore[assignment]
        return made.to(self.device)
