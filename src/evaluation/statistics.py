"""Intervals for means, differences and shares of episodes and seeds."""

from __future__ import annotations

from collections.abc import Iterable
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


def estimated(values: NDArray[np.float64], confidence: float) -> Estimate:
    """(1 + R,) a figure of the data, then of each resample, as a value with its percentile interval."""
    return Estimate(float(values[0]), *interval(values[1:], confidence))


def ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of two figures, (1 + R,) each; a denominator that a resample brings to 0 or below makes a huge number, so that the interval shows it."""
    return above / np.maximum(below, 1e-9)


@dataclass(frozen=True)
class Resamples:
    """Stratified bootstrap over training runs and episodes at once (Agarwal et al. 2021): what every policy's figures are computed under.

    Runs are drawn with replacement, and episodes inside each stratum (attacker). Episodes have the same seeds under every policy, and one
    draw of them serves all, so differences stay paired. A policy that was not trained has one run. Row 0 is the data as they are.
    """

    episodes: NDArray[np.float64]
    """(1 + R, N) times that each episode counts."""
    runs: dict[int, NDArray[np.float64]]
    """By number of runs G, (1 + R, G): times that each run counts."""

    @classmethod
    def draw(cls, strata: NDArray[np.integer], counts: Iterable[int], resamples: int, rng: np.random.Generator) -> Resamples:
        """Weights for (N,) episodes of the given strata, and for every number of runs in `counts`."""
        episodes = np.zeros((1 + resamples, len(strata)))
        for stratum in np.unique(strata):
            inside = np.flatnonzero(strata == stratum)
            episodes[:, inside] = _times(len(inside), resamples, rng)
        return cls(episodes, {count: _times(count, resamples, rng) for count in sorted({1, *counts})})

    def means(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(G, N) runs of episodes -> (1 + R,) means."""
        runs = self.runs[len(values)]
        return ((runs @ values) * self.episodes).sum(axis=1) / (runs.sum(axis=1) * self.episodes.sum(axis=1))

    def task_means(self, values: NDArray[np.float64], inside: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(G, N) -> (1 + R, G) mean of each run over the episodes that are `inside`, (N,)."""
        weights = self.episodes[:, inside]
        return weights @ values[:, inside].T / weights.sum(axis=1, keepdims=True)

    def between(self, values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
        """(G, N) -> (1 + R,) mean of the values between two quantiles: .25 and .75 the interquartile mean, 0 and .05 CVaR at 5 %.

        A value that a quantile cuts counts in part.
        """
        order = np.argsort(values, axis=None)
        ranked = values.ravel()[order]
        run, episode = np.divmod(order, values.shape[1])
        found = np.empty(len(self.episodes))
        for i, (runs, episodes) in enumerate(zip(self.runs[len(values)], self.episodes, strict=True)):
            upto = np.cumsum(runs[run] * episodes[episode])
            kept = np.diff(np.clip(upto, low * upto[-1], high * upto[-1]), prepend=low * upto[-1])
            found[i] = kept @ ranked / kept.sum()
        return found

    def improvement(self, mine: NDArray[np.float64], other: NDArray[np.float64], tasks: NDArray[np.integer]) -> NDArray[np.float64]:
        """(1 + R,) probability that a run of `mine`, (G, N), is better than a run of `other`, (H, N), on a task drawn evenly; ties count half.

        A run's score on a task is its mean over the task's episodes; `tasks`, (N,), says which task each is of, below 0 none.
        """
        shares = []
        pairs = self.runs[len(mine)][:, :, None] * self.runs[len(other)][:, None, :]  # (1 + R, G, H)
        for task in np.unique(tasks[tasks >= 0]):
            a, b = (self.task_means(values, tasks == task) for values in (mine, other))
            better = (a[:, :, None] > b[:, None, :]) + 0.5 * (a[:, :, None] == b[:, None, :])
            shares.append((pairs * better).sum(axis=(1, 2)) / pairs.sum(axis=(1, 2)))
        return np.mean(shares, axis=0)

    def profile(self, values: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.float64]:
        """(G, N) -> (1 + R, levels) share of runs and episodes above each level."""
        return np.stack([self.means((values > level).astype(np.float64)) for level in levels], axis=1)


def _times(count: int, resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(1 + R, count) how often each of `count` things is drawn, once each in row 0."""
    drawn = rng.multinomial(count, np.full(count, 1.0 / count), resamples)
    return np.concatenate([np.ones((1, count)), drawn.astype(np.float64)])
