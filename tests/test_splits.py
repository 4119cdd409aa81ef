import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from src.data.splits import SIDES, block_side, copies, segments

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


def test_a_short_capture_is_for_fitting() -> None:
    assert (block_side(60, FRACTIONS, gap=10, shortest=10) == SIDES.index("fit")).all()
    assert len(np.unique(block_side(200, FRACTIONS, gap=10, shortest=10))) == 5
