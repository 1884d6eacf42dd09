from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from model.segmentation.non_maximum_suppression import iou, suppress
from model.types import Box, Detection, Evidence, Mask, Prompt

WHOLE: Box = (0, 0, 20, 20)
LEFT_TOP: Box = (0, 0, 10, 10)
RIGHT_TOP: Box = (10, 0, 20, 10)


def rectangle(x0: int, y0: int, x1: int, y1: int) -> Mask:
    mask = np.zeros((20, 20), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def square(start: int, stop: int) -> Mask:
    return rectangle(start, start, stop, stop)


def found(term: str, mask: Mask, score: float, view: Box = WHOLE) -> Detection:
    return Detection(term, mask, score, Evidence("", view, Prompt(), {}, "test"))


def test_iou_of_empty_masks_is_zero() -> None:
    assert iou(square(0, 0), square(0, 0)) == 0
    assert iou(square(0, 10), square(0, 10)) == 1


def test_of_duplicates_the_better_one_stays() -> None:
    detections = [
        found("dog", square(0, 10), 0.7),
        found("dog", square(0, 9), 0.9),
        found("dog", square(10, 20), 0.5),
    ]
    kept = suppress(detections, same_term=0.5, other_term=0.9)
    assert [d.score for d in kept] == [0.9, 0.5]


def test_two_terms_may_overlap_more_than_one() -> None:
    detections = [found("dog", square(0, 10), 0.7), found("pet", square(0, 9), 0.9)]
    assert len(suppress(detections, same_term=0.5, other_term=0.9)) == 2
    assert len(suppress(detections, same_term=0.5, other_term=0.7)) == 1


def test_of_equals_the_earlier_stays() -> None:
    first, second = found("dog", square(0, 10), 0.5), found("dog", square(0, 10), 0.5)
    assert suppress([first, second], same_term=0.5, other_term=0.8) == [first]
    assert suppress([second, first], same_term=0.5, other_term=0.8) == [second]


# A bus across the upper half; the view of the left upper corner shows 8 of its 16 columns.
BUS = rectangle(2, 3, 18, 8)
FRONT = rectangle(2, 3, 10, 8)


def test_a_fragment_goes_for_the_whole_even_if_its_score_is_better() -> None:
    bus, front = found("bus", BUS, 0.4), found("bus", FRONT, 0.9, LEFT_TOP)
    assert suppress([bus, front], same_term=0.5, other_term=0.8) == [bus]


@pytest.mark.parametrize(
    ("what", "other"),
    [
        ("another term may be another thing", found("wheel", FRONT, 0.9, LEFT_TOP)),
        ("not cut: a thing on its own, such as a toy", found("bus", rectangle(3, 3, 8, 8), 0.9, LEFT_TOP)),
        ("half of it lies elsewhere", found("bus", rectangle(4, 6, 10, 10), 0.9, LEFT_TOP)),
        ("the same view saw both", found("bus", FRONT, 0.9)),
    ],
)
def test_what_is_no_fragment_stays(what: str, other: Detection) -> None:
    kept = suppress([found("bus", BUS, 0.4), other], same_term=0.8, other_term=0.8)
    assert len(kept) == 2, what


def test_at_the_border_of_the_image_nothing_is_cut() -> None:
    """A mask that ends at the image's border ends there in every view."""
    at_border = found("bus", rectangle(0, 3, 7, 8), 0.9, LEFT_TOP)
    bus = found("bus", rectangle(0, 3, 18, 8), 0.4)
    assert len(suppress([bus, at_border], same_term=0.5, other_term=0.8)) == 2


def test_halves_that_only_corners_found_stay_two() -> None:
    halves = [found("bus", FRONT, 0.9, LEFT_TOP), found("bus", rectangle(10, 3, 18, 8), 0.8, RIGHT_TOP)]
    assert suppress(halves, same_term=0.5, other_term=0.8) == halves


masks = arrays(np.bool_, (8, 9))
VIEWS: list[Box] = [(0, 0, 9, 8), (0, 0, 5, 4), (4, 4, 9, 8)]


def several(views: list[Box]) -> st.SearchStrategy[list[Detection]]:
    terms, scores = st.sampled_from(["dog", "cat"]), st.sampled_from([0.1, 0.5, 0.9])
    return st.lists(st.builds(found, terms, masks, scores, st.sampled_from(views)), max_size=8)


@given(masks, masks)
def test_iou_is_that_of_whole_masks(one: Mask, other: Mask) -> None:
    union = (one | other).sum()
    assert iou(one, other) == (pytest.approx((one & other).sum() / union) if union else 0)


@given(several(VIEWS[:1]), st.sampled_from([0.2, 0.5]), st.sampled_from([0.5, 0.8]))
def test_what_stays_is_what_comparing_whole_masks_leaves(
    given_: list[Detection], same_term: float, other_term: float
) -> None:
    literal: list[Detection] = []
    for new in sorted(given_, key=lambda d: -d.score):
        limits = [same_term if new.term == old.term else other_term for old in literal]
        if all(iou(new.mask, old.mask) <= limit for old, limit in zip(literal, limits, strict=True)):
            literal.append(new)
    kept = suppress(given_, same_term=same_term, other_term=other_term)
    assert kept == literal
    assert suppress(kept, same_term=same_term, other_term=other_term) == kept


@given(several(VIEWS), st.randoms())
def test_the_order_of_views_and_questions_does_not_matter(given_: list[Detection], random: Random) -> None:
    """As long as no two scores are the same."""
    distinct = [replace(d, score=d.score + i / 1000) for i, d in enumerate(given_)]
    shuffled = list(distinct)
    random.shuffle(shuffled)
    kept = suppress(distinct, same_term=0.5, other_term=0.8)
    assert suppress(shuffled, same_term=0.5, other_term=0.8) == kept
