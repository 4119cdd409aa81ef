"""The fused verdict: weights that follow who is right, directions that hold, a class of uncertainty that more knowledge could remove."""

import numpy as np
import pytest
import torch

from src.models.fusion import Fusion, disagreement

ATTACK = np.array([False, True, True])
RNG = np.random.default_rng(0)
LABELS = RNG.integers(3, size=4000)


def member(sharpness: float, seed: int) -> np.ndarray:
    """(N, 3) probabilities that favour the true class by `sharpness` nats, with noise."""
    logits = np.random.default_rng(seed).normal(0, 1.0, (len(LABELS), 3))
    logits[np.arange(len(LABELS)), LABELS] += sharpness
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def loss(probabilities: np.ndarray) -> float:
    return float(-np.log(probabilities[np.arange(len(LABELS)), LABELS]).mean())


CALM = np.zeros(len(LABELS))


def test_two_sensors_are_likelier_than_either() -> None:
    members = np.stack([member(2.0, 1), member(1.5, 2)])
    fused = Fusion.fit(members, CALM, LABELS, ATTACK)
    assert loss(fused.combine(members, CALM)) < min(loss(one) for one in members) - 0.1
    np.testing.assert_allclose(fused.combine(members, CALM).sum(axis=1), 1)


def test_a_sensor_that_knows_nothing_gets_no_say() -> None:
    members = np.stack([member(2.0, 1), member(0.0, 2)])
    weights = Fusion.fit(members, CALM, LABELS, ATTACK).weights
    assert weights[0] > 0.9
    assert weights[1] < 0.1 * weights[0]


def test_an_informative_anomaly_moves_the_verdict_and_only_towards_attack() -> None:
    anomaly = np.where(LABELS > 0, RNG.beta(8, 1, len(LABELS)), RNG.uniform(size=len(LABELS)))
    members = member(0.5, 3)[None]
    fused = Fusion.fit(members, anomaly, LABELS, ATTACK)
    assert fused.anomaly_weight > 0.1
    assert loss(fused.combine(members, anomaly)) < loss(fused.combine(members)) - 0.02
    low, high = (fused.combine(members, np.full(len(LABELS), level))[:, 0] for level in (0.1, 0.99))
    assert (high < low).all()


def test_members_are_weighed_as_if_there_were_no_anomaly() -> None:
    members = np.stack([member(2.0, 1), member(1.5, 2)])
    anomaly = np.where(LABELS > 0, RNG.beta(8, 1, len(LABELS)), RNG.uniform(size=len(LABELS)))
    with_it, without = (Fusion.fit(members, one, LABELS, ATTACK) for one in (anomaly, CALM))
    np.testing.assert_allclose(with_it.weights, without.weights, rtol=1e-3)
    np.testing.assert_allclose(with_it.combine(members), without.combine(members), rtol=1e-2, atol=1e-4)


def test_it_comes_back_from_its_tensors() -> None:
    members = np.stack([member(2.0, 1), member(1.5, 2)])
    fused = Fusion.fit(members, CALM, LABELS, ATTACK)
    np.testing.assert_array_equal(Fusion.from_tensors(fused.tensors()).combine(members, CALM), fused.combine(members, CALM))
    with pytest.raises(KeyError):
        Fusion.from_tensors({})


def test_disagreement_is_of_who_speaks_not_of_what_is_doubtful() -> None:
    doubtful = torch.tensor([[0.5, 0.5]])
    assert float(disagreement([doubtful[None], doubtful[None]])) == pytest.approx(0, abs=1e-9)  # all agree that it is open
    sure, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert float(disagreement([sure[None], other[None]])) == pytest.approx(np.log(2))  # each is sure of another class
    draws = torch.stack([sure, other])
    assert float(disagreement([draws, draws])) == pytest.approx(np.log(2))
    assert float(disagreement([sure[None], sure[None]])) == 0
