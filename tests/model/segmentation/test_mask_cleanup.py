import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model.segmentation.mask_cleanup import SPECK, innermost_pixel, unmet_points, without_specks_and_holes
from model.types import Mask, Prompt


def disc(*, holes: bool = False) -> Mask:
    """100 x 100 pixels, about 5000 of them the mask's: so specks and holes have less than 50."""
    y, x = np.ogrid[:100, :100]
    mask: Mask = np.asarray((y - 50) ** 2 + (x - 50) ** 2 <= 40**2)
    if holes:
        mask[45:50, 45:50] = False
    return mask


def test_holes_and_specks_below_a_hundredth_go() -> None:
    mask = disc(holes=True)
    mask[2:5, 2:5] = True
    assert (without_specks_and_holes(mask, Prompt()) == disc()).all()


def test_larger_ones_stay_as_an_object_may_be_hidden_in_part() -> None:
    mask = disc()
    mask[40:50, 40:50] = False  # seen through
    mask[:10, :10] = True  # beyond what hides it
    assert without_specks_and_holes(mask, Prompt()) is mask


def test_what_holds_a_click_stays() -> None:
    mask = disc(holes=True)
    mask[2:5, 2:5] = True
    assert without_specks_and_holes(mask, Prompt.of((3.5, 3.5, 1), (47.5, 47.5, 0))) is mask


def test_a_gap_that_opens_to_the_outside_is_no_hole() -> None:
    mask = np.ones((60, 60), bool)
    mask[0:2, 0:3] = False
    assert without_specks_and_holes(mask, Prompt()) is mask


def test_of_dust_the_largest_grain_stays() -> None:
    mask = np.zeros((90, 90), bool)
    mask[::4, ::4] = True
    mask[41, 40] = True
    assert without_specks_and_holes(mask, Prompt()).sum() == 2


def test_an_empty_mask_stays_empty() -> None:
    assert not without_specks_and_holes(np.zeros((9, 9), bool), Prompt.of((3, 3, 1))).any()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(0.001, 0.9),
    st.lists(st.tuples(st.integers(0, 49), st.integers(0, 39), st.integers(0, 1)), max_size=4),
)
def test_tidying_changes_little_pieces_and_no_clicked_pixel(
    seed: int, share: float, clicks: list[tuple[int, int, int]]
) -> None:
    mask = np.random.default_rng(seed).random((40, 50)) < share
    prompt = Prompt.of(*((x + 0.5, y + 0.5, label) for x, y, label in clicks))
    before = mask.copy()
    result = without_specks_and_holes(mask, prompt)
    assert (mask == before).all()
    assert result.any() == mask.any()
    assert unmet_points(result, prompt) == unmet_points(mask, prompt)
    if mask.sum() < 1 / SPECK:
        assert result is mask


def test_the_inmost_pixel_is_far_from_every_edge() -> None:
    area = np.zeros((30, 40), bool)
    area[5:16, 20:40] = True
    (row, column), depth = innermost_pixel(area)
    assert area[row, column]
    assert (row, depth) == (10, 6)
    assert innermost_pixel(np.ones((3, 3), bool))[0] == (1, 1)


def test_unmet_points_go_by_number() -> None:
    mask = np.zeros((10, 10), bool)
    mask[:, 5:] = True
    assert unmet_points(mask, Prompt.of((2, 2, 1), (7, 2, 1), (7, 7, 0), (10, 10, 1))) == (0, 2)
