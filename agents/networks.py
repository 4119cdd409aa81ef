"""A policy that knows that devices are a set: one network for all of them, whatever their number and order."""

from __future__ import annotations

import math
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from envs.world import KINDS, Layout
from src.data.bank import FEATURE_BOUND
from src.errors import UserError

MASKED = -1e9
"""Logit of an order that would change nothing; finite, so that entropies stay finite."""

PATIENCE = 2.0
"""Logit of MONITOR before training, against 0 for all orders of a kind together. Who starts by ordering at random spends its
first updates unlearning that, on networks which it has itself taken down."""

FEATURE_SCALE = 0.5 / FEATURE_BOUND
"""Traffic features enter at the scale of the other inputs. At their own they are by far the largest, and being different for
every window they invite the network to know training windows by heart."""

READING_MARGIN, READING_SCALE = 0.005, 1 / 3
"""Readings in [0, 1] enter as log-odds, in which evidence adds up and .01 lies as far from .1 as .9 from .99: kept off 0 and 1
by the margin, then brought to the scale of the other inputs."""


class DeviceSetNetwork(nn.Module):
    """Deep set (Zaheer et al. 2017) over devices, with an actor's and a critic's output.

    Every device's floats, with the context, pass one shared MLP. A device's five orders get their logits from its own
    embedding beside the mean and the maximum over all devices; MONITOR's comes from these pooled embeddings. The value is a
    criticality-weighted sum of one number a device, as the reward is, plus one from the pooled embeddings.
    Reordering devices reorders the logits and leaves the value; the weights fit any number of devices.
    """

    def __init__(self, layout: Layout, hidden_size: int) -> None:
        """`layout` says what a device's floats are; its number of devices does not matter."""
        super().__init__()
        H = hidden_size
        self.layout = layout
        self.embed = nn.Linear(layout.width, H)
        self.embed_context = nn.Linear(Layout.CONTEXT, H, bias=False)
        self.deepen = nn.Linear(H, H)
        self.own = nn.Linear(H, H)
        self.others = nn.Linear(2 * H, H, bias=False)
        self.orders = nn.Linear(H, KINDS)
        self.worth = nn.Linear(H, 1)
        self.pooled = nn.Linear(2 * H, H)
        self.monitor = nn.Linear(H, 1)
        self.base = nn.Linear(H, 1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight, math.sqrt(2))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for last, gain in ((self.orders, 0.01), (self.monitor, 0.01), (self.worth, 1.0), (self.base, 1.0)):
            nn.init.orthogonal_(last.weight, gain)
        nn.init.constant_(self.monitor.bias, PATIENCE)

    def forward(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, invalid orders masked, and value.

        Args:
            flat: (B, D x width + 2) flat observations.

        Returns:
            (B, 1 + 5 D) and (B,).
        """
        parts = self.layout.for_size(flat.shape[1]).split(flat)  # (B, D, n) each
        F = self.layout.features
        features, readings = [parts["features"]], [parts["sensors"]]
        if "past" in parts:
            past = parts["past"].unflatten(2, (self.layout.history - 1, -1))  # (B, D, k - 1, F + S)
            features.append(past[..., :F].flatten(2))
            readings.append(past[..., F:].flatten(2))
        readings.append(parts["trend"])
        plain = [parts[name] for name in ("controls", "service", "silent", "valid", "device")]
        odds = torch.logit(torch.cat(readings, dim=2), eps=READING_MARGIN) * READING_SCALE
        inputs = torch.cat([torch.cat(features, dim=2) * FEATURE_SCALE, odds, *plain], dim=2)  # (B, D, K)
        h = torch.relu(self.embed(inputs) + self.embed_context(parts["context"]).unsqueeze(1))  # (B, D, H)
        h = torch.relu(self.deepen(h))  # (B, D, H)
        pool = torch.cat([h.mean(1), h.amax(1)], dim=1)  # (B, 2H)
        each = torch.relu(self.own(h) + self.others(pool).unsqueeze(1))  # (B, D, H)
        whole = torch.relu(self.pooled(pool))  # (B, H)
        # Without the -log D, MONITOR would start ever rarer as networks grow.
        orders = self.orders(each) - math.log(each.shape[1])  # (B, D, 5)
        orders = orders.masked_fill(parts["valid"] <= 0, MASKED)
        logits = torch.cat([self.monitor(whole), orders.flatten(1)], dim=1)  # (B, 1 + 5D)
        weight = parts["device"][..., 0]  # (B, D)
        weight = weight / weight.sum(1, keepdim=True)
        value = (weight * self.worth(each).squeeze(2)).sum(1) + self.base(whole).squeeze(1)  # (B,)
        return logits, value


class DeviceSetPolicy(ActorCriticPolicy):
    """`DeviceSetNetwork` as Stable-Baselines3's actor and critic."""

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, lr_schedule: Any, *, layout: Layout, hidden_size: int, **kwargs: Any
    ) -> None:
        """Build network and optimiser.

        Raises:
            UserError: in joint mode, for which there is no such policy.
        """
        if not isinstance(action_space, spaces.Discrete):
            raise UserError("agents learn one addressed order a step: set env.action_mode to discrete, not joint")
        self.layout = layout
        self.hidden_size = hidden_size
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Any) -> None:
        self.network = DeviceSetNetwork(self.layout, self.hidden_size)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "layout": self.layout, "hidden_size": self.hidden_size}

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions (B,), values (B,) and log-probabilities (B,)."""
        logits, values = self.network(obs)
        log_p = logits.log_softmax(1)
        actions = logits.argmax(1) if deterministic else torch.multinomial(log_p.exp(), 1).squeeze(1)
        return actions, values, log_p.gather(1, actions.unsqueeze(1)).squeeze(1)

    def evaluate_actions(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Values, log-probabilities and entropies, (B,) each."""
        logits, values = self.network(obs)
        log_p = logits.log_softmax(1)
        return values, log_p.gather(1, actions.unsqueeze(1)).squeeze(1), -(log_p.exp() * log_p).sum(1)

    def get_distribution(self, obs: Tensor) -> Distribution:  # type: ignore[override]
        """Over the actions, for `predict`."""
        return CategoricalDistribution(int(self.action_space.n)).proba_distribution(self.network(obs)[0])  # type: ignore[attr-defined]

    def predict_values(self, obs: Tensor) -> Tensor:  # type: ignore[override]
        """(B,)"""
        return self.network(obs)[1]
