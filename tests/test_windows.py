from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data.windows import gather, rebuild_time, window_starts

GOLDEN = Path(__file__).parents[1] / ".." / "shared" / "data" / "ciciot39"


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 5), st.integers(1, 4))
def test_windows_are_those_that_a_plain_loop_finds(sizes: list[int], length: int, stride: int) -> None:
    segment = np.repeat(np.arange(len(sizes)), sizes)
    expected = [first + offset for first, size in zip(np.cumsum([0, *sizes]), sizes, strict=False) for offset in range(0, size - length + 1, stride)]
    np.testing.assert_array_equal(window_starts(segment, length, stride), expected)


def test_no_window_crosses_a_segment() -> None:
    segment = np.array([4, 4, 4, 1, 1, 1, 1, 7, 7])
    features = np.stack([segment, np.arange(9)], axis=1).astype(np.float32)
    windows = gather(features, window_starts(segment, 3, 1), 3)
    assert windows.shape == (3, 3, 2)
    assert (np.ptp(windows[:, :, 0], axis=1) == 0).all()
    np.testing.assert_array_equal(windows[:, :, 1], [[0, 1, 2], [3, 4, 5], [4, 5, 6]])


def test_time_of_two_chunks_by_hand() -> None:
    # Chunk 0: packets at 0, 1 | 3, 4; chunk 1: packets at 0, 2 and one alone at 5.
    iat, number = [0.5, 1.5, 1.0, 3.0], [2, 2, 2, 1]
    rate = [2.0, 2.0, 1.0, np.inf]
    start, duration = rebuild_time(iat, number, rate, [0, 0, 1, 1])
    np.testing.assert_allclose(start, [0, 3, 0, 5], atol=1e-12)
    np.testing.assert_allclose(duration, [1, 1, 2, 0], atol=1e-12)
    assert rebuild_time([], [], [])[0].shape == (0,)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the captures with known time (../shared/data/ciciot39) are not here")
def test_rebuilt_starts_equal_the_true_ones() -> None:
    """Each golden row carries the epoch time at which its first packet was seen."""
    errors: list[np.ndarray] = []
    for path in sorted(GOLDEN.rglob("*.csv")):
        frame = pl.read_csv(path, infer_schema_length=None)
        captures = frame["pcap"].rle_id().to_numpy()
        columns = [frame[name].to_numpy() for name in ("IAT", "Number", "Rate")]
        true = frame["window_start"].to_numpy()
        first = np.concatenate(([0], np.flatnonzero(np.diff(captures)) + 1))
        true = true - np.repeat(true[first], np.diff(np.append(first, len(true))))
        error = np.abs(rebuild_time(*columns, captures)[0] - true)
        errors.append(error)
        if path.name.startswith("iot23"):
            assert error.max() < 1e-6, f"{path.name}: these captures are in order"
        if captures.max() > 0:
            assert np.abs(rebuild_time(*columns)[0] - true).max() > 1e-3, "a clock that is not set back at a new capture must not pass"
    every = np.concatenate(errors)
    assert len(every) > 23_000
    assert (every < 1e-6).mean() > 0.998, "equal, at the resolution of the captures' clock"
    assert every.max() < 1e-4, "three captures hold packets out of order, by up to 54 microseconds"
