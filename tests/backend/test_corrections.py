import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend import corrections, evidence, results
from backend.corrections import Correction, Unanswerable
from backend.labels import LabelConfig, parse
from model.types import Mask, Prompt
from tests.backend.conftest import CONFIG, detection, disc

SHAPE = (60, 80)
SPLIT = """
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="Cat"/></BrushLabels>
  <PolygonLabels name="poly" toName="image"><Label value="Cat"/><Label value="Dog"/></PolygonLabels>
  <RectangleLabels name="rect" toName="image"><Label value="Cat"/></RectangleLabels>
</View>
"""


def click(
    x: float, y: float, *, positive: bool = True, label: str | None = "Cat", **more: Any
) -> dict[str, Any]:
    """A smart keypoint in pixels of an image of 80 x 60, as Label Studio sends it."""
    value: dict[str, Any] = {"x": x / 0.8, "y": y / 0.6, "width": 0.2}
    if label:
        value |= {"labels": [label], "keypointlabels": [label]}
    return {"value": value, "is_positive": positive, "type": "keypointlabels", "from_name": "kp", **more}


def box(x: float, y: float, width: float, height: float, **more: Any) -> dict[str, Any]:
    value = {
        "x": x / 0.8,
        "y": y / 0.6,
        "width": width / 0.8,
        "height": height / 0.6,
        "rectanglelabels": ["Cat"],
    }
    return {"value": {**value, "rotation": 0, **more}, "type": "rectanglelabels", "from_name": "rect"}


def region(
    mask: Mask, region_id: str, *, control: str = "brush", label: str = "Cat", prompt: Prompt | None = None
) -> dict[str, Any]:
    output = parse(SPLIT).output(control)
    assert output is not None
    (made,) = results.region(mask, control=output, label=label, region_id=region_id, score=0.5)
    return {**made, "meta": evidence.write(detection("tabby", mask, prompt), made)}


def ask(*items: Any, **task: Any) -> Correction:
    return corrections.read({"result": list(items)}, {"id": 1, **task}, parse(SPLIT), SHAPE)


def drafts(*regions: Any, at: str = "2026-01-01T00:00:00Z") -> dict[str, Any]:
    return {"result": list(regions), "updated_at": at}


# New regions


def test_a_click_beside_everything_makes_a_new_region() -> None:
    asked = ask(click(10, 20), predictions=[drafts(region(disc(60, 30, 9), "a"))])
    assert asked.target is None
    assert (asked.label, asked.control.name) == ("Cat", "brush")
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
    asked = ask(click(10, 20), click(30, 20), click(10, 20, positive=False))
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
    "drawn", [box(10, 20, 30, 15), box(40, 35, -30, -15), box(40, 20, -30, 15), box(10, 35, 30, -15)]
)
def test_a_rectangle_may_be_drawn_from_any_corner(drawn: dict[str, Any]) -> None:
    assert ask(drawn).prompt.box == pytest.approx((10, 20, 40, 35))


def test_a_rectangle_is_cut_to_the_image_and_the_last_one_counts() -> None:
    assert ask(box(1, 1, 5, 5), box(70, 50, 30, 30)).prompt.box == pytest.approx((70, 50, 80, 60))


def test_a_turned_rectangle_is_its_upright_box() -> None:
    assert ask(box(40, 20, 10, 20, rotation=90)).prompt.box == pytest.approx((20, 20, 40, 30))


def test_a_rectangle_makes_a_new_region_even_over_an_old_one() -> None:
    asked = ask(box(10, 20, 30, 15), predictions=[drafts(region(disc(25, 27, 9), "a"))])
    assert asked.target is None


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


def test_a_rectangle_is_corrected_by_its_box_not_by_a_mask() -> None:
    asked = ask(click(20, 30), predictions=[drafts(region(disc(20, 30, 12), "a", control="rect"))])
    assert asked.control.name == "rect"
    assert asked.prompt.mask is None
    assert asked.prompt.box == pytest.approx((8, 18, 32, 42))


def test_where_a_region_was_before_it_was_moved_does_not_count() -> None:
    asked = ask(
        click(20, 30),
        drafts=[drafts(region(disc(60, 30, 9), "a"))],
        predictions=[drafts(region(disc(20, 30, 12), "a"))],
    )
    assert asked.target is None


def test_a_positive_click_chooses_and_negative_ones_go_along() -> None:
    two = [region(disc(20, 30, 12), "a"), region(disc(60, 30, 9), "b")]
    asked = ask(click(60, 30, positive=False), click(20, 30), predictions=[drafts(*two)])
    assert asked.target is not None
    assert asked.target.region_id == "a"


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


def test_of_a_brush_that_only_is_strokes_nothing_is_known() -> None:
    strokes = region(disc(20, 30, 12), "a")
    strokes["value"] = {"touches": [{"type": "add"}], "maskDataURL": "data:,", "brushlabels": ["Cat"]}
    asked = ask(click(20, 30), drafts=[drafts(strokes)], predictions=[drafts(region(disc(20, 30, 12), "a"))])
    assert asked.target is None


def test_a_ghost_of_a_prompt_tool_is_no_region() -> None:
    ghost = {**region(disc(20, 30, 12), "a"), "type": "keypointlabels", "from_name": "kp"}
    assert ask(click(20, 30), drafts=[drafts(ghost)]).target is None


# Recorded contexts


def recorded(capture: Callable[..., Any], name: str) -> tuple[Correction, dict[str, Any]]:
    body = capture(name)
    task = body["tasks"][0]
    context = body["params"]["context"]
    first = context["result"][0]
    shape = (first["original_height"], first["original_width"])
    return corrections.read(context, task, parse(body["label_config"]), shape), task


def test_recorded_first_click(capture: Callable[..., Any]) -> None:
    asked, _ = recorded(capture, "ui_01_first_positive_click")
    assert (asked.label, asked.control.name, asked.target) == ("Cat", "brush", None)
    assert asked.prompt.points.round().tolist() == [[305, 253]]


def test_recorded_negative_click_after_a_draft_of_prompts(capture: Callable[..., Any]) -> None:
    asked, _ = recorded(capture, "ui_04_neg_after_draft")
    assert asked.target is None
    assert asked.prompt.labels.tolist() == [1, 1, 0, 0]


def test_recorded_rectangle(capture: Callable[..., Any]) -> None:
    asked, _ = recorded(capture, "ui_06_smart_rect")
    assert asked.prompt.box is not None
    assert len(asked.prompt.points) == 0


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
    asked = corrections.read(body["params"]["context"], body["tasks"][0], parse(CONFIG), (600, 800))
    assert asked.label == "Cat"
    assert asked.prompt.points.round().tolist() == [[305, 253]]


def test_recorded_labels_config_takes_the_label_from_either_result(capture: Callable[..., Any]) -> None:
    body = capture("ui_47_labels_rect", 1)
    asked = corrections.read(body["params"]["context"], body["tasks"][0], parse(CONFIG), (600, 800))
    assert asked.label == "Cat"
    assert asked.prompt.box is not None


@pytest.mark.parametrize("name", ["ui_60_text_prompt", "ui_65_text_after_globals"])
def test_recorded_text_has_nothing_to_segment(capture: Callable[..., Any], name: str) -> None:
    body = capture(name)
    with pytest.raises(Unanswerable, match="no click and no rectangle"):
        corrections.read(body["params"]["context"], body["tasks"][0], parse(CONFIG), (600, 800))


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
        corrections.read(context, {}, config, SHAPE)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (click(10, 20, label=None), "no label"),
        (click(10, 20, label="Unicorn"), "No output control has the label 'Unicorn'"),
        (click(10, 20, positive=False), "negative clicks only"),
        (box(10, 20, 0, 15), "rectangle is empty"),
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
def test_odd_contexts_and_tasks_are_answered_or_refused(item: Any, regions: Any) -> None:
    task = {"drafts": [{"result": [regions]}], "annotations": regions, "predictions": [regions]}
    odd = copy.deepcopy(click(10, 20))
    if isinstance(item, dict):
        odd["value"] |= {key: value for key, value in item.items() if key != "labels"}
    for context in ({"result": item}, {"result": [item, odd]}, {"result": [odd], "event": item}):
        try:
            asked = corrections.read(context, task, parse(SPLIT), SHAPE)
        except Unanswerable:
            continue
        assert np.isfinite(asked.prompt.points).all()
        json.dumps(asked.label)
