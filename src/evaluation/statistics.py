"""Intervals for means, differences and shares of episodes and seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """`-6.1 [-6.4, -5.8]`."""
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def interval(samples: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Percentile interval of bootstrap samples."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(samples, [tail, 1.0 - tail])
    return float(low), float(high)


def resampled_means(values: NDArray[np.float64], resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Bootstrap means, (resamples,), over the last axis; with a leading axis of groups (seeds), groups are resampled too.

    Args:
        values: (N,) episodes, or (G, N) groups of episodes (stratified bootstrap: Agarwal et al. 2021).
        resamples: how many.
        rng: source of randomness.
    """
    if values.ndim == 1:
        return np.array([values[rng.integers(0, len(values), len(values))].mean() for _ in range(resamples)])
    groups, count = values.shape
    found = np.empty(resamples)
    for i in range(resamples):
        # The episodes' seeds are the same for every group, so one draw of episodes serves them all.
        found[i] = values[rng.integers(0, groups, groups)][:, rng.integers(0, count, count)].mean()
    return found


def mean_estimate(values: NDArray[np.float64], resamples: int, confidence: float, rng: np.random.Generator) -> Estimate:
    """Mean with its bootstrap interval, for (N,) or (G, N) values."""
    return Estimate(float(values.mean()), *interval(resampled_means(values, resamples, rng), confidence))


def difference_estimate(a: NDArray[np.float64], b: NDArray[np.float64], resamples: int, confidence: float, rng: np.random.Generator) -> Estimate:
    """Mean of a - b with its bootstrap interval; episodes are paired by seed, and (N,) is broadcast against (G, N)."""
    return mean_estimate(a - b, resamples, confidence, rng)
