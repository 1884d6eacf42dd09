import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.answers import click_target
from backend.answers.click_target import Correction, Unanswerable
from backend.labelstudio import click_gestures, region_meta, region_reading, results
from backend.labelstudio.labeling_config import LabelConfig, parse
from backend.labelstudio.region_reading import UNITS, OutOfTime, ReadingBudget, TooMuch
from backend.labelstudio.request import Interaction
from backend.labelstudio.tasks import Task
from model.deadline import Deadline
from model.types import Mask, Prompt
from tests.support import saved_annotations
from tests.support.detections import detection, disc
from tests.support.editor_gestures import box, click
from tests.support.labeling_configs import CONFIG
from tests.support.paths import CAPTURES

SHAPE = (60, 80)
SPLIT = """
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="Cat"/></BrushLabels>
  <PolygonLabels name="poly" toName="image"><Label value="Cat"/><Label value="Dog"/></PolygonLabels>
  <RectangleLabels name="rect" toName="image"><Label value="Cat"/></RectangleLabels>
</View>
"""


def region(
    mask: Mask, region_id: str, *, control: str = "brush", label: str = "Cat", prompt: Prompt | None = None
) -> dict[str, Any]:
    """Return a predicted region, with its evidence."""
    (made,) = saved_annotations.region(mask, control, label, number=region_id, config=SPLIT)
    return {**made, "meta": region_meta.write(detection("tabby", mask, prompt), made)}


def mask_of_box(x0: int, y0: int, x1: int, y1: int) -> Mask:
    mask = np.zeros(SHAPE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def interaction(context: Any, task: Any, config: LabelConfig) -> Interaction:
    return Interaction.parse(Task.parse(task), context, config)


def read(context: Any, task: Any, config: LabelConfig, shape: tuple[int, int], **more: Any) -> Correction:
    return click_target.read(interaction(context, task, config), shape, **more)


def bare_prompt(context: Any, config: LabelConfig, shape: tuple[int, int]) -> Prompt | None:
    return click_target.bare(interaction(context, {}, config), shape)


def ask(*items: Any, **task: Any) -> Correction:
    return read({"result": list(items)}, {"id": 1, **task}, parse(SPLIT), SHAPE)


def drafts(*regions: Any, at: str = "2026-01-01T00:00:00Z") -> dict[str, Any]:
    return {"result": list(regions), "updated_at": at}


# New regions


def test_a_click_beside_everything_makes_a_new_region() -> None:
    asked = ask(click(10, 20), predictions=[drafts(region(disc(60, 30, 9), "a"))])
    assert asked.target is None
    assert (asked.labels, asked.control.name) == (("Cat",), "brush")
    assert asked.prompt.points.tolist() == [[10, 20]]
    assert asked.prompt.labels.tolist() == [1]
    assert asked.prompt.mask is None


def test_the_answer_goes_to_the_first_control_that_knows_the_label() -> None:
    assert ask(click(10, 20, label="Dog")).control.name == "poly"


def test_all_clicks_count_in_the_order_they_were_made() -> None:
    asked = ask(click(10, 20, id="a"), click(30, 20, id="b"), click(20, 50, positive=False, id="c"))
    assert asked.prompt.points.round(3).tolist() == [[10, 20], [30, 20], [20, 50]]
    assert asked.prompt.labels.tolist() == [1, 1, 0]


def test_the_same_click_twice_counts_once_and_the_last_word_counts() -> None:
    asked = ask(click(10, 20, id="a"), click(30, 20), click(10, 20, positive=False, id="b"))
    assert asked.prompt.points.round(3).tolist() == [[30, 20], [10, 20]]
    assert asked.prompt.labels.tolist() == [1, 0]


def test_a_prompt_that_was_moved_counts_where_it_is_now() -> None:
    asked = ask(click(10, 20, id="a"), click(30, 20, id="b"), click(12, 25, id="a"))
    assert asked.prompt.points.round(3).tolist() == [[30, 20], [12, 25]]


def test_polarity_may_be_in_the_value() -> None:
    item = click(10, 20)
    del item["is_positive"]
    item["value"]["positive"] = False
    asked = ask(item, predictions=[drafts(region(disc(10, 20, 9), "a"))])
    assert asked.prompt.labels.tolist()[-1] == 0


@pytest.mark.parametrize(
    "drawn", [box(10, 20, 40, 35), box(40, 35, 10, 20), box(40, 20, 10, 35), box(10, 35, 40, 20)]
)
def test_a_rectangle_may_be_drawn_from_any_corner(drawn: dict[str, Any]) -> None:
    assert ask(drawn).prompt.box == pytest.approx((10, 20, 40, 35))


def test_a_rectangle_is_cut_to_the_image_and_the_last_one_counts() -> None:
    assert ask(box(1, 1, 6, 6), box(70, 50, 100, 80)).prompt.box == pytest.approx((70, 50, 80, 60))


def test_a_turned_rectangle_is_its_upright_box() -> None:
    drawn = box(40, 20, 50, 40)
    drawn["value"]["rotation"] = 90
    assert ask(drawn).prompt.box == pytest.approx((20, 20, 40, 30))


def test_a_rectangle_makes_a_new_region_even_over_an_old_one_of_another_shape() -> None:
    asked = ask(box(10, 20, 40, 35), predictions=[drafts(region(disc(25, 27, 4), "a"))])
    assert click_target.settle(asked, mask_of_box(10, 20, 40, 35)).target is None


def test_a_rectangle_around_a_region_of_ours_corrects_it() -> None:
    mask = mask_of_box(10, 20, 40, 35)
    asked = ask(box(9, 20, 40, 35), predictions=[drafts(region(mask, "a"))])
    assert asked.target is None
    assert asked.prompt.box == pytest.approx((9, 20, 40, 35))
    settled = click_target.settle(asked, mask_of_box(9, 20, 40, 35))
    assert settled.region_id == "a"
    assert settled.prompt.box == pytest.approx((9, 20, 40, 35))
    assert settled.prompt.mask is not None


def test_a_click_on_the_far_edge_is_inside_the_image() -> None:
    x, y = ask(click(80, 60)).prompt.points[0]
    assert 79 < x < 80
    assert 59 < y < 60


# Corrections


def test_a_click_inside_a_region_of_its_label_corrects_it() -> None:
    old = Prompt(np.array([[20, 30], [50, 5]], np.float32), np.array([1, 0]), box=(8.0, 18.0, 32.0, 42.0))
    mask = disc(20, 30, 12)
    asked = ask(click(25, 32), predictions=[drafts(region(mask, "old-region#1", prompt=old))])
    assert asked.target is not None
    assert (asked.target.region_id, asked.control.name, asked.term) == ("old-region", "brush", "tabby")
    assert asked.prompt.points.round(2).tolist() == [[20, 30], [50, 5], [25, 32]]
    assert asked.prompt.labels.tolist() == [1, 0, 1]
    assert asked.prompt.box == pytest.approx((8, 18, 32, 42), abs=0.01)
    assert asked.prompt.mask is not None
    assert (asked.prompt.mask == mask).all()


def test_only_regions_of_the_clicked_label_are_corrected() -> None:
    dog = region(disc(20, 30, 12), "a", control="poly", label="Dog")
    assert ask(click(20, 30), predictions=[drafts(dog)]).target is None
    asked = ask(click(20, 30, label="Dog"), predictions=[drafts(dog)])
    assert asked.target is not None
    assert asked.control.name == "poly"


def test_drafts_go_before_annotations_before_predictions_and_the_newest_first() -> None:
    def here(region_id: str) -> dict[str, Any]:
        return region(disc(20, 30, 12), region_id)

    task = {
        "drafts": [
            drafts(here("new"), at="2026-03-03T00:00:00Z"),
            drafts(here("old"), at="2026-03-01T00:00:00Z"),
        ],
        "annotations": [drafts(here("saved"))],
        "predictions": [drafts(here("predicted"))],
    }
    for source, found in (("drafts", "new"), ("annotations", "saved"), ("predictions", "predicted")):
        target = ask(click(20, 30), **task).target
        assert target is not None
        assert target.region_id == found
        del task[source]


def test_of_several_drafts_only_the_newest_is_what_the_person_sees() -> None:
    task = {
        "drafts": [
            drafts(region(disc(60, 30, 9), "new"), at="2026-03-03T00:00:00Z"),
            drafts(region(disc(20, 30, 12), "old"), at="2026-03-01T00:00:00Z"),
        ]
    }
    assert ask(click(20, 30), **task).target is None


def saved(annotation_id: int, region_id: str) -> dict[str, Any]:
    return {"id": annotation_id, **drafts(region(disc(20, 30, 12), region_id))}


def test_of_several_annotations_only_the_one_that_the_draft_names_may_be_the_persons_own() -> None:
    both = [saved(1, "mine"), saved(2, "theirs")]
    assert ask(click(20, 30), annotations=both).target is None
    assert ask(click(20, 30), annotations=both, drafts=[drafts()]).target is None
    asked = ask(click(20, 30), annotations=both, drafts=[{**drafts(), "annotation": 1}])
    assert asked.region_id == "mine"
    assert ask(click(20, 30), annotations=both[:1]).region_id == "mine"
    assert ask(click(20, 30), annotations=both[:1], drafts=[{**drafts(), "annotation": 2}]).target is None


def test_a_region_that_was_deleted_in_the_draft_does_not_come_back() -> None:
    """A draft holds all regions on the screen, so those of older lists were deleted."""
    left, right = region(disc(20, 30, 12), "left"), region(disc(60, 30, 9), "right")
    task = {"drafts": [drafts(left)], "predictions": [drafts(left, right)]}
    assert ask(click(60, 30), **task).target is None
    assert ask(click(60, 30), predictions=task["predictions"]).region_id == "right"


def test_a_draft_that_shares_nothing_with_the_prediction_does_not_hide_it() -> None:
    """It may be one of prompts alone, or the person may have deleted the only region: nothing tells."""
    task = {
        "drafts": [drafts(click(60, 30, id="p"))],
        "predictions": [drafts(region(disc(20, 30, 12), "only"))],
    }
    assert ask(click(60, 30, id="p"), click(20, 30, id="q"), **task).region_id == "only"


def test_a_cancelled_annotation_does_not_count() -> None:
    skipped = {**drafts(region(disc(20, 30, 12), "a")), "was_cancelled": True}
    assert ask(click(20, 30), annotations=[skipped]).target is None


def test_the_topmost_region_is_corrected() -> None:
    asked = ask(
        click(20, 30),
        drafts=[drafts(region(disc(20, 30, 12), "below"), region(disc(22, 30, 12), "above"))],
    )
    assert asked.target is not None
    assert asked.target.region_id == "above"


def test_of_one_object_in_several_controls_the_first_control_is_corrected() -> None:
    mask = disc(20, 30, 12)
    all_of_them = [region(mask, name, control=name) for name in ("rect", "brush", "poly")]
    asked = ask(click(20, 30), predictions=[drafts(*all_of_them)])
    assert asked.control.name == "brush"


def test_rectangles_come_last_wherever_they_stand_in_the_config() -> None:
    """A rectangle also holds pixels of other objects: here of the other cat."""
    head, brush, poly, rect, end = SPLIT.strip().splitlines()[1:6]
    config = parse(f"<View>{head}{rect}{brush}{poly}{end}")
    assert [control.name for control in config.outputs] == ["rect", "brush", "poly"]
    large, small = mask_of_box(5, 5, 70, 55), disc(20, 20, 6)
    on_top = drafts(region(small, "brushed"), region(large, "boxed", control="rect"))

    def clicked(x: float, y: float) -> str | None:
        context = {"result": [click(x, y)]}
        return read(context, {"annotations": [on_top]}, config, SHAPE).region_id

    assert clicked(20, 20) == "brushed"
    assert clicked(60, 50) == "boxed"


def test_a_rectangle_is_corrected_by_its_box_not_by_its_pixels() -> None:
    """The mask behind it is decoded first, from what it was found with."""
    predictions = [drafts(region(disc(20, 30, 12), "a", control="rect"))]
    asked = ask(click(20, 30), predictions=predictions)
    assert asked.control.name == "rect"
    assert asked.prompt.mask is None
    assert asked.prompt.box == pytest.approx((8, 18, 32, 42))
    assert asked.boxed is not None
    assert asked.boxed.box == asked.prompt.box
    assert len(asked.boxed.points) == len(asked.prompt.points) - 1
    # A person's rectangle is the new box.
    drawn = {"x": 10, "y": 10, "width": 20, "height": 30, "rectanglelabels": ["Cat"]}
    around = ask({"type": "rectanglelabels", "value": drawn}, predictions=predictions)
    settled = click_target.settle(around, mask_of_box(8, 18, 32, 42))
    assert settled.region_id == "a"
    assert settled.boxed is None


def test_where_a_region_was_before_it_was_moved_does_not_count() -> None:
    asked = ask(
        click(20, 30),
        drafts=[drafts(region(disc(60, 30, 9), "a"))],
        predictions=[drafts(region(disc(20, 30, 12), "a"))],
    )
    assert asked.target is None


@pytest.mark.parametrize("on_top", [True, False])
def test_the_topmost_region_below_any_click_takes_all_clicks(on_top: bool) -> None:
    two = [region(disc(20, 30, 12), "a"), region(disc(60, 30, 9), "b")]
    asked = ask(
        click(60, 30, positive=on_top), click(20, 30, positive=not on_top), predictions=[drafts(*two)]
    )
    assert asked.target is not None
    assert asked.target.region_id == "b"
    assert len(asked.prompt.points) == 3


def test_negative_clicks_alone_correct_what_is_below_them() -> None:
    asked = ask(click(20, 30, positive=False), predictions=[drafts(region(disc(20, 30, 12), "a"))])
    assert asked.target is not None
    assert asked.prompt.labels.tolist()[-1] == 0


def test_a_click_beyond_the_box_that_found_a_region_widens_it() -> None:
    old = Prompt(np.array([[20, 30]], np.float32), np.array([1]), box=(8.0, 18.0, 32.0, 42.0))
    task = {"predictions": [drafts(region(disc(20, 30, 12), "a", prompt=old))]}
    assert ask(click(20, 32), click(60, 30), **task).prompt.box is None
    assert ask(click(20, 32), click(60, 30, positive=False), **task).prompt.box is not None


def test_without_evidence_the_mask_and_the_click_are_the_prompt() -> None:
    bare = {
        **region(disc(20, 30, 12), "a"),
        "meta": {"text": ["a note"], "vlsam": {"v": 1, "points": "many"}},
    }
    asked = ask(click(20, 30), annotations=[drafts(bare)])
    assert asked.prompt.points.tolist() == [[20, 30]]
    assert asked.prompt.mask is not None


def test_a_fresh_mask_that_overlaps_a_region_corrects_it() -> None:
    """Where no click is inside, the mask of the clicks alone decides: IoU 0.5 or more is the same object."""
    old = Prompt(np.array([[20, 30]], np.float32), np.array([1]))
    task = {"predictions": [drafts(region(disc(20, 30, 12), "a", prompt=old), region(disc(60, 30, 9), "b"))]}
    asked = ask(click(33, 30), **task)
    assert (asked.target, asked.region_id, len(asked.rivals)) == (None, None, 2)
    assert asked.prompt.points.tolist() == [[33, 30]]
    assert asked.prompt.mask is None

    same = click_target.settle(asked, disc(22, 30, 14))
    assert same.region_id == "a"
    assert same.prompt.points.round(2).tolist() == [[20, 30], [33, 30]]
    assert same.prompt.mask is not None

    other = click_target.settle(asked, disc(33, 30, 8))
    assert (other.target, other.region_id) == (None, None)
    assert other.prompt.mask is None


@pytest.mark.parametrize(("columns", "found"), [(5, "a"), (4, None)])
def test_the_share_of_a_region_that_it_takes_is_a_half(columns: int, found: str | None) -> None:
    asked = ask(click(50, 10), predictions=[drafts(region(mask_of_box(0, 20, 10, 30), "a"))])
    assert click_target.settle(asked, mask_of_box(0, 20, columns, 30)).region_id == found


@pytest.mark.parametrize(("columns", "found"), [(40, "a"), (41, None)])
def test_a_mask_that_is_four_times_the_region_shows_something_else(columns: int, found: str | None) -> None:
    """A part was missed where the object is larger; a background or a group holds the region, too."""
    asked = ask(click(50, 10), predictions=[drafts(region(mask_of_box(0, 20, 10, 30), "a"))])
    assert click_target.settle(asked, mask_of_box(0, 20, columns, 30)).region_id == found


def test_a_region_that_a_person_drew_is_corrected_by_a_click_beside_it_too() -> None:
    bare = {**region(disc(20, 30, 12), "a"), "meta": {"text": ["drawn by hand"]}}
    beside = ask(click(33, 30), annotations=[drafts(bare)])
    assert click_target.settle(beside, disc(24, 30, 16)).region_id == "a"
    assert click_target.settle(beside, disc(40, 30, 8)).target is None
    assert ask(click(31, 30), annotations=[drafts(bare)]).region_id == "a"


def test_a_persons_rectangle_is_corrected_only_by_a_click_inside() -> None:
    """It says where its object ends."""
    bare = {**region(mask_of_box(10, 20, 30, 40), "a", control="rect"), "meta": {}}
    beside = ask(click(33, 30), annotations=[drafts(bare)])
    assert beside.rivals == ()
    assert click_target.settle(beside, mask_of_box(10, 20, 34, 40)).target is None


def test_of_regions_that_are_equal_the_topmost_is_corrected() -> None:
    regions = [region(disc(20, 30, 12), "below"), region(disc(20, 30, 12), "topmost")]
    asked = ask(click(35, 30), predictions=[drafts(*regions)])
    assert click_target.settle(asked, disc(22, 30, 14)).region_id == "topmost"


def test_of_a_brush_that_only_is_strokes_nothing_is_known() -> None:
    strokes = region(disc(20, 30, 12), "a")
    strokes["value"] = {"touches": [{"type": "add"}], "maskDataURL": "data:,", "brushlabels": ["Cat"]}
    asked = ask(click(20, 30), drafts=[drafts(strokes)], predictions=[drafts(region(disc(20, 30, 12), "a"))])
    assert asked.target is None


def test_a_ghost_of_a_prompt_tool_is_no_region() -> None:
    ghost = {**region(disc(20, 30, 12), "a"), "type": "keypointlabels", "from_name": "kp"}
    assert ask(click(20, 30), drafts=[drafts(ghost)]).target is None


# Regions with several labels, where a control has choice="multiple"


def labelled(item: dict[str, Any], *labels: Any) -> dict[str, Any]:
    return {**item, "value": {**item["value"], "labels": list(labels), item["type"]: list(labels)}}


BOTH = labelled(region(disc(20, 30, 12), "both", control="poly"), "Cat", "Dog")


@pytest.mark.parametrize("clicked", [["Cat"], ["Dog"], ["Dog", "Cat"], ["Unicorn", "Dog"]])
def test_a_click_with_one_of_a_regions_labels_corrects_it_and_keeps_them_all(clicked: list[str]) -> None:
    asked = ask(labelled(click(20, 30), *clicked), annotations=[drafts(BOTH)])
    assert (asked.region_id, asked.control.name, asked.labels) == ("both", "poly", ("Cat", "Dog"))


def test_a_click_with_several_labels_corrects_a_region_with_one_of_them() -> None:
    cat, dog = region(disc(20, 30, 12), "cat"), region(disc(60, 30, 9), "dog", control="poly", label="Dog")
    for x, found, labels in ((20, "cat", ("Cat",)), (60, "dog", ("Dog",))):
        asked = ask(labelled(click(x, 30), "Dog", "Cat"), predictions=[drafts(cat, dog)])
        assert (asked.region_id, asked.labels) == (found, labels)
    assert ask(labelled(click(20, 30), "Dog"), predictions=[drafts(cat, dog)]).target is None


def test_a_rival_keeps_its_labels_too() -> None:
    asked = ask(labelled(click(33, 30), "Dog"), predictions=[drafts(BOTH)])
    assert (asked.target, asked.labels) == (None, ("Dog",))
    settled = click_target.settle(asked, disc(22, 30, 14))
    assert (settled.region_id, settled.labels) == ("both", ("Cat", "Dog"))


@pytest.mark.parametrize(
    ("clicked", "control", "labels"),
    [
        (["Cat", "Dog"], "poly", ("Cat", "Dog")),  # the only one that knows both
        (["Unicorn", "Cat"], "brush", ("Cat",)),
        (["Cat", "Cat", 3, None], "brush", ("Cat",)),
    ],
)
def test_a_new_region_has_the_labels_that_its_control_knows(
    clicked: list[Any], control: str, labels: tuple[str, ...]
) -> None:
    asked = ask(labelled(click(10, 20), *clicked))
    assert (asked.target, asked.control.name, asked.labels) == (None, control, labels)


def test_prompts_that_share_a_label_belong_together() -> None:
    """Label Studio sends those with the same first label."""
    asked = ask(labelled(click(10, 20), "Cat", "Dog"), click(30, 20, label="Unicorn"), click(50, 20))
    assert asked.prompt.points.round(3).tolist() == [[10, 20], [50, 20]]


# Clicks without a label


def nameless(x: float, y: float, **more: Any) -> dict[str, Any]:
    """Return a click of a smart keypoint without a label."""
    return click(x, y, label=None, **more)


def nameless_box(x: float, y: float, width: float, height: float) -> dict[str, Any]:
    drawn = box(x, y, x + width, y + height)
    del drawn["value"]["rectanglelabels"]
    return drawn


BRUSHES = parse(CONFIG)
CAT, DOG = region(disc(20, 30, 12), "cat"), region(disc(60, 30, 9), "dog", control="poly", label="Dog")
MISSING = "has no label and no region is below it.* choose a label first: Cat, Dog"


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize(("x", "found", "label"), [(20, "cat", "Cat"), (60, "dog", "Dog")])
def test_a_click_without_a_label_corrects_the_region_below_it(
    x: float, found: str, label: str, positive: bool
) -> None:
    asked = ask(nameless(x, 30, positive=positive), predictions=[drafts(CAT, DOG)])
    assert (asked.region_id, asked.labels) == (found, (label,))
    assert asked.prompt.points[-1].tolist() == [x, 30]
    assert asked.prompt.labels[-1] == positive
    assert asked.prompt.mask is not None


def test_of_regions_of_several_labels_the_topmost_is_meant() -> None:
    dog = region(disc(24, 30, 12), "dog", control="poly", label="Dog")
    for order, found in (((CAT, dog), "dog"), ((dog, CAT), "cat")):
        assert ask(nameless(22, 30), annotations=[drafts(*order)]).region_id == found


@given(
    discs=st.lists(
        st.tuples(st.floats(0, 80), st.floats(0, 60), st.floats(3, 30), st.sampled_from(["Cat", "Dog"])),
        max_size=5,
    ),
    x=st.floats(0, 79.9),
    y=st.floats(0, 59.9),
)
def test_a_click_without_a_label_is_about_the_last_drawn_region_that_holds_it(
    discs: list[tuple[float, float, float, str]], x: float, y: float
) -> None:
    masks = [disc(*circle) for *circle, _ in discs]
    drawn = [
        results.region(mask, control=BRUSHES.outputs[0], labels=[label], region_id=str(number), score=0.5)
        for number, (mask, (*_, label)) in enumerate(zip(masks, discs, strict=True))
    ]
    holding = [number for number, mask in enumerate(masks) if mask[int(y), int(x)]]
    context = {"result": [nameless(x, y)]}
    task = {"annotations": [drafts(*(item for items in drawn for item in items))]}
    if holding:
        asked = read(context, task, BRUSHES, SHAPE)
        assert (asked.region_id, asked.labels) == (str(holding[-1]), (discs[holding[-1]][3],))
    else:
        with pytest.raises(Unanswerable, match=MISSING):
            read(context, task, BRUSHES, SHAPE)


def test_a_rectangle_is_meant_where_nothing_else_is_below_a_click() -> None:
    on_top = region(mask_of_box(5, 5, 75, 55), "boxed", control="rect")
    task = {"annotations": [drafts(DOG, on_top)]}
    assert ask(nameless(60, 30), **task).region_id == "dog"
    assert ask(nameless(40, 10), **task).region_id == "boxed"


def test_of_one_object_in_several_controls_clicks_with_and_without_a_label_mean_the_same() -> None:
    both = [region(disc(20, 30, 12), name, control=name) for name in ("brush", "poly")]
    for asked in (click(20, 30), nameless(20, 30)):
        assert ask(asked, predictions=[drafts(*both)]).region_id == "brush"


def test_a_region_without_a_label_is_corrected_and_gets_none() -> None:
    bare = region(disc(20, 30, 12), "bare")
    bare["value"]["brushlabels"] = []
    asked = ask(nameless(20, 30), predictions=[drafts(bare)])
    assert (asked.region_id, asked.labels) == ("bare", ())


def test_a_click_without_a_label_keeps_all_labels_of_its_region() -> None:
    assert ask(nameless(20, 30), annotations=[drafts(BOTH)]).labels == ("Cat", "Dog")


def test_outside_all_regions_a_click_needs_a_label_where_there_are_several() -> None:
    for task in ({}, {"annotations": [drafts({**CAT, "meta": {}})]}):
        with pytest.raises(Unanswerable, match=f"click {MISSING}"):
            ask(nameless(60, 30), **task)
    with pytest.raises(Unanswerable, match=r"negative clicks only, and no region is below them"):
        ask(nameless(60, 30, positive=False), predictions=[drafts(CAT)])


def test_outside_all_regions_a_click_has_the_only_label() -> None:
    config = parse(SPLIT.replace('<Label value="Dog"/>', ""))
    task = {"annotations": [drafts(CAT)]}
    asked = read({"result": [nameless(60, 30)]}, task, config, SHAPE)
    settled = click_target.settle(asked, disc(60, 30, 5))
    assert (settled.target, settled.control.name, settled.labels) == (None, "brush", ("Cat",))
    assert read({"result": [nameless(20, 30)]}, task, config, SHAPE).region_id == "cat"


def test_the_only_label_may_be_that_of_the_tasks_data() -> None:
    xml = """<View><Image name="image" value="$image"/>
      <BrushLabels name="brush" toName="image" value="$names"/>
      <KeyPointLabels name="kp" toName="image" smart="true" value="$names"/></View>"""
    context = {"result": [nameless(20, 30)]}
    config = parse(xml)
    asked = read(context, {}, config.of({"names": ["Newt"]}), SHAPE)
    assert asked.labels == ("Newt",)
    with pytest.raises(Unanswerable, match=r"choose a label first: Newt, Eft\."):
        read(context, {}, config.of({"names": ["Newt", "Eft"]}), SHAPE)


def test_regions_that_are_named_in_words_need_no_label() -> None:
    config = parse("""<View><Image name="image" value="$image"/><Brush name="brush" toName="image"/>
      <TextArea name="words" toName="image" perRegion="true"/>
      <KeyPoint name="kp" toName="image" smart="true"/></View>""")
    asked = read({"result": [nameless(20, 30)]}, {}, config, SHAPE)
    assert (asked.control.name, asked.labels, asked.target) == ("brush", (), None)


def test_a_click_without_a_label_beside_a_region_is_about_it_where_the_mask_says_so() -> None:
    asked = ask(nameless(33, 30), predictions=[drafts(CAT, DOG)])
    assert click_target.settle(asked, disc(22, 30, 14)).labels == ("Cat",)
    assert click_target.settle(asked, disc(58, 30, 9)).region_id == "dog"
    with pytest.raises(Unanswerable, match=MISSING):
        click_target.settle(asked, disc(33, 30, 4))


@pytest.mark.parametrize(
    ("clicks", "found", "spots"),
    [
        ([(20, 30), (25, 30)], "cat", [(20, 30), (25, 30)]),
        ([(20, 30), (60, 30)], "dog", [(60, 30)]),
        ([(60, 30), (40, 5), (20, 30)], "cat", [(20, 30)]),
        ([(60, 30), (40, 5)], "dog", [(60, 30), (40, 5)]),
        ([(20, 30), (40, 5), (60, 30), (45, 30)], "dog", [(60, 30), (45, 30)]),
        ([(40, 5), (20, 30)], "cat", [(20, 30)]),
    ],
)
def test_the_newest_click_in_a_region_says_which_and_the_clicks_in_others_do_not_count(
    clicks: list[tuple[float, float]], found: str, spots: list[tuple[float, float]]
) -> None:
    """The browser sends all that were not accepted as one group, wherever they are."""
    items = [nameless(x, y, id=f"p{number}") for number, (x, y) in enumerate(clicks)]
    asked = ask(*items, annotations=[drafts({**CAT, "meta": {}}, {**DOG, "meta": {}})])
    assert asked.region_id == found
    assert asked.prompt.points.round(2).tolist() == [[*spot] for spot in spots]


def test_a_box_without_a_label_is_about_the_region_that_it_overlaps() -> None:
    ring = disc(60, 30, 9) & ~disc(60, 30, 7)
    by_hand = {**region(ring, "dog", control="brush", label="Dog"), "meta": {}}
    task = {"annotations": [drafts(CAT, by_hand)]}
    around = ask(nameless_box(51, 21, 18, 18), **task)
    assert click_target.settle(around, ring).labels == ("Dog",)  # the mask says so
    assert click_target.settle(around, disc(60, 30, 3)).labels == ("Dog",)  # the box does
    inside = ask(nameless_box(16, 26, 8, 8), **task)
    assert click_target.settle(inside, disc(20, 30, 3)).region_id == "cat"
    beside = ask(nameless_box(35, 0, 10, 60), **task)
    with pytest.raises(Unanswerable, match=f"rectangle {MISSING}"):
        click_target.settle(beside, mask_of_box(35, 0, 45, 60))


def test_recorded_click_of_a_labels_config_without_its_label(capture: Callable[..., Any]) -> None:
    """Without a chosen label the browser sends the keypoint alone, with an empty list."""
    body = capture("ui_42_labels_config")
    config = parse(body["label_config"])
    item = body["params"]["context"]["result"][0]
    item["value"]["labels"] = []
    found = disc(305, 253, 40, width=800, height=600)
    made = results.region(found, control=config.outputs[0], labels=["Dog"], region_id="a", score=0.5)
    task = {**body["tasks"][0], "predictions": [drafts(*made)]}
    asked = read({"result": [item]}, task, config, (600, 800), labels_in_place=True)
    assert (asked.region_id, asked.labels) == ("a", ("Dog",))
    # Both results have the label: the region's, and that of its <Labels>.
    answer = results.region(found, control=asked.control, labels=asked.labels, region_id="a", score=0.5)
    assert [result["value"].get("labels") for result in answer] == [None, ["Dog"]]
    with pytest.raises(Unanswerable, match=MISSING):
        read({"result": [item]}, body["tasks"][0], config, (600, 800))


@pytest.mark.parametrize("reverse", [False, True])
def test_a_point_takes_the_label_from_the_list_that_it_was_chosen_in(reverse: bool) -> None:
    """As with a <KeyPoint> beside <BrushLabels>: the browser sends two results of one id."""
    point = {**nameless(10, 20, id="p"), "type": "keypoint"}
    label = {**point, "type": "brushlabels", "from_name": "brush", "value": {"brushlabels": ["Cat"]}}
    pair = [label, point] if reverse else [point, label]
    asked = ask(*pair, nameless(70, 50, id="q"), {**label, "id": "q"})
    assert (asked.labels, asked.control.name) == (("Cat",), "brush")
    assert asked.prompt.points.round(3).tolist() == [[10, 20], [70, 50]]


# What of a task is read


def bombs(count: int, **more: Any) -> dict[str, Any]:
    """Return a draft of rings all over the image that are expensive to paint."""
    ring = [[50 + 50 * (n % 2), 100 * (n % 3 % 2)] for n in range(3000)]
    made = {**region(disc(20, 30, 12), "a", control="poly"), **more}
    value = {**made["value"], "points": ring}
    return drafts(*({**made, "id": f"bomb {number}", "value": value} for number in range(count)))


def spent(*items: Any, **task: Any) -> float:
    budget = ReadingBudget()
    read({"result": list(items)}, task, parse(SPLIT), SHAPE, budget=budget)
    return UNITS - budget.units


def test_only_regions_that_the_clicks_may_be_about_are_painted() -> None:
    beside = spent(click(10, 30), drafts=[bombs(10)])
    assert spent(click(70, 30), drafts=[bombs(1)]) > 1.5 * spent(click(10, 30), drafts=[bombs(1)])
    assert spent(click(10, 30, label="Dog"), drafts=[bombs(10)]) == 0
    assert beside == pytest.approx(10 * spent(click(10, 30), drafts=[bombs(1)]), rel=0.1)


def test_a_rival_is_painted_only_where_it_may_be_the_same_object() -> None:
    budget = ReadingBudget()
    task = {"drafts": [bombs(5)]}
    asked = read({"result": [click(10, 30)]}, task, parse(SPLIT), SHAPE, budget=budget)
    assert len(asked.rivals) == 5
    before = budget.units
    assert click_target.settle(asked, disc(10, 30, 9)).target is None
    assert budget.units == before
    assert click_target.settle(asked, mask_of_box(40, 0, 80, 60)).target is None
    assert budget.units < before


def test_too_many_regions_and_a_deadline_are_told() -> None:
    for budget, error in (
        (ReadingBudget(units=1e6), TooMuch),
        (ReadingBudget(deadline=Deadline(0)), OutOfTime),
    ):
        task = {"drafts": [bombs(1000)]}
        with pytest.raises(error, match="regions"):
            read({"result": [click(70, 30)]}, task, parse(SPLIT), SHAPE, budget=budget)


def test_of_a_context_the_newest_items_are_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click_gestures, "MAX_ITEMS", 2)
    assert ask(click(10, 20), click(30, 20), click(50, 20)).prompt.points.round(3).tolist() == [
        [30, 20],
        [50, 20],
    ]


def test_not_every_box_of_a_draft_is_compared_with_every_click(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def count(around: Any, points: Any) -> bool:
        compared.append(len(points))
        return False

    monkeypatch.setattr(click_gestures, "holds", count)
    clicks = [click(n % 80, 20, id=f"p{n}") for n in range(1500)]
    boxes = [box(0, 0, 80, 60, id=f"b{n}") for n in range(1500)]
    config = parse(CONFIG)
    read({"result": clicks}, {"drafts": [drafts(*boxes)]}, config, SHAPE)
    assert 0 < sum(compared) <= 2 * 1000
    compared.clear()
    read({"result": boxes[:1]}, {"drafts": [drafts(*clicks)]}, config, SHAPE)
    assert 0 < sum(compared) <= 1000


@pytest.mark.parametrize(
    "bad", [{"rle": 10**14}, {"rle": "abc"}, {"maskDataURL": "data:image/png;base64,AAAA"}, {"touches": 3}]
)
def test_a_region_that_cannot_be_read_hides_no_other(bad: dict[str, Any]) -> None:
    broken = {**region(disc(20, 30, 12), "broken"), "value": {**bad, "brushlabels": ["Cat"]}}
    budget = ReadingBudget()
    asked = read(
        {"result": [click(20, 30)]},
        {"drafts": [drafts(region(disc(20, 30, 12), "whole"), broken)]},
        parse(SPLIT),
        SHAPE,
        budget=budget,
    )
    assert asked.region_id == "whole"
    assert len(budget.unread) == 1


# Clicks and boxes together, from the draft


def prompts(*items: Any, **more: Any) -> dict[str, Any]:
    return {"drafts": [{**drafts(*items), **more}]}


def drafted(*items: Any, draft: list[dict[str, Any]]) -> Correction:
    config = parse(CONFIG)  # its rectangles only prompt
    return read({"result": list(items)}, prompts(*draft), config, SHAPE)


BOX = box(10, 20, 40, 35, id="box")


def test_a_click_joins_the_box_around_it_in_the_draft() -> None:
    asked = drafted(click(20, 25, id="a"), draft=[BOX, click(20, 25, id="a")])
    assert asked.prompt.box == pytest.approx((10, 20, 40, 35))
    assert asked.prompt.points.tolist() == [[20, 25]]


def test_a_negative_click_into_a_drafted_box_cuts_from_it() -> None:
    asked = drafted(click(20, 25, positive=False), draft=[BOX])
    assert asked.prompt.box is not None
    assert asked.prompt.labels.tolist() == [0]


def test_a_box_joins_the_clicks_inside_it_in_the_draft() -> None:
    clicks = [click(20, 25, id="a"), click(70, 50, id="b"), click(12, 22, id="c", positive=False)]
    asked = drafted(BOX, draft=clicks)
    assert asked.prompt.box == pytest.approx((10, 20, 40, 35))
    assert asked.prompt.points.round(3).tolist() == [[20, 25], [12, 22]]


def test_a_drafted_box_elsewhere_or_of_another_label_is_not_joined() -> None:
    dog = copy.deepcopy(BOX)
    dog["value"]["rectanglelabels"] = ["Dog"]
    assert drafted(click(60, 50), draft=[BOX]).prompt.box is None
    assert drafted(click(20, 25), draft=[dog]).prompt.box is None


def test_prompts_of_the_clicks_own_kind_count_only_in_the_context() -> None:
    """A prompt that was moved or deleted may be in the draft for seconds."""
    draft = [click(20, 25, id="a"), click(30, 25, id="deleted"), click(35, 30, id="moved")]
    asked = drafted(click(20, 25, id="a"), click(36, 31, id="moved"), draft=draft)
    assert asked.prompt.points.round(3).tolist() == [[20, 25], [36, 31]]


def test_a_draft_from_before_the_last_accept_gives_no_prompts() -> None:
    """Accepting deletes all prompts: of those clicks none is in the context, so the box is gone, too."""
    asked = drafted(click(20, 25, id="new"), draft=[BOX, click(30, 30, id="accepted")])
    assert asked.prompt.box is None
    assert len(asked.prompt.points) == 1


def test_a_rectangle_that_is_a_region_is_no_prompt() -> None:
    asked = ask(click(20, 25), **prompts(BOX))  # here rectangles are an output
    assert asked.prompt.box is not None
    assert asked.target is not None
    assert read({"result": [click(70, 50)]}, prompts(BOX), parse(SPLIT), SHAPE).prompt.box is None


def test_a_click_on_another_image_of_the_config_is_not_ours() -> None:
    for drawn in (click(20, 25), box(10, 20, 40, 35)):
        with pytest.raises(
            Unanswerable, match=r"prompt is on 'other', and regions are made on <Image name='image'> alone"
        ):
            ask({**drawn, "to_name": "other"})
    assert ask(click(20, 25, to_name="image")).prompt.points.tolist() == [[20, 25]]
    assert ask(click(20, 25, to_name=None)).prompt.points.tolist() == [[20, 25]]


# What would break the editor


def test_a_region_that_a_relation_names_is_not_replaced() -> None:
    relation = {"type": "relation", "from_id": "other", "to_id": "a", "direction": "right"}
    mask = disc(20, 30, 12)
    asked = ask(click(20, 30), drafts=[drafts(region(mask, "a"), relation)])
    assert asked.target is not None
    assert asked.region_id is None
    assert asked.notes == ("Supersedes region a",)
    assert asked.prompt.mask is not None
    free = ask(click(20, 30), drafts=[drafts(region(mask, "b"), relation)])
    assert (free.region_id, free.notes) == ("b", ())


LABELS = """
<View>
  <Image name="image" value="$image"/>
  <Labels name="label" toName="image"><Label value="Cat"/><Label value="Dog"/></Labels>
  <Brush name="brush" toName="image"/>
  <KeyPoint name="kp" toName="image" smartOnly="true"/>
  <Rectangle name="rect" toName="image" smartOnly="true"/>
</View>
"""


def free_click(x: float, y: float, label: str | None, **more: Any) -> dict[str, Any]:
    """Return a click of a <KeyPoint>, which has no list of labels of its own."""
    value = {"x": x / 0.8, "y": y / 0.6, "width": 0.2, "labels": [label] if label else []}
    return {"value": value, "is_positive": True, "type": "keypoint", "from_name": "kp", "id": "p", **more}


def of_labels(mask: Mask) -> tuple[LabelConfig, dict[str, Any]]:
    """Return a config with one list of labels for all tools, and a task with a region "a" of a cat."""
    config = parse(LABELS)
    found = detection("tabby", mask)
    region = results.region(mask, control=config.outputs[0], labels=["Cat"], region_id="a", score=0.5)
    return config, {
        "drafts": [drafts({**region[0], "meta": region_meta.write(found, region[0])}, *region[1:])]
    }


@pytest.mark.parametrize("x", [22, 40], ids=["inside", "outside"])
@pytest.mark.parametrize("wanted", [False, True])
def test_where_a_region_may_be_selected_it_is_replaced_only_where_that_is_wanted(
    wanted: bool, x: int
) -> None:
    """A selected region lends the <KeyPoint> its label, and keeps clicks inside from placing points."""
    config, task = of_labels(disc(20, 30, 12))
    clicks = [free_click(x, 30, "Cat")]
    asked = read({"result": clicks}, task, config, SHAPE, labels_in_place=wanted)
    asked = click_target.settle(asked, disc(22, 30, 14)) if asked.rivals else asked
    assert asked.target is not None
    assert (asked.term, len(asked.prompt.points)) == ("tabby", 2)
    replaced = wanted or x == 22
    assert (asked.region_id, asked.notes) == (("a", ()) if replaced else (None, ("Supersedes region a",)))


def test_the_newest_click_tells_whether_a_region_may_be_selected() -> None:
    config, task = of_labels(disc(20, 30, 12))
    inside, outside = free_click(22, 30, "Cat"), free_click(40, 30, "Cat", id="q")
    for clicks, region_id in ([outside, inside], "a"), ([inside, outside], None):
        assert read({"result": clicks}, task, config, SHAPE).region_id == region_id


def test_a_click_without_a_label_says_that_no_region_is_selected() -> None:
    config, task = of_labels(disc(20, 30, 12))
    asked = read({"result": [free_click(40, 30, None)]}, task, config, SHAPE)
    assert click_target.settle(asked, disc(22, 30, 14)).region_id == "a"


def test_a_tool_with_labels_of_its_own_works_only_where_no_region_is_selected() -> None:
    config, task = of_labels(disc(20, 30, 12))
    asked = read({"result": [click(40, 30, id="p")]}, task, config, SHAPE)
    assert click_target.settle(asked, disc(22, 30, 14)).region_id == "a"


def test_a_click_with_another_label_is_about_no_region_below_it() -> None:
    config, task = of_labels(disc(20, 30, 12))
    assert read({"result": [free_click(22, 30, "Dog")]}, task, config, SHAPE).target is None


def test_with_a_labels_config_too_a_region_keeps_all_its_labels() -> None:
    config = parse(LABELS)
    (brush,) = config.outputs
    found = disc(20, 30, 12)
    made = results.region(found, control=brush, labels=["Cat", "Dog"], region_id="a", score=0.5)
    assert [item["value"].get("labels") for item in made] == [None, ["Cat", "Dog"]]
    context = {"result": [click(22, 30, label="Dog", id="p")]}
    asked = read(context, {"drafts": [drafts(*made)]}, config, SHAPE, labels_in_place=True)
    assert (asked.region_id, asked.labels) == ("a", ("Cat", "Dog"))


def test_recorded_labels_config_joins_the_box_around_a_click(capture: Callable[..., Any]) -> None:
    """Both as two results of one id: the tool's and the label's."""
    click_body, box_body = capture("ui_47_labels_rect", 0), capture("ui_47_labels_rect", 1)
    config = parse(LABELS)
    prompt = box_body["params"]["context"]["result"]
    task = {"drafts": [{"result": prompt, "updated_at": "2026"}]}
    clicked = copy.deepcopy(click_body["params"]["context"]["result"])
    for item in clicked:
        item["value"] |= {"x": prompt[0]["value"]["x"] + 1, "y": prompt[0]["value"]["y"] + 1}
    asked = read({"result": clicked}, task, config, (600, 800))
    assert asked.labels == ("Cat",)
    assert asked.prompt.box is not None
    assert len(asked.prompt.points) == 1


def test_notes_of_a_person_stay_and_ours_are_renewed() -> None:
    meta = {"text": ["mind the tail", "Supersedes region a"], "vlsam": {}}
    assert region_meta.notes_with(meta, ["Supersedes region b"]) == ["mind the tail", "Supersedes region b"]
    assert region_meta.notes_with(meta, []) == ["mind the tail", "Supersedes region a"]
    for odd in (None, 3, {"text": {"a": 1}}, {"text": [1, None]}):
        assert region_meta.notes_with(odd, []) == []
    assert region_meta.notes_with({"text": "one line"}, []) == ["one line"]


def test_recorded_ghost_of_an_accepted_region_is_neither_region_nor_prompt(
    capture: Callable[..., Any],
) -> None:
    brush, ghost = json.loads((CAPTURES / "ui_20_accept_with_kp_label_active.json").read_text("utf-8"))
    assert ghost["id"] == brush["id"]
    shape = (brush["original_height"], brush["original_width"])
    mask = region_reading.decode(brush, shape)
    assert mask is not None
    y, x = np.argwhere(mask)[0].tolist()
    at = {"x": 100 * (x + 0.5) / shape[1], "y": 100 * (y + 0.5) / shape[0], "keypointlabels": ["Cat"]}
    item = {"value": at, "type": "keypointlabels", "from_name": "kp", "id": "new", "is_positive": True}
    task = {"drafts": [{"result": [brush, ghost], "updated_at": "2026"}]}
    asked = read({"result": [item]}, task, parse(CONFIG), shape)
    assert asked.region_id == brush["id"]
    assert asked.target is not None
    assert asked.target.control.name == "brush"
    assert len(asked.prompt.points) == 1


def test_odd_scores_types_and_origins_of_a_region_do_no_harm() -> None:
    odd = {**region(disc(20, 30, 12), "a"), "score": "0.9", "origin": "elsewhere"}
    unknown = {**region(disc(20, 30, 12), "b"), "type": "hologram"}
    asked = ask(click(20, 30), drafts=[drafts(odd, unknown)])
    assert asked.region_id == "a"


# Recorded contexts


def recorded(capture: Callable[..., Any], name: str) -> tuple[Correction, dict[str, Any]]:
    body = capture(name)
    task = body["tasks"][0]
    context = body["params"]["context"]
    first = context["result"][0]
    shape = (first["original_height"], first["original_width"])
    return read(context, task, parse(body["label_config"]), shape), task


def test_recorded_first_click(capture: Callable[..., Any]) -> None:
    asked, _ = recorded(capture, "ui_01_first_positive_click")
    assert (asked.labels, asked.control.name, asked.target) == (("Cat",), "brush", None)
    assert asked.prompt.points.round().tolist() == [[305, 253]]


def test_recorded_negative_click_after_a_draft_of_prompts(capture: Callable[..., Any]) -> None:
    asked, _ = recorded(capture, "ui_04_neg_after_draft")
    assert asked.target is None
    assert asked.prompt.labels.tolist() == [1, 1, 0, 0]


def test_recorded_rectangle_with_the_clicks_of_the_draft_inside(capture: Callable[..., Any]) -> None:
    asked, _ = recorded(capture, "ui_06_smart_rect")
    assert asked.prompt.box == pytest.approx((172, 128, 439, 386), abs=1)
    assert asked.prompt.points.round().tolist() == [[305, 253], [362, 186]]


def test_recorded_rectangle_that_was_moved_counts_where_it_is_now(capture: Callable[..., Any]) -> None:
    asked, _ = recorded(capture, "ui_07_moved_kp")
    assert asked.prompt.box == pytest.approx((209, 157, 476, 415), abs=1)
    assert asked.prompt.points.round().tolist() == [[305, 253], [362, 186], [476, 357]]
    assert asked.prompt.labels.tolist() == [1, 1, 0]


def test_recorded_click_into_a_predicted_region(capture: Callable[..., Any]) -> None:
    asked, task = recorded(capture, "ui_10_click_with_predicted_region_selected")
    assert asked.target is not None
    assert asked.target.region_id == "predA"
    assert asked.prompt.mask is not None
    assert asked.prompt.mask.shape == (600, 800)
    assert asked.target.meta == {"text": ["hello meta"]}
    assert [r["id"] for r in task["predictions"][0]["result"]] == ["predA", "predR"]


def test_recorded_exif_image(capture: Callable[..., Any]) -> None:
    asked, _ = recorded(capture, "ui_66_exif")
    assert asked.prompt.points.round().tolist() == [[460, 400]]


def test_recorded_labels_config_counts_each_prompt_once(capture: Callable[..., Any]) -> None:
    body = capture("ui_42_labels_config")
    asked = read(body["params"]["context"], body["tasks"][0], parse(CONFIG), (600, 800))
    assert asked.labels == ("Cat",)
    assert asked.prompt.points.round().tolist() == [[305, 253]]


def test_recorded_labels_config_takes_the_label_from_either_result(capture: Callable[..., Any]) -> None:
    body = capture("ui_47_labels_rect", 1)
    asked = read(body["params"]["context"], body["tasks"][0], parse(CONFIG), (600, 800))
    assert asked.labels == ("Cat",)
    assert asked.prompt.box is not None


@pytest.mark.parametrize("name", ["ui_60_text_prompt", "ui_65_text_after_globals"])
def test_recorded_text_has_nothing_to_segment(capture: Callable[..., Any], name: str) -> None:
    body = capture(name)
    with pytest.raises(Unanswerable, match="no click and no rectangle"):
        read(body["params"]["context"], body["tasks"][0], parse(CONFIG), (600, 800))


# The next protocol's prompts have neither id nor label


def test_prompts_without_id_and_label_ask_for_a_mask_alone(config: LabelConfig) -> None:
    bare = [
        {"type": "keypointlabels", "value": {"x": 25, "y": 50, "positive": True}},
        {"type": "keypointlabels", "value": {"x": 75, "y": 50, "positive": False}},
    ]
    prompt = bare_prompt({"result": bare}, config, SHAPE)
    assert prompt is not None
    assert prompt.points.tolist() == [[20, 30], [60, 30]]
    assert prompt.labels.tolist() == [1, 0]
    rectangle = {"type": "rectanglelabels", "value": {"x": 25, "y": 50, "width": 25, "height": 25}}
    prompt = bare_prompt({"result": [rectangle]}, config, SHAPE)
    assert prompt is not None
    assert prompt.box == pytest.approx((20, 30, 40, 45))
    with pytest.raises(Unanswerable, match="negative clicks only"):
        bare_prompt({"result": bare[1:]}, config, SHAPE)


def test_todays_prompts_are_not_bare(config: LabelConfig) -> None:
    assert bare_prompt({"result": [click(20, 30)]}, config, SHAPE) is None
    for drawn in (click(20, 30), box(10, 20, 40, 35)):
        del drawn["from_name"]  # as scripts send them: the label is all that says where the region goes
        assert bare_prompt({"result": [drawn]}, config, SHAPE) is None
        assert ask(drawn).control.name == "brush"
    assert bare_prompt({"result": []}, config, SHAPE) is None


# What cannot be answered


@pytest.mark.parametrize(
    "context",
    [
        {},
        {"result": None},
        {"result": {}},
        {"result": []},
        {"event": "capabilities"},
        {"result": [None, 3, []]},
    ],
)
def test_contexts_without_a_prompt(context: dict[str, Any], config: LabelConfig) -> None:
    with pytest.raises(Unanswerable, match="no click and no rectangle"):
        read(context, {}, config, SHAPE)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (click(10, 20, label=None), "no label"),
        (click(10, 20, label=None, id="p"), "no label"),
        (click(10, 20, label="Unicorn"), "No output control has the label 'Unicorn'"),
        (click(10, 20, positive=False), "negative clicks only"),
        (box(10, 20, 10, 35), "rectangle is empty"),
        (click(float("nan"), 20), "no click"),
        (click(float("inf"), 20), "no click"),
    ],
)
def test_prompts_that_say_too_little(item: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unanswerable, match=reason):
        ask(item)


@pytest.fixture
def config() -> LabelConfig:
    return parse(SPLIT)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.sampled_from(["Cat", "keypointlabels", "a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["value", "x", "y", "width", "height", "type", "id", "labels", "result", "rotation"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(json_values, json_values)
def test_f18_odd_contexts_and_tasks_are_answered_or_refused(item: Any, regions: Any) -> None:
    task = {"drafts": [{"result": [regions]}], "annotations": regions, "predictions": [regions]}
    odd = copy.deepcopy(click(10, 20))
    if isinstance(item, dict):
        odd["value"] |= {key: value for key, value in item.items() if key != "labels"}
    for context in ({"result": item}, {"result": [item, odd]}, {"result": [odd], "event": item}):
        try:
            asked = read(context, task, parse(SPLIT), SHAPE)
        except Unanswerable:
            continue
        assert np.isfinite(asked.prompt.points).all()
        json.dumps(asked.labels)
