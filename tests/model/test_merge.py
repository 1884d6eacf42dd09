import numpy as np

from model.merge import iou, suppress
from model.types import Detection, Evidence, Mask, Prompt

EVIDENCE = Evidence("", (0, 0, 20, 20), Prompt(), {}, "test")


def square(start: int, stop: int) -> Mask:
    mask = np.zeros((20, 20), bool)
    mask[start:stop, start:stop] = True
    return mask


def test_iou_of_empty_masks_is_zero() -> None:
    assert iou(square(0, 0), square(0, 0)) == 0
    assert iou(square(0, 10), square(0, 10)) == 1


def test_of_duplicates_the_better_one_stays() -> None:
    found = [
        Detection("dog", square(0, 10), 0.7, EVIDENCE),
        Detection("dog", square(0, 9), 0.9, EVIDENCE),
        Detection("dog", square(10, 20), 0.5, EVIDENCE),
    ]
    kept = suppress(found, same_term=0.5, other_term=0.9)
    assert [d.score for d in kept] == [0.9, 0.5]


def test_two_terms_may_overlap_more_than_one() -> None:
    found = [Detection("dog", square(0, 10), 0.7, EVIDENCE), Detection("pet", square(0, 9), 0.9, EVIDENCE)]
    assert len(suppress(found, same_term=0.5, other_term=0.9)) == 2
    assert len(suppress(found, same_term=0.5, other_term=0.7)) == 1
