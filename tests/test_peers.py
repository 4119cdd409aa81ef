import dataclasses

import numpy as np
import pytest

from src.data.dataset import Dataset
from src.errors import UserError
from src.training.peers import PEERS, fit_pooled, fit_rows, fit_statistics, pooled, side_windows, window_statistics
from tests.datasets import make_dataset

LENGTH = 10


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return make_dataset()


def recall(dataset: Dataset, probabilities: np.ndarray, labels: np.ndarray, name: str) -> float:
    """Share of windows of a class that are read right."""
    index = dataset.class_names.index(name)
    return float((probabilities[labels == index].argmax(axis=1) == index).mean())


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_tells_levels_apart_and_follows_its_seed(dataset: Dataset, name: str) -> None:
    windows, labels = side_windows(dataset, "test", LENGTH)
    peer = PEERS[name](dataset, LENGTH, 1)
    found = peer.probabilities(windows)
    assert found.shape == (len(windows), len(dataset.class_names))
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    for label in ("DDoS-UDP_Fragmentation", "Recon-PortScan"):
        assert recall(dataset, found, labels, label) > 0.95
    assert peer.size() > 0
    np.testing.assert_array_equal(PEERS[name](dataset, LENGTH, 1).probabilities(windows), found)
    assert not np.array_equal(PEERS[name](dataset, LENGTH, 2).probabilities(windows), found)


def test_only_statistics_see_a_class_that_differs_by_the_order_of_rows(dataset: Dataset) -> None:
    windows, labels = side_windows(dataset, "test", LENGTH)
    by_statistics = fit_statistics(dataset, LENGTH, 0).probabilities(windows)
    assert min(recall(dataset, by_statistics, labels, name) for name in ("BenignTraffic", "XSS")) > 0.9
    by_rows = fit_rows(dataset, LENGTH, 0).probabilities(windows)
    assert min(recall(dataset, by_rows, labels, name) for name in ("BenignTraffic", "XSS")) < 0.75


def test_rows_read_the_last_row_and_pooled_rows_any_order(dataset: Dataset) -> None:
    windows = side_windows(dataset, "test", LENGTH)[0][::7]
    turned = windows[:, ::-1]
    rows, together = fit_rows(dataset, LENGTH, 0), fit_pooled(dataset, LENGTH, 0)
    np.testing.assert_array_equal(rows.probabilities(np.repeat(windows[:, -1:], LENGTH, axis=1)), rows.probabilities(windows))
    assert not np.array_equal(rows.probabilities(turned), rows.probabilities(windows))
    np.testing.assert_allclose(together.probabilities(turned), together.probabilities(windows), atol=1e-5)


def test_pooling_multiplies_rows() -> None:
    rows = np.array([[[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]])
    np.testing.assert_allclose(pooled(np.log(rows)), [[0.09 / 0.13, 0.04 / 0.13]], rtol=1e-6)


def test_statistics_of_a_window() -> None:
    window = np.array([[[1.0], [3.0], [2.0]]], dtype=np.float32)
    np.testing.assert_allclose(window_statistics(window)[0], [2, np.std([1, 3, 2]), 1, 3, 2, 1.5], rtol=1e-6)


@pytest.mark.parametrize("side", ["fit", "calibrate"])
@pytest.mark.parametrize("name", PEERS)
def test_a_side_without_windows_is_refused(dataset: Dataset, name: str, side: str) -> None:
    rows = dataset.splits[side]
    empty = dataclasses.replace(rows, **{field.name: getattr(rows, field.name)[: LENGTH - 1] for field in dataclasses.fields(rows)})
    with pytest.raises(UserError, match=f"'{side}' holds no window of {LENGTH} rows"):
        PEERS[name](dataclasses.replace(dataset, splits={**dataset.splits, side: empty}), LENGTH, 0)
