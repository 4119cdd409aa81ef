"""Who sees which rows: the only module that divides data.

Each capture is cut into contiguous blocks in file order, `fit | calibrate | agent | test`, with `gap` rows left out
between two of them, so that no window touches two sides. Chunks of a CICIoT2023 capture are joined in arbitrary order
by its publishers, hence a block is contiguous in the file, and in time only inside a chunk.

Duplicates. The same vector never stands on two sides. Copies leave the earlier side: a vector that `test` holds is
removed from `agent`, `calibrate` and `fit`; one that `agent` holds from the two before it, and so on. The sides that
measure keep their natural mix, and what is lost is lost to training. In a capture, a run of rows is broken where a row
was removed, so a window never bridges the hole; shuffled rows have no order to keep and close ranks.

Event logs are divided into `train | validation | test` instead: by whole groups (`group_side`; APT campaigns, devices), by the
clock (`time_side`), or in blocks as above (`capture_side`). A session that lies on two parts has a gap between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from src.config import nearest
from src.errors import UserError

SIDES = ("fit", "calibrate", "agent", "test")
"""Sides, in the order of the blocks of a capture."""

PARTS = ("train", "validation", "test")
"""Parts that an event log is divided into."""

_BLOCK = 1 << 20
"""Values looked up at once."""


def block_side(count: int, fractions: Sequence[float], gap: int, shortest: int) -> NDArray[np.int8]:
    """(count,) index of the fraction (of `SIDES` or `PARTS`) that each row of a capture belongs to, -1 for rows left out between two.

    A capture too short to give each side `shortest` rows goes to the first one whole.
    """
    side = np.full(count, -1, dtype=np.int8)
    usable = count - gap * (len(fractions) - 1)
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
    removed = np.zeros(len(side), dtype=bool)
    later = np.empty(0, dtype=np.uint64)
    for index in range(int(side.max(initial=-1)), -1, -1):
        mine = side == index
        own = row_hash[mine]
        if len(later):
            removed[mine] = among(own, later)
        if index:
            later = np.concatenate((later, own))
            later.sort()  # `np.unique` fills a hash table, with many times the memory
    return removed


def among(values: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """(N,) whether `known` (sorted) holds each of the values; in blocks, each sorted first, since neighbours in order are looked up where the last one was."""
    found = np.zeros(len(values), dtype=bool)
    if len(known):
        for first in range(0, len(values), _BLOCK):
            block = values[first : first + _BLOCK]
            order = np.argsort(block)
            place = np.searchsorted(known, block[order])
            found[first + order] = known[np.minimum(place, len(known) - 1)] == block[order]
    return found


def segments(run: NDArray[np.integer], side: NDArray[np.int8], removed: NDArray[np.bool_], ordered: bool | NDArray[np.bool_]) -> NDArray[np.int64]:
    """(N,) id from 0 of the contiguous run, inside one chunk and one side, of each row; -1 for rows that are out.

    Args:
        run: (N,) chunk of each row.
        side: (N,) index into `SIDES`, -1 for rows left out between sides.
        removed: (N,) rows that leave as copies; they break a run where `ordered`.
        ordered: whether the rows stand in capture order; one truth for all, or (N,).
    """
    kept = np.flatnonzero(~((side < 0) | removed))
    result = np.full(len(side), -1, dtype=np.int64)
    result[kept] = run_ids(kept, np.broadcast_to(ordered, len(side))[kept], run[kept], side[kept])
    return result


def run_ids(kept: NDArray[np.integer], ordered: NDArray[np.bool_], *keys: NDArray[np.integer]) -> NDArray[np.int64]:
    """(K,) id from 0 of the contiguous run of each row that is kept.

    Args:
        kept: (K,) places of these rows, ascending.
        ordered: (K,) whether a row stands in capture order: a run is broken where rows before it are missing.
        keys: (K,) each; a run has one value of each.
    """
    breaks = np.zeros(len(kept), dtype=bool)
    breaks[1:] = (np.diff(kept) > 1) & ordered[1:]
    for key in keys:
        breaks[1:] |= key[1:] != key[:-1]
    return np.cumsum(breaks)


def leave_group_out(names: Sequence[str], left_out: str) -> dict[str, list[str]]:
    """Groups of each part when one of them is the test: the next one (the first, behind the last) validates, the others train.

    Args:
        names: groups in their order.
        left_out: the one to test on.

    Raises:
        UserError: when there is no such group, or there are fewer than three.
    """
    if left_out not in names:
        raise UserError(f"no group '{left_out}' to leave out: {nearest(left_out, names)}")
    if len(names) < 3:
        raise UserError(f"leaving '{left_out}' out needs at least three groups; found: {', '.join(names)}")
    validation = names[(names.index(left_out) + 1) % len(names)]
    return {"train": [name for name in names if name not in (left_out, validation)], "validation": [validation], "test": [left_out]}


def group_side(group: NDArray[np.integer], names: Sequence[str], parts: Mapping[str, Sequence[str]]) -> NDArray[np.int8]:
    """(N,) index into `PARTS` of each row, whole groups at a time.

    Args:
        group: (N,) index into `names`.
        names: of the groups that the data hold.
        parts: names of the groups of each of `PARTS`; may name groups that the data do not hold.

    Raises:
        UserError: when a group of the data stands in no part or in two, or a part has no group in the data.
    """
    side = np.full(len(names), -1, dtype=np.int8)
    for index, part in enumerate(PARTS):
        for name in parts.get(part, ()):
            if name in names:
                place = names.index(name)
                if side[place] not in (-1, index):
                    raise UserError(f"group '{name}' stands both in {PARTS[side[place]]} and in {part}; give it to one of them")
                side[place] = index
    if (side < 0).any():
        lost = ", ".join(name for name, place in zip(names, side, strict=True) if place < 0)
        raise UserError(f"groups in no part of the split: {lost}; name each in one of {', '.join(PARTS)}")
    for index, part in enumerate(PARTS):
        if index not in side:
            raise UserError(f"no group for {part}: the split names {', '.join(parts.get(part, ())) or 'none'}, the data hold {', '.join(names)}")
    return side[group]


def time_side(time: NDArray[np.integer], session: NDArray[np.integer], shares: Sequence[float], gap: int) -> NDArray[np.int8]:
    """(N,) index into `PARTS` of each row by the clock: the earliest share of all rows trains, the latest tests.

    A session that lies across a cut loses its last `gap` rows before it, so that no window touches two parts. A row without a
    time stands where the row before it in its session stands; a session without any time is left out.

    Args:
        time: (N,) any unit; negative where unknown.
        session: (N,) id of the session of each row; rows of a session stand together, in time order.
        shares: of `PARTS`, of all rows with a time.
        gap: rows left out between two parts of a session.

    Returns:
        Index into `PARTS`, -1 for rows left out.
    """
    known = np.flatnonzero(time >= 0)
    if not len(known):
        return np.full(len(time), -1, dtype=np.int8)
    times = time[known]
    places = np.minimum(np.floor(np.cumsum(shares)[:-1] * len(known)).astype(np.int64), len(known) - 1)
    cuts = np.partition(times, places)[places]
    first, last = _ends(session)
    before = np.full(len(time), -1, dtype=np.int64)
    before[known] = known
    before = np.maximum.accumulate(before)
    # A row without a time takes the last one known in its session, or, at the start of it, the first one.
    behind = np.full(len(time), len(time), dtype=np.int64)
    behind[known] = known
    behind = np.minimum.accumulate(behind[::-1])[::-1]
    source = np.where(before >= first, before, behind)
    found = source <= last
    side = np.full(len(time), -1, dtype=np.int8)
    side[found] = np.searchsorted(cuts, time[source[found]], side="right")
    # A clock that goes back inside a session does not move rows back to an earlier part.
    rank = np.maximum.accumulate(np.where(found, side, 0) + len(PARTS) * np.cumsum(first == np.arange(len(time))))
    side[found] = rank[found] % len(PARTS)
    ahead = side[np.minimum(np.arange(len(side)) + gap, last)]
    return np.where(ahead != side, np.int8(-1), side)


def capture_side(
    group: NDArray[np.integer],
    session: NDArray[np.integer],
    label: NDArray[np.integer],
    ordered: NDArray[np.bool_],
    shares: Sequence[float],
    gap: int,
    shortest: int,
) -> NDArray[np.int8]:
    """(N,) index into `PARTS` of each row: every capture is cut into contiguous blocks (`block_side`), -1 for rows between two.

    A capture is a run of sessions of one group; a session that begins with another label than the one before it ended with begins a new one,
    so that where benign and attack traffic of a device are files of their own, each is cut. Shuffled rows of a group have no order to keep:
    those of each label are cut by themselves, or a file sorted by label would put whole classes into one part.

    Args:
        group: (N,) id of the group of each row.
        session: (N,) id of the session of each row; rows of a session stand together.
        label: (N,) id of the label of each row.
        ordered: (N,) whether rows stand in the order in which they happened.
        shares: of `PARTS`.
        gap: rows left out between two blocks.
        shortest: rows that each block must have; a capture too short for that trains whole.
    """
    side = np.empty(len(session), dtype=np.int8)
    change = (group[1:] != group[:-1]) | ((session[1:] != session[:-1]) & (label[1:] != label[:-1]))
    capture = np.concatenate((np.zeros(1, dtype=np.int32), np.cumsum(change, dtype=np.int32)))[: len(session)]
    capture = capture[ordered]
    ends = np.flatnonzero(np.diff(capture, append=-1) != 0) + 1
    side[ordered] = _block_sides(np.diff(ends, prepend=0), shares, gap, shortest)
    shuffled = np.flatnonzero(~ordered)
    heap = group[shuffled].astype(np.int64) * (label.max(initial=0) + 1) + label[shuffled]
    side[shuffled[np.argsort(heap, kind="stable")]] = _block_sides(np.unique(heap, return_counts=True)[1], shares, gap, shortest)
    return side


def _block_sides(sizes: NDArray[np.integer], shares: Sequence[float], gap: int, shortest: int) -> NDArray[np.int8]:
    """`block_side` of captures of these sizes, one after another."""
    return np.concatenate([np.empty(0, np.int8), *(block_side(int(size), shares, gap, shortest) for size in sizes)])


def _starts(session: NDArray[np.integer]) -> NDArray[np.int64]:
    """First row of each session."""
    return np.concatenate(([0], np.flatnonzero(np.diff(session) != 0) + 1))


def _ends(session: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(N,) first and (N,) last row of the session of each row."""
    first = _starts(session)
    sizes = np.diff(np.concatenate((first, [len(session)])))
    return np.repeat(first, sizes), np.repeat(first + sizes - 1, sizes)
