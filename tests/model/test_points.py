import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from model import points

Map = NDArray[np.float32]

maps = arrays(
    np.float32, st.tuples(st.integers(2, 12), st.integers(2, 12)), elements=st.floats(0, 1, width=32)
)


def blob(rows: int, columns: int, row: int, column: int) -> Map:
    y, x = np.mgrid[0:rows, 0:columns]
    return np.asarray(np.exp(-((y - row) ** 2 + (x - column) ** 2) / 4), np.float32)


def test_the_pair_is_the_peak_of_the_largest_area_and_the_weakest_point_outside() -> None:
    attention = blob(10, 20, 3, 5)
    attention[9, 19] = 1.5  # a lone spike: stronger, but a smaller area
    pair = points.pair(attention, threshold=0.3)
    assert pair is not None
    assert pair.positive == (5.5 / 20, 3.5 / 10)
    column, row = int(pair.negative[0] * 20), int(pair.negative[1] * 10)
    assert attention[row, column] == attention.min()


def test_a_flat_map_has_no_pair() -> None:
    flat = points.normalised(np.full((5, 5), 3, np.float32))
    assert points.pair(flat, threshold=0.4) is None


def test_what_a_mask_explains_is_masked_out_and_the_next_object_found() -> None:
    attention = np.maximum(blob(12, 12, 2, 2), 0.8 * blob(12, 12, 9, 9))
    mask = np.zeros((120, 120), bool)
    mask[0:45, 0:45] = True
    pair = points.pair(points.mask_out(attention, mask), threshold=0.4)
    assert pair is not None
    assert pair.positive == (9.5 / 12, 9.5 / 12)


def test_consistency_rewards_the_mask_that_covers_the_activation() -> None:
    attention = blob(10, 10, 3, 3)
    right, wrong = np.zeros((2, 100, 100), bool)
    right[10:60, 10:60] = True
    wrong[60:, 60:] = True
    everything = np.ones((100, 100), bool)
    scores = [points.consistency(attention, m) for m in (right, everything, wrong)]
    assert scores[0] > 0.7 > scores[1] >= scores[2] == 0


@given(maps)
def test_points_lie_inside_the_view_and_apart(attention: Map) -> None:
    pair = points.pair(points.normalised(attention), threshold=0.4)
    if pair is not None:
        for x, y in (pair.positive, pair.negative):
            assert 0 < x < 1
            assert 0 < y < 1
        assert pair.positive != pair.negative
        assert 0 < pair.peak <= 1
