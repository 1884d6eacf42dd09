import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from torch import Tensor

from model.builtin.scenes import Scene, sprites
from model.segmentation.click_refinement import LARGE, refine_by_clicks
from model.segmentation.embedding import Embedding
from model.segmentation.mask_cleanup import innermost_pixel, unmet_points
from model.segmentation.non_maximum_suppression import iou
from model.segmentation.sam_families.family import Tokens
from model.segmentation.segmenter import Answer, Segmenter
from model.types import Level, Mask, Prompt, PromptError, box_of


@pytest.fixture
def thing(scene: Scene) -> Mask:
    return max((each.visible for each in scene.objects), key=np.count_nonzero)


@pytest.fixture
def embedding(segmenter: Segmenter, scene: Scene) -> Embedding:
    return segmenter.encode(scene.image)


def middle(mask: Mask) -> tuple[float, float]:
    (row, column), _ = innermost_pixel(mask)
    return column + 0.5, row + 0.5


@pytest.mark.parametrize(
    "kind",
    [
        "point",
        "points",
        "negative",
        "box",
        "box and points",
        "logits",
        "geometry",
        "stroke",
        "geometry and box",
    ],
)
def test_every_prompt_that_sam_knows_finds_the_object(
    segmenter: Segmenter, embedding: Embedding, thing: Mask, kind: str
) -> None:
    inside, outside = (*middle(thing), 1), (*middle(~thing), 0)
    box = box_of(thing)
    x, y, _ = inside
    stroke = np.zeros_like(thing)
    stroke[int(y) - 2 : int(y) + 3, int(x) - 12 : int(x) + 13] = True
    answer = refine_by_clicks(segmenter, embedding, Prompt.of(inside))
    prompt = {
        "point": Prompt.of(inside),
        "points": Prompt.of(inside, (x + 5, y, 1)),
        "negative": Prompt.of(inside, outside),
        "box": Prompt.of(box=box),
        "box and points": Prompt.of(inside, outside, box=box),
        "logits": replace(Prompt.of(inside, outside), logits=answer.logits),
        "geometry": Prompt.of(outside, mask=thing),
        "stroke": Prompt.of(mask=stroke & thing),
        "geometry and box": Prompt.of(box=box, mask=thing),
    }[kind]
    found = refine_by_clicks(segmenter, embedding, prompt)
    assert iou(found.mask, thing) > 0.8
    assert 0 < found.predicted_iou <= 1
    assert not unmet_points(found.mask, prompt)


def test_a_level_is_chosen_by_its_size(segmenter: Segmenter, embedding: Embedding, thing: Mask) -> None:
    levels: tuple[Level, ...] = ("whole", "part", "subpart")
    answers = [
        refine_by_clicks(segmenter, embedding, Prompt.of((*middle(thing), 1)), level) for level in levels
    ]
    sizes = [int((answer.logits > 0).sum()) for answer in answers]
    assert sizes == sorted(sizes, reverse=True)
    assert len({answer.predicted_iou for answer in answers}) == 3


def test_the_second_click_starts_from_the_first_answers_logits(
    segmenter: Segmenter, embedding: Embedding, thing: Mask
) -> None:
    first = refine_by_clicks(segmenter, embedding, Prompt.of((*middle(thing), 1)))
    np.testing.assert_array_less(0.97, iou(segmenter.mask(embedding, first.logits), first.mask))
    again = Prompt.of((*middle(thing), 1), (*middle(thing & ~first.mask), 1))
    started, alone, drawn = (
        refine_by_clicks(segmenter, embedding, prompt)
        for prompt in (replace(again, logits=first.logits), again, replace(again, mask=first.mask))
    )
    assert not np.array_equal(started.logits, alone.logits)
    assert not np.array_equal(started.logits, drawn.logits)


class Scripted:
    """A family that answers with given masks (64, 64), whatever is asked: what becomes of them is tested."""

    side = low = 64
    stretched, ends_boxes = True, False
    device = torch.device("cpu")

    def __init__(self, one: Mask, three: tuple[Mask, Mask, Mask] | None = None) -> None:
        self._one, self._three = one, three or (one, one, one)

    def features(self, image: object) -> dict[str, Tensor]:
        return {"image": torch.zeros(1)}

    def decode(
        self, features: Mapping[str, Tensor], prompts: Tokens, *, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        masks = self._three if multimask else (self._one,)
        quality = torch.linspace(0.9, 0.7, len(masks))[None]
        count = len(prompts.points)
        logits = torch.from_numpy(np.stack(masks)).float()[None] * 16 - 8
        return logits.expand(count, -1, -1, -1), quality.expand(count, -1)


def answered(
    prompt: Prompt, one: Mask, three: tuple[Mask, Mask, Mask] | None = None, level: Level = "auto"
) -> Answer:
    segmenter = Segmenter(Scripted(one, three))
    return refine_by_clicks(segmenter, segmenter.encode(np.zeros((64, 64, 3), np.uint8)), prompt, level)


def rectangle(x0: int, y0: int, x1: int, y1: int) -> Mask:
    mask = np.zeros((64, 64), bool)
    mask[y0:y1, x0:x1] = True
    return mask


LEFT, RIGHT = rectangle(4, 20, 28, 44), rectangle(36, 20, 60, 44)
IN_LEFT, IN_RIGHT = (16.5, 32.5), (48.5, 32.5)


def test_among_levels_the_one_that_obeys_most_clicks_comes_before_the_best_scored() -> None:
    prompt = Prompt.of((*IN_LEFT, 1), (*IN_RIGHT, 1))
    assert (answered(prompt, LEFT, (LEFT, LEFT | RIGHT, RIGHT)).mask == (LEFT | RIGHT)).all()


def test_of_levels_that_obey_alike_the_first_answer_stands() -> None:
    prompt = Prompt.of((*IN_LEFT, 1), (29.5, 32.5, 1))  # just beyond the edge
    mask = answered(prompt, LEFT, (RIGHT, LEFT | RIGHT, RIGHT)).mask
    assert mask[32, 29]
    assert iou(mask, LEFT) > 0.98
    far = Prompt.of((*IN_LEFT, 1), (*IN_RIGHT, 1))
    assert iou(answered(far, LEFT, (RIGHT, RIGHT, RIGHT)).mask, LEFT) > 0.95


def test_levels_go_from_the_largest_mask_to_the_smallest() -> None:
    small, prompt = rectangle(10, 28, 20, 38), Prompt.of((*IN_LEFT, 1))
    levels: tuple[tuple[Level, Mask], ...] = (("whole", LEFT | RIGHT), ("part", LEFT), ("subpart", small))
    for level, mask in levels:
        assert (answered(prompt, RIGHT, (LEFT, small, LEFT | RIGHT), level).mask == mask).all()


def test_a_corrected_mask_does_not_jump() -> None:
    """The segmenter answers with the other of two equal objects; the click was on this one's upper end."""
    clicked = Prompt.of((16.5, 17.5, 1), mask=LEFT)
    answer = answered(clicked, RIGHT)
    assert not (answer.mask & RIGHT).any()
    assert (answer.mask & LEFT == LEFT).all()
    assert answer.mask[17, 16]
    assert ((answer.logits > 0) == answer.mask).all()
    spilled = answered(clicked, LEFT | RIGHT | rectangle(4, 12, 28, 20))
    assert (spilled.mask == (LEFT | rectangle(4, 12, 28, 20))).all()


def test_what_clicks_ask_for_is_no_jump() -> None:
    both = answered(Prompt.of((*IN_RIGHT, 1), mask=LEFT), LEFT | RIGHT)
    assert (both.mask == (LEFT | RIGHT)).all()
    moved = answered(Prompt.of((*IN_LEFT, 0), (*IN_RIGHT, 1), mask=LEFT), RIGHT)
    assert (moved.mask == RIGHT).all()


def test_a_negative_click_takes_no_more_than_its_side_of_a_contradiction() -> None:
    """One old positive and one new negative click on an object that the segmenter then gives up."""
    prompt = Prompt.of((10.5, 32.5, 1), (22.5, 32.5, 0), mask=LEFT)
    for answer in (RIGHT, rectangle(4, 40, 28, 44)):
        mask = answered(prompt, answer).mask
        assert iou(mask, LEFT) > 0.95
        assert not unmet_points(mask, prompt)


@pytest.mark.parametrize(("label", "answer"), [(0, np.ones((64, 64), bool)), (1, np.zeros((64, 64), bool))])
def test_a_click_gets_its_way_in_a_cell_around_it(label: int, answer: Mask) -> None:
    """A negative click that the segmenter disobeys takes a disc away, a positive one adds one."""
    segmenter = Segmenter(Scripted(answer))
    embedding = segmenter.encode(np.zeros((640, 640, 3), np.uint8))  # a cell of the logits is 10 pixels
    mask = refine_by_clicks(segmenter, embedding, Prompt.of((320.5, 200.5, label))).mask
    y, x = np.ogrid[:640, :640]
    distance = np.hypot(y - 200, x - 320)
    assert (mask[distance <= 9.5] == bool(label)).all()
    assert (mask[distance > 10.5] != bool(label)).all()


def test_f22_a_mask_is_never_lost_to_a_click() -> None:
    mask = answered(Prompt.of((*IN_LEFT, 0), mask=LEFT), np.zeros((64, 64), bool)).mask
    assert iou(mask, LEFT) > 0.95
    assert not mask[32, 16]


def test_the_start_may_be_logits_alone() -> None:
    prompt = replace(Prompt.of((16.5, 17.5, 1)), logits=np.where(LEFT, 8, -8).astype(np.float32))
    assert not (answered(prompt, RIGHT).mask & RIGHT).any()


class Seeing(Scripted):
    """Answers a lone positive point with what is there, and any other prompt with `corrected`."""

    def __init__(self, things: Sequence[Mask], corrected: Mask) -> None:
        super().__init__(corrected)
        self._things, self._corrected = things, corrected
        self.asked: list[
            list[tuple[int, int, int]]
        ] = []  # x, y, label of the prompts that are no lone points

    def decode(
        self, features: Mapping[str, Tensor], prompts: Tokens, *, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        masks = []
        for points, labels in zip(prompts.points.tolist(), prompts.labels.tolist(), strict=True):
            clicks = [(int(x), int(y), n) for (x, y), n in zip(points, labels, strict=True) if n in (0, 1)]
            mask = self._corrected
            if prompts.masks is None and len(clicks) == 1:
                x, y, _ = clicks[0]
                mask = next((thing for thing in self._things if thing[y, x]), np.zeros((64, 64), bool))
            else:
                self.asked.append(clicks)
            masks.append(np.stack([mask] * (3 if multimask else 1)))
        found = torch.from_numpy(np.stack(masks))
        return found.float() * 16 - 8, torch.full(found.shape[:2], 0.9)


def seen(prompt: Prompt, things: Sequence[Mask], corrected: Mask) -> tuple[Answer, Seeing]:
    family = Seeing(things, corrected)
    segmenter = Segmenter(family)
    return refine_by_clicks(segmenter, segmenter.encode(np.zeros((64, 64, 3), np.uint8)), prompt), family


def test_a_negative_click_takes_the_object_under_it_and_not_a_speck() -> None:
    """The segmenter gives both objects again, whatever the click says."""
    answer, _ = seen(Prompt.of((*IN_RIGHT, 0), mask=LEFT | RIGHT), [LEFT, RIGHT], LEFT | RIGHT)
    assert (answer.mask == LEFT).all()
    assert ((answer.logits > 0) == LEFT).all()


def test_what_is_mostly_outside_of_the_region_is_not_what_a_negative_click_takes() -> None:
    background = rectangle(30, 0, 64, 64)
    answer, _ = seen(Prompt.of((*IN_RIGHT, 0), mask=LEFT | RIGHT), [LEFT, background], LEFT | RIGHT)
    assert iou(answer.mask, LEFT | RIGHT) > 0.98
    assert not answer.mask[32, 48]


def test_a_negative_click_on_the_object_itself_leaves_it() -> None:
    answer, _ = seen(Prompt.of((*IN_LEFT, 0), mask=LEFT), [LEFT], LEFT)
    assert iou(answer.mask, LEFT) > 0.95


def test_a_negative_click_on_a_spill_does_not_take_the_object() -> None:
    """Alone, the click shows the object and the spill; a little of the mask would be left elsewhere."""
    crumb, spill = rectangle(40, 20, 48, 44), rectangle(28, 20, 32, 44)
    mask = LEFT | spill | crumb
    answer, _ = seen(Prompt.of((30.5, 32.5, 0), mask=mask), [LEFT | spill], mask)
    assert iou(answer.mask, mask) > 0.95
    assert not answer.mask[32, 30]


def test_a_persons_positive_click_keeps_what_a_negative_one_points_at() -> None:
    prompt = Prompt.of((40.5, 24.5, 1), (*IN_RIGHT, 0), mask=LEFT | RIGHT)
    answer, _ = seen(prompt, [LEFT, RIGHT], LEFT | RIGHT)
    assert iou(answer.mask, LEFT | RIGHT) > 0.98
    assert not unmet_points(answer.mask, prompt)


def test_a_click_overrules_the_models_own_points() -> None:
    """The model found both objects, with a point in each."""
    found = replace(
        Prompt.of((16.5, 24.5, 1), (40.5, 24.5, 1), (*IN_RIGHT, 0), mask=LEFT | RIGHT), model_points=2
    )
    answer, family = seen(found, [LEFT, RIGHT], LEFT)
    assert (answer.mask == LEFT).all()
    assert answer.prompt.points.tolist() == [[16.5, 24.5], list(IN_RIGHT)]
    assert answer.prompt.model_points == 1
    assert family.asked == [[(16, 24, 1), (48, 32, 0)]]


def test_a_click_of_one_kind_alone_is_told_what_stays() -> None:
    _, negative = seen(Prompt.of((*IN_RIGHT, 0), mask=LEFT | RIGHT), [LEFT, RIGHT], LEFT)
    ((anchor, click),) = negative.asked
    assert LEFT[anchor[1], anchor[0]]
    assert (anchor[2], click) == (1, (48, 32, 0))
    _, positive = seen(Prompt.of((*IN_RIGHT, 1), mask=LEFT), [LEFT, RIGHT], LEFT | RIGHT)
    assert [label for *_, label in positive.asked[0]] == [1, 1]


def test_a_positive_click_joins_a_missed_part_and_no_neighbour() -> None:
    """The segmenter swallows a neighbour; the click alone shows the whole object."""
    kept, missed, neighbour = rectangle(4, 20, 20, 44), rectangle(20, 20, 34, 44), rectangle(34, 20, 60, 44)
    prompt = Prompt.of((27.5, 32.5, 1), mask=kept)
    answer, _ = seen(prompt, [kept | missed], kept | missed | neighbour)
    assert (answer.mask == kept | missed).all()


def test_what_no_click_asks_for_stays_where_one_changes_a_part() -> None:
    holed = LEFT & ~rectangle(6, 22, 10, 26)  # a person's own edit
    answer, _ = seen(Prompt.of((*IN_RIGHT, 0), mask=holed | RIGHT), [LEFT, RIGHT], LEFT)
    assert (answer.mask == holed).all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.dictionaries(
        st.tuples(st.integers(0, 63), st.integers(0, 63)), st.integers(0, 1), min_size=1, max_size=5
    ),
)
def test_whatever_the_segmenter_answers_clicks_hold_and_large_changes_were_asked_for(
    seed: int, clicks: dict[tuple[int, int], int]
) -> None:
    rng = np.random.default_rng(seed)
    before, new = (
        np.any([rectangle(*rng.integers(0, 40, 2), *rng.integers(24, 64, 2)) for _ in range(2)], 0)
        for _ in range(2)
    )
    prompt = Prompt.of(*((x + 0.5, y + 0.5, label) for (x, y), label in clicks.items()), mask=before)
    mask = answered(prompt, new).mask
    assert not unmet_points(mask, prompt)
    if before.any():
        discs = 5 * len(clicks)  # of one pixel's radius
        asked = {bool(label) for (x, y), label in clicks.items() if before[y, x] != bool(label)}
        for kind, changed in ((True, mask & ~before), (False, before & ~mask)):
            if kind not in asked:
                # Pieces below the limit may be many; these are two rectangles' at most, four pieces each.
                assert changed.sum() <= 8 * LARGE * before.sum() + discs + 0.02 * mask.sum()


@pytest.fixture(scope="module")
def twins(segmenter: Segmenter) -> tuple[Embedding, Mask, Mask]:
    """Two equal objects side by side."""
    picture = PILImage.new("RGBA", (360, 200), (180, 200, 170, 255))
    sprite = PILImage.fromarray(sprites()["apple"]).resize((130, 130))
    masks = []
    for x in (30, 190):
        picture.alpha_composite(sprite, (x, 35))
        layer = PILImage.new("L", picture.size)
        layer.paste(sprite.getchannel("A"), (x, 35))
        masks.append(np.asarray(layer) > 127)
    return segmenter.encode(np.array(picture.convert("RGB"))), masks[0], masks[1]


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=3), st.booleans())
def test_clicks_around_one_of_two_equal_objects_keep_to_it(
    segmenter: Segmenter,
    twins: tuple[Embedding, Mask, Mask],
    spots: list[tuple[float, float]],
    from_logits: bool,
) -> None:
    """Clicks anywhere on the left half: inside the object positive, outside negative."""
    embedding, one, other = twins
    first = refine_by_clicks(segmenter, embedding, Prompt.of((*middle(one), 1)))
    assert iou(first.mask, one) > 0.9
    clicks = [(x * 170, y * 199) for x, y in spots]
    labelled = [(x, y, int(one[int(y), int(x)])) for x, y in clicks]
    start = Prompt.of((*middle(one), 1), *labelled, mask=None if from_logits else first.mask)
    answer = refine_by_clicks(
        segmenter, embedding, replace(start, logits=first.logits if from_logits else None)
    )
    assert (answer.mask & other).sum() <= LARGE * other.sum()
    assert (answer.mask & one).sum() > 0.7 * one.sum()


def test_clicks_on_one_pixel_that_contradict_each_other_are_reported(
    segmenter: Segmenter, embedding: Embedding, thing: Mask, caplog: pytest.LogCaptureFixture
) -> None:
    x, y = middle(thing)
    prompt = Prompt.of((x, y, 1), (x, y, 0), (x + 9, y, 1))
    with caplog.at_level(logging.WARNING):
        mask = refine_by_clicks(segmenter, embedding, prompt).mask
    assert unmet_points(mask, prompt) == (0,)  # the newest counts
    assert "Ignored: (0,)" in caplog.text


def test_a_prompt_of_nothing_or_of_another_image_is_refused(
    segmenter: Segmenter, embedding: Embedding
) -> None:
    for prompt in (Prompt(), Prompt.of(mask=np.zeros(embedding.size, bool))):
        with pytest.raises(PromptError, match="at least one point"):
            refine_by_clicks(segmenter, embedding, prompt)
    other = np.ones((5, 5), bool)
    for prompt in (
        Prompt.of(mask=other),
        replace(Prompt.of((1, 1, 1), mask=other), logits=np.zeros((128, 128), np.float32)),
    ):
        with pytest.raises(PromptError, match="mask is"):
            refine_by_clicks(segmenter, embedding, prompt)
