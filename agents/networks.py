"""Networks that know that devices are a set: one for all of them, whatever their number and order; and a plain one to compare with."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from envs.world import KINDS, Layout

MASKED = -1e9
"""Logit of an order that would change nothing; finite, so that entropies stay finite."""

PATIENCE = 2.0
"""Logit of MONITOR before training, against 0 for all orders of a kind together. Who starts by ordering at random spends its
first updates unlearning that, on networks which it has itself taken down."""

Kind = Literal["devices", "flat"]
"""`devices`: one network that all devices share; `flat`: a perceptron over all inputs, bound to the number and order of devices."""


class Shape(NamedTuple):
    """How a network reads what `Sight` shows."""

    kind: Kind
    width: int
    """Floats a device."""
    wide: int
    """The same with the truth, where it is shown."""
    devices: int
    """Only `flat` networks are bound to it."""
    hidden_size: int
    masked: bool
    """Whether orders that would change nothing are ruled out."""


def split(shown: Tensor, wide: int) -> tuple[Tensor, Tensor]:
    """(B, D x wide + 2) -> (B, D, wide) and (B, 2)."""
    return shown[:, : -Layout.CONTEXT].unflatten(1, (-1, wide)), shown[:, -Layout.CONTEXT :]


class DeviceSet(nn.Module):
    """Deep set (Zaheer et al. 2017) over devices: an embedding of each, which knows of the others, and one of the whole.

    Every device's floats, with the context, pass one shared perceptron; its own embedding is then read beside the mean and the maximum
    over all devices. Reordering devices reorders the embeddings and leaves the whole; the weights fit any number of devices.
    """

    def __init__(self, width: int, hidden_size: int) -> None:
        """`width` floats a device."""
        super().__init__()
        H = hidden_size
        self.embed = nn.Linear(width, H)
        self.embed_context = nn.Linear(Layout.CONTEXT, H, bias=False)
        self.deepen = nn.Linear(H, H)
        self.own = nn.Linear(H, H)
        self.others = nn.Linear(2 * H, H, bias=False)
        self.pooled = nn.Linear(2 * H, H)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _orthogonal(module, math.sqrt(2))

    def forward(self, each: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D, width), (B, 2) -> (B, D, H), (B, H)."""
        h = torch.relu(self.embed(each) + self.embed_context(context).unsqueeze(1))  # (B, D, H)
        h = torch.relu(self.deepen(h))
        pool = torch.cat([h.mean(1), h.amax(1)], dim=1)  # (B, 2H)
        return torch.relu(self.own(h) + self.others(pool).unsqueeze(1)), torch.relu(self.pooled(pool))


class Actor(nn.Module):
    """Logits of the actions."""

    def __init__(self, shape: Shape) -> None:
        """Build it."""
        super().__init__()
        self.shape = shape
        H = shape.hidden_size
        if shape.kind == "devices":
            self.set = DeviceSet(shape.width, H)
            self.orders, self.monitor = _orthogonal(nn.Linear(H, KINDS), 0.01), _orthogonal(nn.Linear(H, 1), 0.01)
            nn.init.constant_(self.monitor.bias, PATIENCE)
        else:
            self.flat = _perceptron(shape.devices * shape.width + Layout.CONTEXT, H, 1 + shape.devices * KINDS, 0.01)
            with torch.no_grad():
                self.flat[-1].bias[0] = PATIENCE + math.log(shape.devices)

    def forward(self, shown: Tensor) -> Tensor:
        """(B, D x wide + 2) -> (B, 1 + 5 D)."""
        each, context = split(shown, self.shape.wide)
        each = each[..., : self.shape.width]
        if self.shape.kind == "devices":
            own, whole = self.set(each, context)
            # Without the -log D, MONITOR would start ever rarer as networks grow.
            monitor, orders = self.monitor(whole), self.orders(own) - math.log(each.shape[1])  # (B, 1), (B, D, 5)
        else:
            logits = self.flat(torch.cat([each.flatten(1), context], dim=1))
            monitor, orders = logits[:, :1], logits[:, 1:].unflatten(1, (-1, KINDS))
        if self.shape.masked:
            orders = orders.masked_fill(each[..., :KINDS] <= 0, MASKED)
        return torch.cat([monitor, orders.flatten(1)], dim=1)


class Critic(nn.Module):
    """Value of the state: a criticality-weighted sum of one number a device, as the reward is, plus one of the whole."""

    def __init__(self, shape: Shape) -> None:
        """Build it; it reads the truth where it is shown."""
        super().__init__()
        self.shape = shape
        H = shape.hidden_size
        if shape.kind == "devices":
            self.set = DeviceSet(shape.wide, H)
            self.worth, self.base = _orthogonal(nn.Linear(H, 1), 1.0), _orthogonal(nn.Linear(H, 1), 1.0)
        else:
            self.flat = _perceptron(shape.devices * shape.wide + Layout.CONTEXT, H, 1, 1.0)

    def forward(self, shown: Tensor) -> Tensor:
        """(B, D x wide + 2) -> (B, 1)."""
        if self.shape.kind == "flat":
            return self.flat(shown)
        each, context = split(shown, self.shape.wide)
        own, whole = self.set(each, context)
        weight = each[..., KINDS : KINDS + 1]  # criticality, (B, D, 1); all zero where RecurrentPPO pads a sequence
        return (weight / weight.sum(1, keepdim=True).clamp(min=1e-6) * self.worth(own)).sum(1) + self.base(whole)


class Values(nn.Module):
    """Value of each action, or quantiles of it. An order that would change nothing is worth what MONITOR is worth, for it does the same."""

    def __init__(self, shape: Shape, quantiles: int = 1) -> None:
        """Build it."""
        super().__init__()
        self.shape, self.quantiles = shape, quantiles
        H = shape.hidden_size
        if shape.kind == "devices":
            self.set = DeviceSet(shape.width, H)
            self.orders, self.monitor = _orthogonal(nn.Linear(H, KINDS * quantiles), 0.1), _orthogonal(nn.Linear(H, quantiles), 0.1)
        else:
            self.flat = _perceptron(shape.devices * shape.width + Layout.CONTEXT, H, (1 + shape.devices * KINDS) * quantiles, 0.1)

    def forward(self, shown: Tensor) -> Tensor:
        """(B, D x wide + 2) -> (B, quantiles x (1 + 5 D)), quantile by quantile."""
        each, context = split(shown, self.shape.wide)
        each = each[..., : self.shape.width]
        if self.shape.kind == "devices":
            own, whole = self.set(each, context)
            monitor = self.monitor(whole).unsqueeze(2)  # (B, Q, 1)
            change = self.orders(own).unflatten(2, (KINDS, self.quantiles))  # (B, D, 5, Q), against MONITOR
            orders = monitor + change.flatten(1, 2).transpose(1, 2)  # (B, Q, 5 D)
        else:
            values = self.flat(torch.cat([each.flatten(1), context], dim=1)).unflatten(1, (self.quantiles, -1))
            monitor, orders = values[..., :1], values[..., 1:]
        if self.shape.masked:
            idle = (each[..., :KINDS] <= 0).flatten(1).unsqueeze(1)  # (B, 1, 5 D)
            orders = torch.where(idle, monitor, orders)
        return torch.cat([monitor, orders], dim=2).flatten(1)


class DeviceMemory(nn.Module):
    """An LSTM that each device has for itself, with shared weights; to Stable-Baselines3 it looks like one LSTM over all inputs.

    What it gives is its state beside what was shown, so that what follows reads both.
    """

    num_layers = 1

    def __init__(self, shape: Shape, devices: int, units: int) -> None:
        """`units` of state for each device."""
        super().__init__()
        self.shape, self.units = shape, units
        self.input_size, self.hidden_size = devices * shape.wide + Layout.CONTEXT, devices * units
        self.cell = nn.LSTM(shape.width, units)

    def forward(self, shown: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(T, B, D x wide + 2), states (1, B, D x units) each -> (T, B, D x (units + wide) + 2), states."""
        T, B = shown.shape[:2]
        each = shown[..., : -Layout.CONTEXT].unflatten(2, (-1, self.shape.wide))  # (T, B, D, wide)
        hidden, cell = (part.reshape(1, -1, self.units).contiguous() for part in state)
        out, (hidden, cell) = self.cell(each[..., : self.shape.width].reshape(T, -1, self.shape.width), (hidden, cell))
        seen = torch.cat([each[..., : self.shape.width], out.reshape(T, B, -1, self.units), each[..., self.shape.width :]], dim=3)
        return torch.cat([seen.flatten(2), shown[..., -Layout.CONTEXT :]], dim=2), (hidden.reshape(1, B, -1), cell.reshape(1, B, -1))

    def remembering(self) -> Shape:
        """How a network reads what this gives."""
        return self.shape._replace(width=self.shape.width + self.units, wide=self.shape.wide + self.units)


def _orthogonal(layer: nn.Linear, gain: float) -> nn.Linear:
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _perceptron(inputs: int, hidden_size: int, outputs: int, gain: float) -> Any:
    H, root = hidden_size, math.sqrt(2)
    layers = [_orthogonal(nn.Linear(inputs, H), root), nn.ReLU(), _orthogonal(nn.Linear(H, H), root), nn.ReLU()]
    return nn.Sequential(*layers, _orthogonal(nn.Linear(H, outputs), gain))
