"""Why a model called a window what it called it: attributions to features over time, attention, and curves that check both.

Attributions are integrated gradients (Sundararajan et al. 2017) from the median benign window to the window in question, of the logit
of the predicted class. The path is straight in the signed logarithm of the raw features and not in the features themselves: these span
nine decades, so that on a straight raw path nearly all of the change would lie in its first thousandth, where no step falls. An
attribution above 0 speaks for the predicted class. Over a window they add up to the logit less that of the benign window.

Whether they mean anything is measured by deletion and insertion (Petsiuk et al. 2018) against random orders.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from captum.attr import IntegratedGradients
from numpy.typing import NDArray
from torch import Tensor

from src.errors import UserError

Values = NDArray[np.float64]
AT_ONCE = 2048
"""Windows that go through a model at once."""


class Explicable(Protocol):
    """A network that reads raw windows (B, T, F): the base LSTM, or the temporal one, whose `forward` answers a mapping with `logits`."""

    training: bool
    forward: Callable[..., Any]

    def __call__(self, x: Tensor) -> Any:
        """Logits (B, C), or a mapping that holds them."""
        ...

    def predict_attack_probability(self, x: Tensor) -> Tensor:
        """Calibrated probabilities (B, C)."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Set the mode."""
        ...

    def parameters(self) -> Iterator[Tensor]:
        """Its weights; windows are read on their device."""
        ...


@dataclass(frozen=True)
class BenignReference:
    """What is usual: the window that attributions start from, and the spread that a window's features are told against."""

    baseline: NDArray[np.float32]
    """(T, F) median of each step and feature over benign windows, raw."""
    means: Values
    """(M, F) mean over time of each benign window, ascending in each column."""
    band: Values
    """(2, F) 5 % and 95 % quantile of single rows."""

    @classmethod
    def fit(cls, windows: NDArray[np.float32]) -> BenignReference:
        """Take it from raw benign windows (M, T, F) of `fit`.

        Raises:
            UserError: when there is none.
        """
        if len(windows) == 0:
            raise UserError("no benign window to explain against; read benign rows")
        band = np.quantile(windows.reshape(-1, windows.shape[2]).astype(np.float64), [0.05, 0.95], axis=0)
        return cls(np.median(windows, axis=0), np.sort(windows.mean(axis=1, dtype=np.float64), axis=0), band)

    def percentile(self, window: NDArray[np.float32]) -> Values:
        """(F,) per cent of benign windows whose mean lies below that of a raw window (T, F); those that equal it count half."""
        mean = window.mean(axis=0, dtype=np.float64)
        low, high = (np.array([np.searchsorted(self.means[:, f], mean[f], side) for f in range(len(mean))]) for side in ("left", "right"))
        return 50.0 * (low + high) / len(self.means)


@dataclass(frozen=True)
class Explanation:
    """One window explained."""

    window: NDArray[np.float32]
    """(T, F) raw."""
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]
    probabilities: Values
    """(C,) calibrated."""
    attributions: Values
    """(T, F) in units of the predicted class's logit."""
    rise: float
    """Logit of the predicted class, less its logit at the benign baseline: what `attributions` should add up to."""
    percentile: Values
    """(F,) place of the window's mean among benign windows, per cent."""
    reference: BenignReference
    attention: tuple[NDArray[np.float32], ...]
    """(heads, T, T) of each layer, rows are queries; empty for a model without attention."""

    @property
    def predicted(self) -> str:
        """Most probable class."""
        return self.class_names[int(self.probabilities.argmax())]

    @property
    def confidence(self) -> float:
        """Its probability."""
        return float(self.probabilities.max())

    @property
    def incomplete(self) -> float:
        """How far the attributions miss `rise`."""
        return abs(float(self.attributions.sum()) - self.rise)

    def top(self, count: int) -> list[int]:
        """Features that speak most for the predicted class, summed over time, strongest first; none that speaks against it."""
        total = self.attributions.sum(axis=0)
        return [int(f) for f in np.argsort(-total, kind="stable")[:count] if total[f] > 0]

    def reasons(self, count: int = 3) -> list[str]:
        """The top features in words, e.g. `Rate high (98th percentile of benign)`."""
        return [f"{self.feature_names[f]} {place_in_words(self.percentile[f])}" for f in self.top(count)]

    def rows(self) -> list[dict[str, Any]]:
        """A row a feature, strongest attribution first: its mean, the benign median, its place among benign windows and its attribution."""
        total = self.attributions.sum(axis=0)
        middle = self.reference.means[len(self.reference.means) // 2]
        return [
            {
                "feature": self.feature_names[f],
                "window mean": float(self.window[:, f].mean()),
                "benign median": float(middle[f]),
                "percentile of benign": float(self.percentile[f]),
                "attribution": float(total[f]),
                "strongest step": int(np.abs(self.attributions[:, f]).argmax()),
            }
            for f in np.argsort(-np.abs(total), kind="stable")
        ]

    def top_attention(self, count: int = 10) -> list[dict[str, Any]]:
        """The `count` weights that lie farthest above an even spread, each as layer, head, query step, key step and weight.

        A query whose keys are masked spreads evenly over the keys that it may see, so its only key is not told as a discovery.
        """
        found = []
        for layer, weights in enumerate(self.attention):
            even = 1.0 / np.maximum((weights > 0).sum(axis=2, keepdims=True), 1)
            for place in np.argsort(-(weights - even), axis=None, kind="stable")[:count]:
                head, query, key = (int(index) for index in np.unravel_index(place, weights.shape))
                excess = float(weights[head, query, key] - even[head, query, 0])
                found.append({"layer": layer, "head": head, "query": query, "key": key, "weight": float(weights[head, query, key]), "above even": excess})
        return sorted(found, key=lambda row: -row["above even"])[:count]


def place_in_words(percentile: float) -> str:
    """`high (98th percentile of benign)`; high from the 90th on, low up to the 10th."""
    if not 0 < percentile < 100:
        return "higher than all benign" if percentile > 0 else "lower than all benign"
    number = min(max(round(percentile), 1), 99)
    ending = "th" if 10 <= number <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    word = "high" if percentile >= 90 else "low" if percentile <= 10 else "usual"
    return f"{word} ({number}{ending} percentile of benign)"


def explain(
    model: Explicable,
    windows: NDArray[np.float32],
    reference: BenignReference,
    feature_names: Sequence[str],
    class_names: Sequence[str],
    *,
    steps: int = 64,
) -> list[Explanation]:
    """Explain what the model calls each of N raw windows.

    Args:
        model: as it stands; its mode is kept.
        windows: (N, T, F) raw.
        reference: what is benign.
        feature_names: of the F features.
        class_names: of the C classes.
        steps: points on the path; more are more exact, and cost in proportion.

    Raises:
        UserError: when the shape is not that of the reference.
    """
    if windows.ndim != 3 or windows.shape[1:] != reference.baseline.shape:
        raise UserError(f"windows have shape {windows.shape}; the benign reference is for (N, {reference.baseline.shape[0]}, {reference.baseline.shape[1]})")
    probabilities = predict(model, windows)  # (N, C)
    attributions, rise = attribute(model, windows, reference.baseline, probabilities.argmax(axis=1), steps)
    attention = attention_of(model, windows)
    return [
        Explanation(
            window, tuple(feature_names), tuple(class_names), probabilities[index].astype(np.float64), attributions[index], float(rise[index]),
            reference.percentile(window), reference, tuple(layer[index] for layer in attention),
        )
        for index, window in enumerate(windows)
    ]  # fmt: skip


def predict(model: Explicable, windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Calibrated probabilities (N, C) of raw windows (N, T, F)."""
    return np.concatenate([model.predict_attack_probability(part).cpu().numpy() for part in _tensor(windows, model).split(AT_ONCE)])


def attribute(
    model: Explicable, windows: NDArray[np.float32], baseline: NDArray[np.float32], target: NDArray[np.integer], steps: int = 64
) -> tuple[Values, Values]:
    """Integrated gradients (N, T, F) of the logit `target` (N,) of raw windows (N, T, F) from a raw baseline (T, F); and the logits' rise (N,)."""

    def logits(logarithm: Tensor) -> Tensor:
        return _logits(model, torch.sign(logarithm) * torch.expm1(logarithm.abs()))

    ends = [torch.sign(raw) * torch.log1p(raw.abs()) for raw in (_tensor(windows, model), _tensor(baseline[None], model))]  # (N, T, F), (1, T, F)
    chosen = torch.from_numpy(np.asarray(target, dtype=np.int64)).to(ends[0].device)
    method, parts = IntegratedGradients(logits), []
    with _evaluating(model), torch.backends.cudnn.flags(enabled=False):  # cuDNN has no backward pass of a recurrent net in evaluation mode
        for first in range(0, len(windows), 64):
            here = slice(first, first + 64)
            part = method.attribute(ends[0][here], ends[1], target=chosen[here], n_steps=steps, internal_batch_size=AT_ONCE)
            parts.append(part.detach().double().cpu().numpy())
        with torch.inference_mode():
            level = torch.cat([logits(part).double() for part in ends[0].split(AT_ONCE)])  # (N, C)
            rise = (level - logits(ends[1]).double()).gather(1, chosen[:, None])[:, 0]  # (N,)
    return np.concatenate(parts), rise.cpu().numpy()


def attention_of(model: Explicable, windows: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    """Attention weights of raw windows (N, T, F): (N, heads, T, T) of each layer; none for a model without attention."""
    if "return_attention" not in inspect.signature(model.forward).parameters:
        return ()
    with _evaluating(model), torch.inference_mode():
        parts = [model.forward(part, return_attention=True)["attention_weights"] for part in _tensor(windows, model).split(256)]
    return tuple(torch.cat(layer).float().cpu().numpy() for layer in zip(*parts, strict=True))


class AttentionTracker:
    """How attention settles while a model trains, on the same windows after each epoch."""

    def __init__(self, model: Explicable, probe: NDArray[np.float32]) -> None:
        """Watch a model on raw windows (N, T, F)."""
        self.model, self.probe = model, probe
        self.rows: list[dict[str, float]] = []

    def record(self, epoch: int) -> None:
        """Add a row for each layer and head of the model as it is now: mean entropy (share of that of an even spread) and mean distance |query - key|."""
        for layer, weights in enumerate(attention_of(self.model, self.probe)):  # (N, heads, T, T)
            length = weights.shape[-1]
            entropy = -(weights * np.log(np.maximum(weights, 1e-12))).sum(axis=3).mean(axis=(0, 2)) / np.log(max(length, 2))  # (heads,)
            apart = np.abs(np.arange(length)[:, None] - np.arange(length))
            distance = (weights * apart).sum(axis=3).mean(axis=(0, 2))  # (heads,)
            self.rows += [
                {"epoch": epoch, "layer": layer, "head": head, "entropy": float(entropy[head]), "distance": float(distance[head])}
                for head in range(len(entropy))
            ]


@dataclass(frozen=True)
class Curves:
    """Probability of the predicted class while cells (step, feature) of windows are replaced in steps, the strongest attribution first."""

    share: Values
    """(K,) share of cells replaced, from 0 to 1."""
    deletion: Values
    """(N, K) cells of the window give way to those of the benign baseline: a good order falls early."""
    deletion_random: Values
    """(N, K) the same in random order, mean over orders."""
    insertion: Values
    """(N, K) cells of the window are put into the benign baseline: a good order rises early."""
    insertion_random: Values
    """(N, K) the same in random order, mean over orders."""

    def areas(self) -> dict[str, Values]:
        """(N,) area under each curve by its name."""
        return {name: np.trapezoid(getattr(self, name), self.share, axis=1) for name in ("deletion", "deletion_random", "insertion", "insertion_random")}


def curves(
    model: Explicable,
    windows: NDArray[np.float32],
    attributions: Values,
    baseline: NDArray[np.float32],
    rng: np.random.Generator,
    *,
    points: int = 11,
    orders: int = 3,
) -> Curves:
    """Deletion and insertion curves of raw windows (N, T, F) by attributions (N, T, F), beside random orders.

    Args:
        model: its calibrated probability of the class that it predicts for the whole window is followed.
        windows: (N, T, F) raw.
        attributions: (N, T, F).
        baseline: (T, F) raw, what cells are replaced by.
        rng: of the random orders.
        points: of a curve, its ends included.
        orders: random orders of each window.
    """
    count, cells = len(windows), baseline.size
    target = predict(model, windows).argmax(axis=1)  # (N,)
    share = np.linspace(0, 1, points)

    def follow(rank: NDArray[np.integer]) -> tuple[Values, Values]:
        removed, inserted = np.empty((count, points)), np.empty((count, points))
        for point, replaced in enumerate(share):
            chosen = (rank < round(replaced * cells)).reshape(windows.shape)
            for into, kept in ((removed, ~chosen), (inserted, chosen)):
                into[:, point] = predict(model, np.where(kept, windows, baseline))[np.arange(count), target]
        return removed, inserted

    by_strength = np.argsort(np.argsort(-attributions.reshape(count, cells), axis=1, kind="stable"), axis=1)  # (N, cells) place of each cell
    deletion, insertion = follow(by_strength)
    drawn = [follow(rng.permuted(by_strength, axis=1)) for _ in range(orders)]
    return Curves(share, deletion, np.mean([one[0] for one in drawn], axis=0), insertion, np.mean([one[1] for one in drawn], axis=0))


def _logits(model: Explicable, x: Tensor) -> Tensor:
    found = model(x)
    return found if isinstance(found, Tensor) else found["logits"]


def _tensor(windows: NDArray[np.float32], model: Explicable) -> Tensor:
    """The same, where the model's weights are; on the CPU for one without weights."""
    weight = next(iter(model.parameters()), None)
    return torch.from_numpy(np.ascontiguousarray(windows, dtype=np.float32)).to("cpu" if weight is None else weight.device)


@contextlib.contextmanager
def _evaluating(model: Explicable) -> Iterator[None]:
    """Evaluation mode inside the block."""
    training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(training)
