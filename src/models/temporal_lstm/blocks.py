"""Parts of the temporal LSTM, each of them a module that works on its own.

Time runs along the second axis; B is the batch, T the length of a window, H the model's width, h heads of width D.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def log_periods(count: int, length: int) -> Tensor:
    """(count,) logarithms of periods from 2 rows to twice the window, evenly spread on a logarithmic scale."""
    return torch.linspace(math.log(2.0), math.log(2.0 * max(length, 2)), count)


def precise(x: Tensor) -> Tensor:
    """At least single precision, also under autocast."""
    return x if x.dtype == torch.float64 else x.float()


def rows_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer over the rows of windows (B, T, in), on a CPU computed as a convolution of size 1 in channels-last layout.

    The same sums through oneDNN instead of torch's BLAS: twice as fast where that is MKL on a processor of another maker, and no slower elsewhere.
    """
    if x.device.type != "cpu":
        return functional.linear(x, weight, bias)
    image = x[:, None].permute(0, 3, 1, 2)  # (B, in, 1, T), in the memory order of (B, T, in)
    return functional.conv2d(image, weight[:, :, None, None], bias).permute(0, 2, 3, 1)[:, 0]


class RowsLinear(nn.Linear):
    """`rows_linear` with weights of its own; which of the leading axes is time makes no difference."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, T, out)."""
        return rows_linear(input, self.weight, self.bias)


class PeriodicGate(nn.Module):
    """Lets each unit of the projected input through by content and by time: a sinusoidal code of learned periods drives gate and value.

    out = value(x, t) * sigmoid(gate(x, t)), a gated linear unit (Dauphin et al. 2017). Sines and cosines of t / period (Vaswani et al. 2017,
    with periods learned as in Time2Vec, Kazemi et al. 2019) enter both sides. t counts rows back from the newest, so that a shorter window ends at the same t.
    """

    def __init__(self, features: int, hidden: int, periods: int, length: int) -> None:
        super().__init__()
        self.log_period = nn.Parameter(log_periods(periods, length))
        self.content = RowsLinear(features, 2 * hidden)
        self.time = nn.Linear(2 * periods, 2 * hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H) of scaled features (B, T, F)."""
        steps = torch.arange(x.shape[1] - 1, -1, -1, device=x.device, dtype=self.log_period.dtype)
        phase = 2 * math.pi * steps[:, None] * torch.exp(-self.log_period)  # (T, periods)
        code = self.time(torch.cat([phase.sin(), phase.cos()], dim=1))  # (T, 2H)
        return functional.glu(self.content(x) + code, dim=-1)  # (B, T, H)


class TemporalAttention(nn.Module):
    """Multi-head self-attention over all rows of a window, with a learned temperature and temporal bias a head; pre-normalised, residual.

    score = temperature * q.k / sqrt(D) - slope * |distance| + sum over periods of amplitude * cos(2 pi distance / period - shift)
    Linear bias by distance: ALiBi (Press et al. 2022). It is not causal: the whole window is past when it is read.
    """

    def __init__(self, hidden: int, heads: int, head_size: int, periods: int, length: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.head_size, inner = heads, head_size, heads * head_size
        self.norm = nn.LayerNorm(hidden)
        self.project = nn.Linear(hidden, 3 * inner, bias=False)  # weights of query, key and value
        self.out = RowsLinear(inner, hidden)
        self.dropout = nn.Dropout(dropout)
        self.log_temperature = nn.Parameter(torch.zeros(heads))
        # Slopes from 1/2 down to 1/64 a row: some heads look near, some far.
        self.log_slope = nn.Parameter(torch.linspace(math.log(1 / 2), math.log(1 / 64), heads))
        self.log_period = nn.Parameter(log_periods(periods, length).repeat(heads, 1))  # (h, periods)
        self.amplitude = nn.Parameter(0.1 * torch.randn(heads, periods))
        self.shift = nn.Parameter(torch.zeros(heads, periods))

    def temporal_bias(self, length: int) -> Tensor:
        """(h, T, T) what is added to the score of query row t and key row s; depends on t - s alone."""
        steps = torch.arange(length, device=self.log_slope.device, dtype=self.log_slope.dtype)
        distance = torch.arange(1 - length, length, device=steps.device, dtype=steps.dtype)  # (2T - 1,) every t - s
        wave = torch.cos(2 * math.pi * distance[:, None] * torch.exp(-self.log_period)[:, None] - self.shift[:, None])  # (h, 2T - 1, periods)
        bias = (wave * self.amplitude[:, None]).sum(dim=-1) - self.log_slope.exp()[:, None] * distance.abs()  # (h, 2T - 1)
        index = (steps[:, None] - steps + length - 1).long()  # (T, T)
        return bias[:, index]

    def forward(self, x: Tensor, need_map: bool = False) -> tuple[Tensor, Tensor | None]:
        """States (B, T, H), and the attention map (B, h, T, T) if it is needed: row t says how much query t looks at each key, and sums to 1."""
        batch, length, _ = x.shape
        rows = self.norm(x)
        # One product each is faster than one for all three, and the temperature is multiplied into the query's weights instead of into every row.
        first, *others = self.project.weight.unflatten(0, (3, self.heads, self.head_size))  # (h, D, H) each
        parts = (first * self.log_temperature.exp()[:, None, None], *others)
        query, key, value = (rows_linear(rows, part.flatten(0, 1)).unflatten(2, (self.heads, self.head_size)).transpose(1, 2) for part in parts)  # (B, h, T, D)
        bias = self.temporal_bias(length)
        weights = None
        if need_map:
            scores = query @ key.transpose(-1, -2) / math.sqrt(self.head_size) + bias.to(query.dtype)  # (B, h, T, T)
            weights = torch.softmax(precise(scores), dim=-1)
            mixed = weights.to(value.dtype) @ value  # (B, h, T, D)
        else:
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias[None].to(query.dtype))
        joined = mixed.transpose(1, 2).reshape(batch, length, self.heads * self.head_size)
        return x + self.dropout(self.out(joined)), weights


class Level(nn.Module):
    """One level of the hierarchy: a bidirectional LSTM at its own rate, projected to the model's width. Time leads, as in the hierarchy."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, bidirectional=True)
        self.project = RowsLinear(2 * hidden, hidden)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """States (t, B, 2H), which the level above reads, and their projection (t, B, H), which is aggregated."""
        states, _ = self.lstm(x)
        return states, self.project(states)


class Hierarchy(nn.Module):
    """Levels at rates 1, 1/2, 1/4, ...: gates decide what flows up and what comes back down, and every scale is added up at the full rate.

    Upwards, pairs of states are averaged and each unit is gated by the pair itself; downwards, a level takes from the one above
    through a gate that sees both. A window of odd length keeps its last row as a pair of one. Clockwork of scales: El Hihi and Bengio 1995.
    Inside, time is the first axis, the order in which LSTMs hold it: what flows between levels is never copied into another.
    """

    level_scale: Tensor

    def __init__(self, hidden: int, levels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Level(hidden if level == 0 else 2 * hidden, hidden) for level in range(levels))
        self.up = nn.ModuleList(RowsLinear(2 * hidden, 2 * hidden) for _ in range(levels - 1))
        self.down = nn.ModuleList(RowsLinear(2 * hidden, hidden) for _ in range(levels - 1))
        self.weight = nn.Parameter(torch.full((levels,), 1.0))
        self.register_buffer("level_scale", torch.ones(levels))  # set by the architecture controller

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H) of gated inputs (B, T, H)."""
        found: list[Tensor] = []
        x = x.transpose(0, 1).contiguous()  # (T, B, H)
        for index, level in enumerate(self.levels):
            states, projected = level(x)
            found.append(projected)
            if index < len(self.up):
                pooled = halve(states)  # (ceil(t / 2), B, 2H)
                x = pooled * torch.sigmoid(self.up[index](pooled))
        weight = self.weight * self.level_scale
        above, total = found[-1], weight[-1] * found[-1]
        for index in range(len(found) - 2, -1, -1):
            length = len(found[index])
            above, total = double(above, length), double(total, length)
            gate = torch.sigmoid(self.down[index](torch.cat([found[index], above], dim=-1)))
            above = found[index] + gate * above  # (t, B, H)
            total = total + weight[index] * above
        return total.transpose(0, 1).contiguous()


def halve(x: Tensor) -> Tensor:
    """(ceil(T / 2), B, H) averages of pairs of rows of (T, B, H); an odd last row stays alone."""
    if len(x) % 2:
        x = torch.cat([x, x[-1:]])
    return (x[::2] + x[1::2]) / 2


def double(x: Tensor, length: int) -> Tensor:
    """(length, B, H) each row of (ceil(length / 2), B, H) twice."""
    return x[:, None].expand(-1, 2, -1, -1).flatten(0, 1)[:length]


class MemoryBank(nn.Module):
    """Slots of unit length that hold patterns of former windows: read and written by content.

    Reading is a softmax over cosines between the window's query and the slots. Writing moves each slot towards the queries that address it, an
    exponential moving average as of the codebook of van den Oord et al. 2017, and back to length 1. Slots are a buffer: saved with the model, no parameter.
    """

    slots: Tensor
    usage: Tensor

    def __init__(self, hidden: int, slots: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.query = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.gate = nn.Linear(2 * hidden, hidden)
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(10.0)))
        self.log_prior = nn.Parameter(torch.zeros(slots))
        self.register_buffer("slots", functional.normalize(torch.randn(slots, hidden), dim=-1))
        self.register_buffer("usage", torch.full((slots,), 1.0 / slots))

    def address(self, query: Tensor, slots: Tensor) -> Tensor:
        """(B, M) shares of the slots (M, H) in what queries (B, H) of unit length read; rows sum to 1."""
        return torch.softmax(self.log_sharpness.exp() * query @ slots.T + self.log_prior, dim=-1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Summaries (B, H) with what was read added to them, and their queries (B, H), which `write` takes. Never writes."""
        query = functional.normalize(precise(self.query(x)), dim=-1)
        slots = self.slots.clone()  # a later write must not change what the backward pass needs
        read = self.value(self.address(query, slots) @ slots)  # (B, H)
        gate = torch.sigmoid(self.gate(torch.cat([x, read.to(x.dtype)], dim=-1)))
        return x + gate * read.to(x.dtype), query

    @torch.no_grad()
    def write(self, query: Tensor) -> None:
        """Move the slots towards queries (B, H)."""
        with torch.autocast(query.device.type, enabled=False):
            share = self.address(query, self.slots)  # (B, M)
            weight = share.sum(dim=0)  # (M,) samples written to each slot
            target = functional.normalize(share.T @ query, dim=-1)  # (M, H)
            step = 1 - (1 - self.rate) ** weight[:, None]
            self.slots.copy_(functional.normalize(self.slots + step * (target - self.slots), dim=-1))
            self.usage.lerp_(weight / len(query), self.rate)


class BayesianLinear(nn.Module):
    """A linear layer whose weights are independent Gaussians, with a fixed zero-mean Gaussian prior: variational inference (Blundell et al. 2015).

    Outputs are sampled, not weights (local reparametrisation, Kingma et al. 2015): given the input they are independent Gaussians. The draws of `samples` are a
    buffer, the same for every input, balanced to mean 0 and variance 1: predictions are deterministic and those of a window do not depend on its batch.
    """

    noise: Tensor

    def __init__(self, inputs: int, outputs: int, samples: int, prior: float) -> None:
        super().__init__()
        self.prior = prior
        self.mean = nn.Parameter(torch.empty(outputs, inputs).uniform_(-1, 1) / math.sqrt(inputs))
        self.bias_mean = nn.Parameter(torch.zeros(outputs))
        # softplus(-4) = 0.018: at first the noise of the outputs is well below their spread.
        self.spread = nn.Parameter(torch.full((outputs, inputs), -4.0))
        self.bias_spread = nn.Parameter(torch.full((outputs,), -4.0))
        self.register_buffer("noise", _balanced_noise(samples, outputs))

    def grow(self, count: int) -> None:
        """Append `count` outputs. The others, and their draws, stay as they are; a new one starts as their mean, its draws from torch's global generator."""
        for name in ("mean", "bias_mean", "spread", "bias_spread"):
            old = getattr(self, name).detach()
            setattr(self, name, nn.Parameter(torch.cat([old, old.mean(dim=0, keepdim=True).expand(count, *old.shape[1:])])))
        self.noise = torch.cat([self.noise, _balanced_noise(len(self.noise), count).to(self.noise)], dim=1)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation (B, C) of the outputs of (B, H), in single precision."""
        with torch.autocast(x.device.type, enabled=False):
            x = precise(x)
            mean = functional.linear(x, self.mean, self.bias_mean)
            variance = functional.linear(x.square(), functional.softplus(self.spread).square(), functional.softplus(self.bias_spread).square())
            return mean, variance.sqrt()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) one draw for each input, from torch's global generator."""
        mean, deviation = self.moments(x)
        return mean + deviation * torch.randn_like(mean)

    def samples(self, x: Tensor) -> Tensor:
        """(S, B, C) the fixed draws."""
        mean, deviation = self.moments(x)
        return mean + deviation * self.noise[:, None]

    def divergence(self) -> Tensor:
        """() Kullback-Leibler divergence of the weights' distribution from the prior, in nats."""
        total = self.mean.new_zeros(())
        for mean, spread in ((self.mean, self.spread), (self.bias_mean, self.bias_spread)):
            ratio = (functional.softplus(spread) / self.prior).square()
            total = total + 0.5 * (ratio + (mean / self.prior).square() - 1 - ratio.log()).sum()
        return total


def _balanced_noise(samples: int, outputs: int) -> Tensor:
    """(S, C) draws whose mean is 0 and whose variance is 1 for each output."""
    noise = torch.randn(samples, outputs)
    noise = noise - noise.mean(dim=0)
    return noise / noise.square().mean(dim=0).sqrt()


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * grad_outputs[0], None


def reverse_gradient(x: Tensor, scale: float) -> Tensor:
    """`x` itself; its gradient is multiplied by -`scale` (Ganin and Lempitsky 2015)."""
    return _Reversal.apply(x, scale)  # type: ignore[return-value]


def domain_schedule(progress: float, peak: float = 1.0) -> float:
    """`domain_lambda` at a share `progress` in [0, 1] of training: rises from 0 to `peak` (Ganin et al. 2016, their gamma of 10)."""
    return peak * (2.0 / (1.0 + math.exp(-10.0 * progress)) - 1.0)
