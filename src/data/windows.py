"""Windows over rows, and the time axis of rows.

A row of CICIoT2023 is itself a window of 10 or 100 packets; a window here is a run of such rows. Features carry no
timestamp, but in the 39-column release the clock can be rebuilt inside a capture chunk, because the inter-arrival time
is carried across rows: the end of row i is the sum of IAT x Number up to i, and its duration is Number / Rate.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def window_starts(segment: NDArray[np.integer], length: int, stride: int = 1) -> NDArray[np.int64]:
    """(W,) first row of every window that lies in one segment.

    Args:
        segment: (N,) id of the contiguous run that each row belongs to; rows of a run stand together.
        length: rows in a window.
        stride: rows between the starts of two windows of a segment.
    """
    count = len(segment)
    if count < length:
        return np.empty(0, dtype=np.int64)
    starts = np.flatnonzero(segment[: count - length + 1] == segment[length - 1 :])  # a run stands together: with both ends, all between
    if stride == 1:
        return starts
    first = np.concatenate(([0], np.flatnonzero(np.diff(segment) != 0) + 1))
    return starts[(starts - first[np.searchsorted(first, starts, "right") - 1]) % stride == 0]


def gather(features: NDArray[np.float32], starts: NDArray[np.integer], length: int) -> NDArray[np.float32]:
    """(W, length, F) the windows that begin at `starts` in `features` (N, F)."""
    return features[np.asarray(starts, dtype=np.int64)[:, None] + np.arange(length)]


def durations(number: NDArray[np.float64], rate: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) seconds that rows of `number` packets at `rate` a second last: 0 where the rate is infinite, or so small that single precision has none."""
    return np.divide(number, rate, out=np.zeros_like(number), where=np.isfinite(rate) & (rate >= np.finfo(np.float32).smallest_subnormal))


def rebuild_time(iat: ArrayLike, number: ArrayLike, rate: ArrayLike, chunk: ArrayLike | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Start and duration of each row, in seconds since the start of its chunk.

    Args:
        iat: (N,) mean gap to the previous packet, seconds; the first packet of a chunk counts 0.
        number: (N,) packets in the row.
        rate: (N,) packets / duration; infinite where all packets share one timestamp.
        chunk: (N,) id of the chunk of each row, rows of a chunk together and in order; None is one chunk.

    Returns:
        (N,) start and (N,) duration. A row whose rate is infinite lasts 0 s. Where a capture holds packets out of order,
        starts are off by as much as the packets (microseconds); the error does not add up.
    """
    iat, number, rate = (np.asarray(column, dtype=np.float64) for column in (iat, number, rate))
    duration = durations(number, rate)
    elapsed = iat * number
    end = np.cumsum(elapsed)
    if chunk is not None and len(end):
        first = np.concatenate(([0], np.flatnonzero(np.diff(np.asarray(chunk)) != 0) + 1))
        before = end[first] - elapsed[first]
        end = end - np.repeat(before, np.diff(np.concatenate((first, [len(end)]))))
    return end - duration, duration
