"""One calibrated verdict from several sensors of the same windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

FloatArray = NDArray[np.float64]
SMALLEST = 1e-12
"""Least probability that a logarithm is taken of."""


@dataclass(frozen=True)
class Fusion:
    """Logarithmic opinion pool of members' class probabilities, and what an anomaly score adds to the odds of an attack.

    log p(c) = sum over members of weight x log p_member(c) + constant; where the anomaly is asked for, too, attack classes gain
    anomaly_weight x surprise + bias, with surprise = -log(1 - anomaly), the surprisal of the anomaly's p-value. Weights are not
    negative, so a more abnormal window never means less alarm. Source of the pool: Genest and Zidek 1986; weights by maximum likelihood.
    """

    weights: FloatArray
    """(M,) of the members."""
    anomaly_weight: float
    bias: float
    attack: FloatArray
    """(C,) 1 for attack classes, 0 for benign ones."""

    @classmethod
    def fit(cls, members: FloatArray, anomaly: FloatArray, labels: NDArray[np.integer], attack: NDArray[np.bool_], ridge: float = 1e-3) -> Fusion:
        """Weights that make the labels of held-back windows likeliest: first the members', then what the anomaly adds to them.

        Args:
            members: (M, N, C) probabilities.
            anomaly: (N,) in [0, 1).
            labels: (N,).
            attack: (C,) which classes are attacks.
            ridge: pull of the weights to an equal share of each member, and to none of the anomaly, without which a member that is
                certain and right would be given ever more weight.
        """
        logs, surprise = np.log(np.maximum(members, SMALLEST)), _surprise(anomaly)
        side, rows, count = attack.astype(np.float64), np.arange(len(labels)), len(members)
        start = np.array([*([1.0 / count] * count), 0.0, 0.0])

        def loss(theta: FloatArray) -> tuple[float, FloatArray]:
            log_p = _pool(logs, theta[:-2], surprise, theta[-2], theta[-1], side)  # (N, C)
            wrong = np.exp(log_p)
            wrong[rows, labels] -= 1.0  # (N, C) gradient of the loss by the pooled logits
            by_attack = wrong @ side  # (N,)
            gradient = np.array([*(float((wrong * log).sum()) for log in logs), float(by_attack @ surprise), float(by_attack.sum())]) / len(labels)
            pull = theta - start
            return float(-log_p[rows, labels].mean() + ridge * (pull**2).sum()), gradient + 2 * ridge * pull

        free, closed = [(0.0, 10.0)] * count, [(0.0, 0.0)] * 2
        alone = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[*free, *closed]).x
        held = [(value, value) for value in alone[:-2]]
        found = minimize(loss, alone, jac=True, method="L-BFGS-B", bounds=[*held, (0.0, 10.0), (-10.0, 10.0)]).x
        return cls(found[:-2].copy(), float(found[-2]), float(found[-1]), side)

    def combine(self, members: NDArray[np.floating], anomaly: NDArray[np.floating] | None = None) -> FloatArray:
        """(N, C) probabilities from those of the members (M, N, C), and from the anomaly (N,) where it is given."""
        logs = np.log(np.maximum(members.astype(np.float64), SMALLEST))
        if anomaly is None:
            return np.exp(_pool(logs, self.weights, np.zeros(members.shape[1]), 0.0, 0.0, self.attack))
        return np.exp(_pool(logs, self.weights, _surprise(anomaly), self.anomaly_weight, self.bias, self.attack))

    def tensors(self) -> dict[str, Tensor]:
        """The numbers, to be saved."""
        return {"fusion_weights": torch.tensor([*self.weights, self.anomaly_weight, self.bias]), "fusion_attack": torch.from_numpy(self.attack)}

    @classmethod
    def from_tensors(cls, arrays: Mapping[str, Tensor]) -> Fusion:
        """What `tensors` gave.

        Raises:
            KeyError: when one is missing.
        """
        numbers = arrays["fusion_weights"].double().numpy()
        return cls(numbers[:-2].copy(), float(numbers[-2]), float(numbers[-1]), arrays["fusion_attack"].double().numpy())


def _surprise(anomaly: NDArray[np.floating]) -> FloatArray:
    return -np.log(np.maximum(1.0 - anomaly.astype(np.float64), SMALLEST))


def _pool(logs: FloatArray, weights: FloatArray, surprise: FloatArray, slope: float, bias: float, side: FloatArray) -> FloatArray:
    """(N, C) normalised logarithms."""
    pooled = np.tensordot(weights, logs, axes=1) + np.outer(slope * surprise + bias, side)
    pooled -= pooled.max(axis=1, keepdims=True)
    return pooled - np.log(np.exp(pooled).sum(axis=1, keepdims=True))


def disagreement(groups: Sequence[Tensor]) -> Tensor:
    """(N,) float64 nats of information that knowing who spoke would give about the class: the part of uncertainty that more knowledge could remove.

    The entropy of the mixture less the mean entropy of its parts (Lakshminarayanan et al. 2017; Depeweg et al. 2018). Every group has an
    equal say, and so has every draw in a group.

    Args:
        groups: probabilities (S, N, C) each, of S draws.
    """
    groups = [group.double() for group in groups]  # a small difference of large sums
    mixture = torch.stack([group.mean(dim=0) for group in groups]).mean(dim=0)  # (N, C)
    parts = torch.stack([_entropy(group).mean(dim=0) for group in groups]).mean(dim=0)  # (N,)
    return (_entropy(mixture) - parts).clamp(min=0)


def _entropy(probabilities: Tensor) -> Tensor:
    return -(probabilities * probabilities.clamp(min=SMALLEST).log()).sum(dim=-1)
