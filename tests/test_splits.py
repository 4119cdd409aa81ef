import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from src.data.splits import SIDES, block_side, capture_side, copies, group_side, leave_group_out, segments, time_side
from src.errors import UserError

FRACTIONS = (0.5, 0.15, 0.15, 0.2)


@given(st.integers(0, 3000), st.integers(2, 40))
def test_blocks_stand_in_order_with_a_gap_between(count: int, gap: int) -> None:
    side = block_side(count, FRACTIONS, gap, shortest=10)
    assert len(side) == count
    if (side == 0).all():
        assert np.floor(0.15 * (count - 3 * gap)) < 10
        return
    for index in range(4):
        block = np.flatnonzero(side == index)
        assert len(block) >= 10
        assert np.diff(block).max(initial=1) == 1, "a block has a hole"
        if index:
            assert block[0] - np.flatnonzero(side == index - 1)[-1] == gap + 1
    assert (side < 0).sum() == 3 * gap
    assert abs((side == 0).mean() - 0.5) < 0.03 + 3 * gap / count


@given(arrays(np.int8, 60, elements=st.integers(-1, 3)), arrays(np.uint64, 60, elements=st.integers(0, 12)))
def test_no_vector_stays_on_two_sides_and_the_later_side_keeps_all_of_its_rows(side: np.ndarray, row_hash: np.ndarray) -> None:
    removed = copies(side, row_hash)
    kept = (side >= 0) & ~removed
    for vector in np.unique(row_hash):
        sides = np.unique(side[kept & (row_hash == vector)])
        before = side[(row_hash == vector) & (side >= 0)]
        assert len(sides) == (1 if len(before) else 0)
        if len(before):
            assert sides[0] == before.max()
            assert (kept & (row_hash == vector)).sum() == (before == before.max()).sum()


def test_a_removed_row_breaks_a_capture_and_not_a_shuffled_list() -> None:
    run = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    side = np.array([0, 0, 0, 0, 0, 0, -1, 1], dtype=np.int8)
    removed = np.array([False, False, True, False, False, False, False, False])
    np.testing.assert_array_equal(segments(run, side, removed, ordered=True), [0, 0, -1, 1, 2, 2, -1, 3])
    np.testing.assert_array_equal(segments(run, side, removed, ordered=False), [0, 0, -1, 0, 1, 1, -1, 2])
    removed[5] = True  # in a shuffled chunk beside a capture
    np.testing.assert_array_equal(segments(run, side, removed, ordered=run == 0), [0, 0, -1, 1, 2, -1, -1, 3])


def test_a_short_capture_is_for_fitting() -> None:
    assert (block_side(60, FRACTIONS, gap=10, shortest=10) == SIDES.index("fit")).all()
    assert len(np.unique(block_side(200, FRACTIONS, gap=10, shortest=10))) == 5


SHARES = (0.7, 0.15, 0.15)


def sessions_of(sizes: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes)


def assert_gaps(side: np.ndarray, session: np.ndarray, gap: int) -> None:
    """Between two rows of one session on two parts lie at least `gap` others."""
    for one in np.unique(session):
        part = side[session == one]
        kept = np.flatnonzero(part >= 0)
        for before, after in itertools.pairwise(kept):
            assert part[before] <= part[after]
            assert part[before] == part[after] or after - before > gap


def test_campaigns_go_whole_to_their_part() -> None:
    names = ["APT1", "APT2", "APT3", "APT4", "APT5", "APT6"]
    parts = {"train": ["APT1", "APT2", "APT3", "APT4"], "validation": ["APT5"], "test": ["APT6"]}
    group = np.array([5, 0, 1, 2, 3, 4, 4, 0])
    np.testing.assert_array_equal(group_side(group, names, parts), [2, 0, 0, 0, 0, 1, 1, 0])
    with pytest.raises(UserError, match="groups in no part of the split: APT7"):
        group_side(np.array([0, 6]), [*names, "APT7"], parts)
    with pytest.raises(UserError, match="'APT6' stands both in train and in test"):
        group_side(group, names, {**parts, "train": ["APT1", "APT6"]})
    with pytest.raises(UserError, match="no group for test: the split names APT6, the data hold APT1, APT5"):
        group_side(np.array([0, 1]), ["APT1", "APT5"], parts)


def test_each_campaign_can_be_left_out() -> None:
    names = ["APT1", "APT2", "APT3", "APT4"]
    for name in names:
        parts = leave_group_out(names, name)
        assert parts["test"] == [name]
        assert sorted(part for some in parts.values() for part in some) == names
    assert leave_group_out(names, "APT3")["validation"] == ["APT4"]
    assert leave_group_out(names, "APT4")["validation"] == ["APT1"]
    with pytest.raises(UserError, match="no group 'APT9' to leave out: did you mean 'APT"):
        leave_group_out(names, "APT9")
    with pytest.raises(UserError, match="at least three groups"):
        leave_group_out(["a", "b"], "a")


@given(st.lists(st.integers(1, 120), min_size=1, max_size=8), st.integers(2, 20), st.integers(0, 2**32 - 1))
def test_the_clock_divides_all_sessions_at_once(sizes: list[int], gap: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    session = sessions_of(sizes)
    time = np.concatenate([np.sort(rng.integers(0, 10_000, size)) for size in sizes])
    unknown = rng.random(len(time)) < 0.1
    side = time_side(np.where(unknown, -1, time), session, SHARES, gap)
    assert_gaps(side, session, gap)
    latest = [time[(side == index) & ~unknown].max(initial=-1) for index in range(3)]
    for index in range(2):
        later = time[(side > index) & ~unknown]
        assert len(later) == 0 or latest[index] <= later.min(), "a row of an earlier part is later than one of a later part"


def test_shares_of_the_clock_and_rows_without_a_time() -> None:
    time = np.arange(1000)
    side = time_side(time, np.zeros(1000, dtype=int), SHARES, gap=10)
    assert [(side == index).sum() for index in range(3)] == [690, 140, 150]
    np.testing.assert_array_equal(np.flatnonzero(side < 0), [*range(690, 700), *range(840, 850)])
    without = np.where(np.isin(np.arange(1000), [0, 300, 920]), -1, time)  # they stand where the row before them, or behind, stands
    np.testing.assert_array_equal(time_side(without, np.zeros(1000, dtype=int), SHARES, 10)[[0, 300, 920]], [0, 0, 2])
    timeless = time_side(np.concatenate([time, np.full(5, -1)]), sessions_of([1000, 5]), SHARES, 10)
    assert (timeless[-5:] == -1).all()


def test_a_clock_that_goes_back_does_not_interleave_parts() -> None:
    time = np.concatenate([np.arange(900), np.arange(100), np.arange(900, 1000)])  # a session whose clock was set back late
    side = time_side(time, np.zeros(len(time), dtype=int), SHARES, gap=5)
    assert_gaps(side, np.zeros(len(time), dtype=int), 5)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=8), st.integers(2, 20), st.integers(0, 2**32 - 1))
def test_captures_are_cut_in_blocks_with_a_gap_in_every_session(sizes: list[int], gap: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    session = sessions_of(sizes)
    group = rng.integers(0, 2, len(sizes))[session]
    label = rng.integers(0, 2, len(session))
    side = capture_side(group, session, label, np.ones(len(session), dtype=bool), SHARES, gap, shortest=gap)
    assert len(side) == len(session)
    assert_gaps(side, session, gap)


def test_benign_and_attack_files_of_a_device_are_each_cut_and_runs_of_one_file_together() -> None:
    session = sessions_of([200, 200, 200, 40, 40, 40, 40, 40])
    label = np.repeat([0, 1, 2, 3], [200, 200, 200, 200])
    one, ordered = np.zeros(800, dtype=int), np.ones(800, dtype=bool)
    side = capture_side(one, session, label, ordered, SHARES, 10, shortest=10)
    for index in range(4):
        assert set(side[label == index]) == {-1, 0, 1, 2}
    short = np.arange(800) // 40
    assert (capture_side(one, short, short, ordered, SHARES, 10, 10) == 0).all()  # too short: they train
    nothing = np.empty(0, dtype=int)
    assert len(capture_side(nothing, nothing, nothing, ordered[:0], SHARES, 10, 10)) == 0


def test_a_shuffled_file_sorted_by_label_gives_each_part_all_labels() -> None:
    one, label = np.zeros(800, dtype=int), np.repeat([0, 1], 400)
    side = capture_side(one, one, label, np.zeros(800, dtype=bool), SHARES, 10, 10)
    in_order = capture_side(one, one, label, np.ones(800, dtype=bool), SHARES, 10, 10)
    assert set(in_order[label == 0]) == {0}
    mixed = np.random.default_rng(0).permutation(800)
    again = capture_side(one, one, label[mixed], np.zeros(800, dtype=bool), SHARES, 10, 10)
    for index in range(2):
        assert [(side[label == index] == part).sum() for part in range(3)] == [266, 57, 57]
        np.testing.assert_array_equal(side[label == index], again[label[mixed] == index])
