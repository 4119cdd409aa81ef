"""Who sees which rows: the only module that divides data.

Each capture is cut into contiguous blocks in file order, `fit | calibrate | agent | test`, with `gap` rows left out
between two of them, so that no window touches two sides. Chunks of a CICIoT2023 capture are joined in arbitrary order
by its publishers, hence a block is contiguous in the file, and in time only inside a chunk.

Duplicates. The same vector never stands on two sides. Copies leave the earlier side: a vector that `test` holds is
removed from `agent`, `calibrate` and `fit`; one that `agent` holds from the two before it, and so on. The sides that
measure keep their natural mix, and what is lost is lost to training. In a capture, a run of rows is broken where a row
was removed, so a window never bridges the hole; shuffled rows have no order to keep and close ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SIDES = ("fit", "calibrate", "agent", "test")
"""Sides, in the order of the blocks of a capture."""


def block_side(count: int, fractions: Sequence[float], gap: int, shortest: int) -> NDArray[np.int8]:
    """(count,) index into `SIDES` of each row of a capture, -1 for rows left out between two sides.

    A capture too short to give each side `shortest` rows goes to `fit` whole.
    """
    side = np.full(count, -1, dtype=np.int8)
    usable = count - gap * (len(SIDES) - 1)
    sizes = np.floor(np.asarray(fractions) * max(usable, 0)).astype(int)
    if sizes.min() < shortest:
        side[:] = 0
        return side
    sizes[-1] = usable - sizes[:-1].sum()
    first = 0
    for index, size in enumerate(sizes):
        side[first : first + size] = index
        first += size + gap
    return side


def copies(side: NDArray[np.int8], row_hash: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """(N,) whether a row must leave because a later side holds the same vector.

    Args:
        side: (N,) index into `SIDES`, -1 for rows that are left out.
        row_hash: (N,) equal for equal vectors.
    """
    _, vector = np.unique(row_hash, return_inverse=True)
    last = np.full(vector.max(initial=-1) + 1, -1, dtype=np.int8)
    np.maximum.at(last, vector, side)
    return (side >= 0) & (side < last[vector])


def segments(run: NDArray[np.integer], side: NDArray[np.int8], removed: NDArray[np.bool_], ordered: bool) -> NDArray[np.int64]:
    """(N,) id from 0 of the contiguous run, inside one chunk and one side, of each row; -1 for rows that are out.

    Args:
        run: (N,) chunk of each row.
        side: (N,) index into `SIDES`, -1 for rows left out between sides.
        removed: (N,) rows that leave as copies; they break a run where `ordered`.
        ordered: whether the rows stand in capture order.
    """
    out = (side < 0) | removed
    kept = np.flatnonzero(~out)
    breaks = np.zeros(len(kept), dtype=bool)
    breaks[1:] = (np.diff(run[kept]) != 0) | (np.diff(side[kept]) != 0)
    if ordered:
        breaks[1:] |= np.diff(kept) > 1
    result = np.full(len(side), -1, dtype=np.int64)
    result[kept] = np.cumsum(breaks)
    return result
