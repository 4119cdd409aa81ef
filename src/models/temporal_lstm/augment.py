"""Training windows made harder, and damaged windows made whole: functions on raw windows (B, T, F) that leave their input as it was.

Raw features span nine decades, so noise and scaling act on the signed logarithm that the model's `Scaler` takes, too: sign and zero keep their meaning.
Random numbers come from the generator that is passed along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from src.errors import UserError


@dataclass(frozen=True)
class Augmentation:
    """What is done to training windows, in this order; 0 leaves a step out.

    Raises:
        UserError: for a negative value, or a share of 1 or more.
    """

    noise: float = 0.0
    """Deviation of Gaussian noise on each value, as a share of the feature's own deviation (both of the signed logarithm)."""
    scale: float = 0.0
    """Deviation of the logarithm of a factor that a window's values of one feature share."""
    jitter: int = 0
    """Most rows by which a window is moved to and fro in time."""
    missing: float = 0.0
    """Share of values that are lost, and filled by the last one seen."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("noise", "scale", "jitter", "missing"):
            value = getattr(self, name)
            if not 0 <= value < (1 if name == "missing" else float("inf")):
                raise UserError(f"augmentation: {name} is {value}; allowed: {'0 to below 1' if name == 'missing' else '0 or more'}")

    def __call__(self, windows: Tensor, spread: Tensor, generator: torch.Generator) -> Tensor:
        """Augmented windows (B, T, F) of raw ones.

        Args:
            windows: (B, T, F).
            spread: (F,) deviation of each feature's signed logarithm; 0 where it is constant.
            generator: on the device of `windows`.
        """
        if self.noise > 0:
            windows = add_noise(windows, self.noise * spread, generator)
        if self.scale > 0:
            windows = scale(windows, self.scale, generator)
        if self.jitter > 0:
            windows = jitter(windows, self.jitter, generator)
        if self.missing > 0:
            windows = fill_missing(drop_values(windows, self.missing, generator), "last")
        return windows


def add_noise(windows: Tensor, deviation: Tensor, generator: torch.Generator) -> Tensor:
    """Windows with Gaussian noise of `deviation` (F,) on the signed logarithm of each value."""
    squashed = windows.sign() * windows.abs().log1p()
    noisy = squashed + deviation * _normal(windows.shape, windows, generator)
    # Where there is no noise, not even rounding may change a value.
    return torch.where(deviation > 0, noisy.sign() * noisy.abs().expm1(), windows)


def scale(windows: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Windows times a log-normal factor, one for each window and feature; the order and the zeros of a feature stay."""
    batch, _, features = windows.shape
    return windows * torch.exp(deviation * _normal((batch, 1, features), windows, generator))


def jitter(windows: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Windows moved by -`most` to `most` rows each. Nothing wraps around: rows that move out are lost, the row at the edge is repeated in their place."""
    batch, length, _ = windows.shape
    move = torch.randint(-most, most + 1, (batch, 1), generator=generator, device=windows.device)
    rows = (torch.arange(length, device=windows.device) + move).clamp(0, length - 1)  # (B, T)
    return windows.gather(1, rows[:, :, None].expand_as(windows))


def drop_values(windows: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Windows with about `share` of their values lost (NaN)."""
    lost = torch.rand(windows.shape, generator=generator, device=windows.device) < share
    return windows.masked_fill(lost, float("nan"))


def fill_missing(windows: Tensor, how: Literal["last", "mean", "zero"]) -> Tensor:
    """Windows whose values that are not finite are filled.

    Args:
        windows: (B, T, F).
        how: `last`: the last finite value of that feature before it in the window, or the first one after it; `mean`: the mean of the window's
            finite ones; `zero`. A feature without any finite value in a window becomes 0 there.
    """
    finite = windows.isfinite()
    known = torch.where(finite, windows, 0.0)
    if how == "zero":
        return known
    if how == "mean":
        return torch.where(finite, windows, known.sum(dim=1, keepdim=True) / finite.sum(dim=1, keepdim=True).clamp(min=1))
    steps = torch.arange(windows.shape[1], device=windows.device)[None, :, None]
    last = torch.where(finite, steps, -1).cummax(dim=1).values  # (B, T, F) row of the last finite value, -1 before the first
    first = finite.int().argmax(dim=1, keepdim=True)  # (B, 1, F)
    return known.gather(1, torch.where(last < 0, first, last))


def outlier_limits(rows: Tensor, share: float = 0.001) -> tuple[Tensor, Tensor]:
    """Lower and upper limit (F,) that leave `share` of raw rows (N, F) outside on each side; to be taken from `fit` rows."""
    ordered = rows.sort(dim=0).values
    cut = min(int(share * len(rows)), (len(rows) - 1) // 2)
    return ordered[cut], ordered[len(rows) - 1 - cut]


def limit_outliers(windows: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Windows with values moved to the nearer limit (F,) where they lie outside."""
    return windows.clamp(low, high)


def replace_spikes(windows: Tensor, deviations: float = 6.0) -> Tensor:
    """Windows whose values that lie further than `deviations` from the window's median are replaced by it (Hampel 1974).

    A deviation is 1.4826 times the median distance from the median, on the signed logarithm. A feature whose values are mostly
    equal in a window has none, and stays as it is.
    """
    squashed = windows.sign() * windows.abs().log1p()
    distance = (squashed - squashed.median(dim=1, keepdim=True).values).abs()
    deviation = 1.4826 * distance.median(dim=1, keepdim=True).values
    return torch.where((deviation > 0) & (distance > deviations * deviation), windows.median(dim=1, keepdim=True).values, windows)


def _normal(shape: tuple[int, ...] | torch.Size, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
