import logging
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from model.attention import maps as attention_maps
from model.attention import point_prompts
from model.recipes import Points

Map = NDArray[np.float32]

maps = arrays(
    np.float32, st.tuples(st.integers(2, 12), st.integers(2, 12)), elements=st.floats(0, 1, width=32)
)


def blob(rows: int, columns: int, row: int, column: int) -> Map:
    y, x = np.mgrid[0:rows, 0:columns]
    return np.asarray(np.exp(-((y - row) ** 2 + (x - column) ** 2) / 4), np.float32)


def positives(chosen: point_prompts.PointPrompt) -> list[tuple[float, float]]:
    return [(x, y) for x, y, label in chosen.points if label == 1]


def test_the_pair_is_the_peak_of_the_largest_area_and_the_weakest_point_outside() -> None:
    attention = blob(10, 20, 3, 5)
    attention[9, 19] = 1.5  # a lone spike: stronger, but a smaller area
    (chosen,) = point_prompts.choose(attention, "pair", threshold=0.3)
    (x, y, inside), (low_x, low_y, outside) = chosen.points
    assert (x, y) == (5.5 / 20, 3.5 / 10)
    assert (inside, outside) == (1, 0)
    assert attention[int(low_y * 10), int(low_x * 20)] == attention.min()


def test_the_box_is_that_of_the_area() -> None:
    attention = np.zeros((4, 8), np.float32)
    attention[1:3, 2:5] = 1
    (chosen,) = point_prompts.choose(attention, "peak", threshold=0.5)
    assert chosen.box == (2 / 8, 1 / 4, 5 / 8, 3 / 4)
    assert len(chosen.points) == 1


def test_cells_that_meet_at_a_corner_are_one_area() -> None:
    attention = np.zeros((8, 12), np.float32)
    attention[[1, 2, 3, 4], [1, 2, 3, 4]] = (0.8, 0.9, 0.8, 0.8)
    attention[6, 8:11] = 1  # stronger, and larger than each cell of the diagonal
    (chosen,) = point_prompts.choose(attention, "peak", threshold=0.5)
    assert positives(chosen) == [(2.5 / 12, 2.5 / 8)]
    assert chosen.box == (1 / 12, 1 / 8, 5 / 12, 5 / 8)


def test_the_threshold_is_a_share_of_the_maximum() -> None:
    attention = np.maximum(blob(10, 20, 3, 5), 0.45 * blob(10, 20, 8, 17))
    (strong,) = point_prompts.choose(attention, "pair", threshold=0.5)
    (weak,) = point_prompts.choose(np.float32(0.1) * attention, "pair", threshold=0.5)
    (raised,) = point_prompts.choose(np.float32(10) * attention, "pair", threshold=0.5)
    assert weak.points == strong.points == raised.points
    assert weak.box == strong.box == raised.box


def test_a_flat_map_has_no_aim() -> None:
    flat = attention_maps.normalised(np.full((5, 5), 3, np.float32))
    assert point_prompts.choose(flat, "pair", threshold=0.4) == []


def test_two_areas_are_two_aims_the_larger_first() -> None:
    attention = np.maximum(blob(14, 14, 2, 2), 0.7 * blob(14, 14, 11, 11))
    first, second = point_prompts.choose(attention, "pair", threshold=0.3, components=3)
    assert positives(first) == [(2.5 / 14, 2.5 / 14)]
    assert positives(second) == [(11.5 / 14, 11.5 / 14)]
    assert first.peak > second.peak


def test_maxima_are_the_peaks_of_one_area_strongest_first_and_apart() -> None:
    attention = np.maximum(blob(9, 20, 4, 4), 0.9 * blob(9, 20, 4, 10))
    attention[4, 5] = attention[4, 4]  # a plateau beside the peak is no second peak
    (chosen,) = point_prompts.choose(attention, "maxima", threshold=0.05)
    assert positives(chosen) == [(4.5 / 20, 4.5 / 9), (10.5 / 20, 4.5 / 9)]


def test_kmeans_points_lie_in_the_area_and_spread_over_it() -> None:
    attention = np.zeros((6, 24), np.float32)
    attention[2:4, 2:22] = 1
    (chosen,) = point_prompts.choose(attention, "kmeans", threshold=0.5)
    columns = sorted(x * 24 for x, _ in positives(chosen))
    assert len(columns) == point_prompts.MOST
    assert min(np.diff(columns)) > 4
    assert all(2 <= y * 6 <= 4 for _, y in positives(chosen))


def test_kmeans_of_too_small_an_area_says_so_and_takes_the_peak(caplog: pytest.LogCaptureFixture) -> None:
    attention = np.zeros((6, 6), np.float32)
    attention[3, 3] = 1
    with caplog.at_level(logging.INFO):
        (chosen,) = point_prompts.choose(attention, "kmeans", threshold=0.5)
    assert positives(chosen) == [(3.5 / 6, 3.5 / 6)]
    assert "1 cells are too few" in caplog.text


def test_what_a_mask_explains_is_masked_out_and_the_next_object_found() -> None:
    attention = np.maximum(blob(12, 12, 2, 2), 0.8 * blob(12, 12, 9, 9))
    mask = np.zeros((120, 120), bool)
    mask[0:45, 0:45] = True
    (chosen,) = point_prompts.choose(point_prompts.mask_out(attention, mask), "pair", threshold=0.4)
    assert positives(chosen) == [(9.5 / 12, 9.5 / 12)]


def test_consistency_rewards_the_mask_that_covers_the_activation() -> None:
    attention = blob(10, 10, 3, 3)
    right, wrong = np.zeros((2, 100, 100), bool)
    right[10:60, 10:60] = True
    wrong[60:, 60:] = True
    everything = np.ones((100, 100), bool)
    scores = [point_prompts.consistency(attention, m) for m in (right, everything, wrong)]
    assert scores[0] > 0.7 > scores[1] >= scores[2] == 0


@given(maps, st.sampled_from(get_args(Points)), st.integers(1, 3))
def test_points_lie_inside_the_view_and_apart(attention: Map, method: str, components: int) -> None:
    found = point_prompts.choose(
        attention_maps.normalised(attention), method, threshold=0.4, components=components
    )
    assert len(found) <= components
    for chosen in found:
        places = [(x, y) for x, y, _ in chosen.points]
        assert len(set(places)) == len(places)
        assert all(0 < x < 1 and 0 < y < 1 for x, y in places)
        assert 1 <= sum(label for _, _, label in chosen.points) <= point_prompts.MOST
        assert 0 < chosen.peak <= 1
        x0, y0, x1, y1 = chosen.box
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 1
