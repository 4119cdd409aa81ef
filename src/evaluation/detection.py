"""How well a detector detects, with intervals that know that neighbouring windows say the same thing.

Windows at a stride of one row overlap, and rows of a capture resemble their neighbours, so windows are not resampled one by one but
in blocks: consecutive windows of one run, about `BLOCK` of them (five window lengths at the default of ten rows), drawn with replacement
inside each class, so that every resample holds every class (stratified block bootstrap; Kuensch 1989). A candidate that was trained with
several seeds is resampled over its seeds too. Every score is a sum over blocks, or a ratio of such sums, so that all resamples are one
matrix product. Two candidates are compared under the same resampled blocks.

Each score function returns (1 + R,) values: of the windows as they are, then of each of R resamples.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from src.data.taxonomy import FAMILIES
from src.evaluation.statistics import Estimate, interval

BLOCK = 50
"""Windows in a block, about."""
BINS = 15
"""Bins of equal width that calibration is measured in, as in Guo et al. 2017."""
_AT_ONCE = 4_000_000
"""Cells of a (resamples, windows) table held at once."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Blocks:
    """Which block each window is of; a block is of one class and one run."""

    of: NDArray[np.int64]
    """(W,) block of each window, ascending from 0."""
    label: NDArray[np.int64]
    """(B,) class of each block."""

    @classmethod
    def cut(cls, label: NDArray[np.integer], segment: NDArray[np.integer], length: int = BLOCK) -> Blocks:
        """Divide each run evenly into blocks of about `length` windows.

        Args:
            label: (W,) class of each window.
            segment: (W,) run that each window lies in; windows of a run stand together, in order.
            length: windows in a block; a shorter run is one block.
        """
        change = np.flatnonzero((np.diff(segment) != 0) | (np.diff(label) != 0)) + 1
        first = np.concatenate(([0], change))
        sizes = np.diff(np.concatenate((first, [len(label)])))
        parts = np.maximum(1, np.rint(sizes / length).astype(np.int64))
        offset = np.arange(len(label)) - np.repeat(first, sizes)
        before = np.repeat(np.cumsum(parts) - parts, sizes)
        return cls(before + offset * np.repeat(parts, sizes) // np.repeat(sizes, sizes), np.repeat(label[first], parts).astype(np.int64))


class Bootstrap:
    """The resamples that every candidate is judged under: how often each block is drawn."""

    def __init__(self, blocks: Blocks, resamples: int, seed: int, confidence: float = 0.95) -> None:
        """Draw `resamples` times, inside each class as many blocks as it has."""
        self.blocks, self.seed, self.confidence = blocks, seed, confidence
        rng = np.random.default_rng([seed, 0])
        self.weights = np.ones((1 + resamples, len(blocks.label)))  # (1 + R, B); the first row is the windows as they are
        for label in np.unique(blocks.label):
            mine = np.flatnonzero(blocks.label == label)
            self.weights[1:, mine] = rng.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), size=resamples)
        self.starts = np.searchsorted(blocks.of, np.arange(len(blocks.label)))  # (B,) first window of each block

    def sums(self, values: NDArray) -> Values:
        """(1 + R, ...) sums over windows of `values` (W, ...)."""
        parts = np.add.reduceat(np.asarray(values, dtype=np.float64), self.starts, axis=0)  # (B, ...)
        return np.tensordot(self.weights, parts, axes=1)

    def share(self, hit: NDArray[np.bool_], among: NDArray[np.bool_]) -> Values:
        """(1 + R,) share of `hit` (W,) among the windows `among` (W,)."""
        found = self.sums(np.column_stack([hit & among, among]))
        return found[:, 0] / np.maximum(found[:, 1], 1)

    def mean(self, values: NDArray[np.float64]) -> Estimate:
        """Mean over seeds of (S, 1 + R) values, or of (1 + R,) of one that has none, with its interval over blocks and seeds."""
        return self._estimate(self._over_seeds(values, 1))

    def difference(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> Estimate:
        """Mean of `a` minus mean of `b`, (S, 1 + R) each: blocks are drawn together, seeds apart, as the two share no seed's luck."""
        return self._estimate(self._over_seeds(a, 1) - self._over_seeds(b, 2))

    def _over_seeds(self, values: NDArray[np.float64], stream: int) -> Values:
        values = np.atleast_2d(values)
        seeds, resamples = len(values), values.shape[1] - 1
        drawn = np.random.default_rng([self.seed, stream]).multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds  # (R, S)
        return np.concatenate([values[:, :1].mean(axis=0), np.einsum("rs,sr->r", drawn, values[:, 1:])])

    def _estimate(self, values: Values) -> Estimate:
        return Estimate(float(values[0]), *interval(values[1:], self.confidence))


def confusions(sample: Bootstrap, predicted: NDArray[np.integer], classes: int) -> Values:
    """(1 + R, C, C) counts of the windows' predicted classes (W,); rows are the truth."""
    found = np.zeros((len(sample.weights), classes, classes))
    counts = np.add.reduceat(np.eye(classes)[predicted], sample.starts, axis=0)  # (B, C)
    for label in np.unique(sample.blocks.label):
        mine = sample.blocks.label == label
        found[:, label] = sample.weights[:, mine] @ counts[mine]
    return found


def class_f1(confusion: Values) -> Values:
    """(..., C) 2 TP / (windows + guesses) of (..., C, C) counts; 0 where a class occurs in neither."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    both = confusion.sum(axis=-1) + confusion.sum(axis=-2)
    return 2 * hits / np.where(both > 0, both, 1)


def macro_f1(confusion: Values) -> Values:
    """(...) mean F1 over the classes that occur in truth or prediction, as scikit-learn has it, of (..., C, C) counts."""
    occurs = confusion.sum(axis=-1) + confusion.sum(axis=-2) > 0
    return class_f1(confusion).sum(axis=-1) / np.maximum(occurs.sum(axis=-1), 1)


def accuracy(confusion: Values) -> Values:
    """(...) share of windows on the diagonal of (..., C, C) counts."""
    return np.trace(confusion, axis1=-2, axis2=-1) / np.maximum(confusion.sum(axis=(-2, -1)), 1e-12)


def merged(confusion: Values, group: NDArray[np.integer], groups: int = len(FAMILIES)) -> Values:
    """(..., G, G) counts with classes merged into the groups (C,) that they are of, e.g. families."""
    member = np.eye(groups)[group]  # (C, G)
    return member.T @ confusion @ member


def at_prevalence(confusion: Values, counts: NDArray[np.float64]) -> Values:
    """(..., C, C) counts as they would be with `counts` (C,) windows of each class, errors within a class staying as they are."""
    rows = confusion.sum(axis=-1, keepdims=True)
    return confusion / np.where(rows > 0, rows, 1) * counts[:, None]


def threshold_at(benign_scores: NDArray[np.floating], rate: float) -> float:
    """The score that at most a share `rate` of benign scores (N,) lies above; alarm above it. Take scores of `calibrate`, never of `test`."""
    return float(np.quantile(benign_scores, 1 - rate, method="higher"))


def calibration_error(sample: Bootstrap, truth: NDArray[np.integer], probabilities: NDArray[np.floating], bins: int = BINS) -> Values:
    """(1 + R,) classwise calibration error (Kull et al. 2019): the mean over classes of the expected calibration error one class against the rest.

    For each class, windows are put into `bins` bins of equal width by its probability (W, C); the error is the mean over windows of the
    distance between a bin's mean probability and the share of the class in it.
    """
    classes, count = probabilities.shape[1], len(sample.blocks.label)
    total = 0.0
    for label in range(classes):
        p = probabilities[:, label].astype(np.float64)
        cell = sample.blocks.of * bins + np.minimum((p * bins).astype(np.int64), bins - 1)
        gap = np.bincount(cell, weights=p - (truth == label), minlength=count * bins).reshape(count, bins)  # (B, bins)
        total = total + np.abs(sample.weights @ gap).sum(axis=1)
    return np.asarray(total) / sample.sums(np.ones(len(truth))) / classes


def top_calibration_error(sample: Bootstrap, truth: NDArray[np.integer], probabilities: NDArray[np.floating], bins: int = BINS) -> Values:
    """(1 + R,) expected calibration error of the most probable class (Guo et al. 2017)."""
    count, p = len(sample.blocks.label), probabilities.max(axis=1).astype(np.float64)
    cell = sample.blocks.of * bins + np.minimum((p * bins).astype(np.int64), bins - 1)
    gap = np.bincount(cell, weights=p - (probabilities.argmax(axis=1) == truth), minlength=count * bins).reshape(count, bins)
    return np.abs(sample.weights @ gap).sum(axis=1) / sample.sums(np.ones(len(truth)))


def reliability(truth: NDArray[np.integer], probabilities: NDArray[np.floating], bins: int = BINS) -> tuple[Values, Values, Values]:
    """Mean confidence, accuracy and share of windows, each (bins,), of the most probable class by confidence; NaN in an empty bin."""
    p = probabilities.max(axis=1).astype(np.float64)
    cell = np.minimum((p * bins).astype(np.int64), bins - 1)
    count = np.bincount(cell, minlength=bins).astype(np.float64)
    held = np.where(count > 0, count, np.nan)
    right = np.bincount(cell, weights=probabilities.argmax(axis=1) == truth, minlength=bins)
    return np.bincount(cell, weights=p, minlength=bins) / held, right / held, count / len(p)


def auroc(sample: Bootstrap, score: NDArray[np.floating], positive: NDArray[np.bool_]) -> Values:
    """(1 + R,) chance that a positive window scores above a negative one, ties counting half; 0.5 where either is missing.

    The pairs are counted once for each pair of blocks; a resample weighs them by how often both blocks were drawn.
    """
    of, count = sample.blocks.of, len(sample.blocks.label)
    higher = score[positive]
    wins = np.zeros((count, count))  # block of the positive, block of the negative
    bounds = np.append(sample.starts, len(of))
    for block, (first, last) in enumerate(itertools.pairwise(bounds)):
        lower = np.sort(score[first:last][~positive[first:last]])
        if len(lower):
            below = (np.searchsorted(lower, higher, "left") + np.searchsorted(lower, higher, "right")) / 2
            wins[:, block] = np.bincount(of[positive], weights=below, minlength=count)
    pairs = sample.sums(positive) * sample.sums(~positive)
    won = ((sample.weights @ wins) * sample.weights).sum(axis=1)
    return np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1), 0.5)


def selective_risk(sample: Bootstrap, score: NDArray[np.floating], wrong: NDArray[np.bool_], coverage: float) -> Values:
    """(1 + R,) share of errors among the windows kept when the `1 - coverage` most doubtful (highest `score`) are left to a person."""
    order = np.argsort(score, kind="stable")
    of, errors = sample.blocks.of[order], wrong[order].astype(np.float64)
    found = np.empty(len(sample.weights))
    step = max(1, _AT_ONCE // len(order))
    for first in range(0, len(found), step):
        weight = sample.weights[first : first + step, of]  # (r, W)
        kept = np.cumsum(weight, axis=1)
        last = np.maximum((kept <= coverage * kept[:, -1:]).sum(axis=1) - 1, 0)
        rows = np.arange(len(weight))
        found[first : first + step] = np.cumsum(weight * errors, axis=1)[rows, last] / np.maximum(kept[rows, last], 1)
    return found


def risk_curve(score: NDArray[np.floating], wrong: NDArray[np.bool_]) -> tuple[Values, Values]:
    """Coverage and the share of errors among the windows kept, each (W,), the least doubtful window first (El-Yaniv and Wiener 2010)."""
    kept = np.arange(1, len(score) + 1)
    return kept / len(score), np.cumsum(wrong[np.argsort(score, kind="stable")]) / kept


def entropy(probabilities: NDArray[np.floating]) -> Values:
    """(W,) entropy of probabilities (W, C) in nats, the doubt of a candidate that states no other; the higher, the more doubtful."""
    p = probabilities.astype(np.float64)
    return -(p * np.log(np.maximum(p, 1e-12))).sum(axis=1)
