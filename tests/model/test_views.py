import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from model.types import Box, Detection, Evidence, Mask, Prompt
from model.views import corner_views, crop, to_image

sides = st.integers(1, 40)


def test_the_whole_image_and_its_corners() -> None:
    assert corner_views(8, 6) == ((0, 0, 8, 6), (0, 0, 4, 3), (4, 0, 8, 3), (0, 3, 4, 6), (4, 3, 8, 6))


def test_corners_of_odd_sizes_overlap_by_one_pixel() -> None:
    assert corner_views(5, 4)[1:3] == ((0, 0, 3, 2), (2, 0, 5, 2))


def test_an_image_of_one_pixel_has_one_view() -> None:
    assert corner_views(1, 1) == ((0, 0, 1, 1),)


@given(sides, sides)
def test_the_corners_cover_the_image(width: int, height: int) -> None:
    seen = np.zeros((height, width, 3), np.uint8)
    for view in corner_views(width, height)[1:]:
        crop(seen, view)[:] = 1
    assert seen.all() or (width, height) == (1, 1)


def detection(mask: Mask, prompt: Prompt) -> Detection:
    height, width = mask.shape
    view: Box = (0.0, 0.0, float(width), float(height))
    return Detection("dog", mask, 0.5, Evidence("What is it?", view, prompt, {"attention": 0.5}, "test"))


@given(sides, sides, st.integers(0, 4), st.data())
def test_a_mask_found_in_a_view_lands_on_the_pixels_it_was_seen_on(
    width: int, height: int, number: int, data: st.DataObject
) -> None:
    original = data.draw(arrays(np.bool_, (height, width)))
    views = corner_views(width, height)
    view = views[number % len(views)]
    seen = crop(np.repeat(original[:, :, None], 3, axis=2).astype(np.uint8), view)[:, :, 0] > 0
    moved = to_image(detection(seen, Prompt.of((0, 0, 1), mask=seen)), view, (height, width))
    inside = np.zeros((height, width), bool)
    inside[int(view[1]) : int(view[3]), int(view[0]) : int(view[2])] = True
    np.testing.assert_array_equal(moved.mask, original & inside)
    np.testing.assert_array_equal(moved.evidence.prompt.mask, original & inside)


def test_a_prompt_moves_with_the_views_corner() -> None:
    logits = np.zeros((4, 4), np.float32)
    prompt = Prompt(
        points=np.array([[1.5, 2.5], [0, 0]], np.float32),
        labels=np.array([1, 0]),
        box=(1, 1, 3, 2),
        logits=logits,
    )
    view: Box = (4.0, 3.0, 8.0, 6.0)
    moved = to_image(detection(np.ones((3, 4), bool), prompt), view, (6, 8))
    assert moved.evidence.prompt.points.tolist() == [[5.5, 5.5], [4, 3]]
    assert moved.evidence.prompt.labels.tolist() == [1, 0]
    assert moved.evidence.prompt.box == (5, 4, 7, 5)
    assert moved.evidence.prompt.logits is None
    assert moved.evidence.view == view
    assert moved.box == view
    assert (moved.term, moved.score, moved.evidence.question) == ("dog", 0.5, "What is it?")


def test_the_whole_image_is_its_own_view() -> None:
    whole = corner_views(9, 7)[0]
    before = detection(np.eye(7, 9, dtype=bool), Prompt.of((3, 2, 1)))
    after = to_image(before, whole, (7, 9))
    np.testing.assert_array_equal(after.mask, before.mask)
    assert after.evidence.prompt.points.tolist() == [[3, 2]]
    assert after.evidence.view == before.evidence.view


def test_a_mask_of_another_size_than_its_view_is_an_error() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        to_image(detection(np.ones((2, 2), bool), Prompt.of((0, 0, 1))), (4, 3, 8, 6), (6, 8))
