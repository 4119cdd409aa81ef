"""Tests for src.training.anomaly_peers: each learns benign windows and tells what is unlike them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from src.training.anomaly_peers import AT_ONCE, PEERS


def benign(count: int, seed: int) -> NDArray[np.float32]:
    """(count, 5, 6) windows of six features that follow two hidden ones."""
    hidden = np.random.default_rng(0).normal(size=(2, 6))
    rng = np.random.default_rng([1, seed])
    return (rng.normal(size=(count, 5, 2)) @ hidden + 0.1 * rng.normal(size=(count, 5, 6))).astype(np.float32)


def odd(count: int) -> NDArray[np.float32]:
    """(count, 5, 6) windows of the same scale whose features follow nothing in common, and lie higher."""
    return np.random.default_rng(9).normal(1.5, 1.5, (count, 5, 6)).astype(np.float32)


@pytest.mark.parametrize("name", PEERS)
def test_tells_odd_windows(name: str) -> None:
    """Higher on windows that are unlike benign ones; the same seed gives the same scores, in any batch."""
    windows = benign(400, 0)
    score = PEERS[name](windows.reshape(-1, 6), windows, benign(150, 1), 3)
    asked = np.concatenate([benign(150, 2), odd(150)])
    found = score(asked)
    assert found.shape == (300,)
    assert roc_auc_score(np.arange(300) >= 150, found) > 0.9
    again = PEERS[name](windows.reshape(-1, 6), windows, benign(150, 1), 3)(asked)
    np.testing.assert_array_equal(found, again)
    np.testing.assert_allclose(score(asked[:7]), found[:7], rtol=1e-4)


def test_many_windows_in_parts() -> None:
    """More windows than are read at once come back in order; none gives none."""
    windows = benign(100, 0)
    score = PEERS["PCA reconstruction"](windows.reshape(-1, 6), windows, windows, 0)
    many = np.tile(windows, (AT_ONCE // 100 + 1, 1, 1))
    np.testing.assert_allclose(score(many)[-100:], score(windows))
    assert score(windows[:0]).shape == (0,)


def test_seed_matters_where_chance_does() -> None:
    """Another seed gives other trees and other weights, and the same subspace."""
    windows = benign(100, 0)
    same = {}
    for name, fit in PEERS.items():
        one, other = (fit(windows.reshape(-1, 6), windows, windows, seed)(windows) for seed in (0, 1))
        same[name] = np.array_equal(one, other)
    assert same == {name: name in ("PCA reconstruction", "Mahalanobis of window means") for name in PEERS}
