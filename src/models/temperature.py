"""Calibration of probabilities by one number."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The divisor of logits that makes the labels likeliest (Guo et al. 2017), under the mean probability of all draws.

    Args:
        logits: (S, N, C) of S draws, or (N, C) of a model that draws nothing.
        labels: (N,).
    """
    draws = logits.double().reshape(-1, *logits.shape[-2:])  # (S, N, C)

    def loss(log_temperature: float) -> float:
        each = functional.log_softmax(draws / np.exp(log_temperature), dim=-1).gather(2, labels.expand(len(draws), -1)[..., None])[..., 0]  # (S, N)
        return float(-torch.logsumexp(each, dim=0).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))  # type: ignore[union-attr]
