"""Which entries of a result list are objects, what these are called, and which pixels they have."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from backend.datasets.objects import Object
from backend.export import objects
from backend.labelstudio import brush_rle, labeling_config, recommended_configs
from backend.labelstudio.region_reading import ReadingBudget, TooMuch
from model.segmentation.non_maximum_suppression import iou
from model.types import Mask
from tests.support.detections import disc, ring_mask
from tests.support.saved_annotations import CAT, CONFIG, DOG, FREE, HEIGHT, WIDTH, click, region, same


def read(items: list[Any], xml: str = CONFIG, **options: Any) -> tuple[list[Object], Counter[str]]:
    left_out = Counter[str]()
    found = objects.read(
        items, labeling_config.parse(xml), (HEIGHT, WIDTH), ReadingBudget(), left_out, **options
    )
    return list(found), left_out


@pytest.mark.parametrize("control", ["brush", "bitmask", "poly", "vector"])
@pytest.mark.parametrize("mask", [CAT, DOG])
def test_masks_and_rings_come_back(control: str, mask: Mask) -> None:
    (found,), left_out = read(region(mask, control, "feline"))
    assert (found.label, found.score, left_out) == ("feline", None, {})
    assert same(found.mask, mask) if control in ("brush", "bitmask") else iou(found.mask, mask) > 0.9
    assert (found.ring is None) == (control in ("brush", "bitmask"))


def test_boxes_are_what_was_drawn_and_turned_ones_too() -> None:
    value = {"x": 10.0, "y": 25.0, "width": 33.3, "height": 50.0, "rotation": 0, "rectanglelabels": ["Dog"]}
    box = {**click(), "type": "rectanglelabels", "from_name": "rect", "value": value}
    (straight,), _ = read([box])
    assert straight.ring is not None
    assert straight.ring.min(axis=0).tolist() == pytest.approx([8, 15])
    assert straight.ring.max(axis=0).tolist() == pytest.approx([8 + 0.333 * WIDTH, 45])
    (turned,), _ = read([{**box, "value": {**value, "x": 50.0, "rotation": 45}}])
    assert turned.ring is not None
    assert iou(ring_mask(turned.ring, (HEIGHT, WIDTH)), turned.mask) > 0.95
    # Of what leaves the image only pixels are left.
    (outside,), _ = read([{**box, "value": {**value, "x": 80.0}}])
    assert outside.ring is None
    assert outside.mask[:, -1].any()


def test_an_object_below_another_stays_whole_and_the_topmost_is_last() -> None:
    found, _ = read([*region(CAT, "brush", "feline"), *region(DOG, "brush", "Dog")])
    assert [each.label for each in found] == ["feline", "Dog"]
    assert same(found[0].mask, CAT)
    assert (CAT & DOG).any()


def test_labels_beside_a_tool_are_two_entries_and_one_object() -> None:
    xml = (
        '<View><Labels name="label" toName="image"><Label value="Dog"/></Labels>'
        '<Image name="image" value="$image"/><Brush name="brush" toName="image"/></View>'
    )
    (found,), left_out = read(region(DOG, "brush", "Dog", config=xml), xml)
    assert (found.label, left_out) == ("Dog", {})
    assert same(found.mask, DOG)


@pytest.mark.parametrize("kind", recommended_configs.KINDS)
def test_a_region_of_each_recommended_config_is_one_object(kind: recommended_configs.Kind) -> None:
    xml = recommended_configs.label_config(["Cat", "Guide dog"], kind)
    (control,) = labeling_config.parse(xml).outputs
    (found,), left_out = read(region(DOG, control.name, "Guide dog", config=xml), xml)
    assert (found.label, left_out) == ("Guide dog", {})
    assert iou(found.mask, DOG) > (0.3 if kind == "boxes" else 0.9)


def test_what_is_painted_by_hand_beside_a_list_of_labels_is_one_object() -> None:
    xml = recommended_configs.label_config(["Cat", "Guide dog"], "masks")
    (labelled,) = region(DOG, "mask", "Guide dog", config=xml)
    rle = {"format": "rle", "rle": labelled["value"]["rle"]}
    painted = {**labelled, "type": "brush", "from_name": "paint", "value": rle}
    (found,), left_out = read([painted, labelled], xml)
    assert (found.label, left_out) == ("Guide dog", {})
    assert same(found.mask, DOG)


def test_entries_that_accepting_adds_to_a_region_are_no_objects() -> None:
    (own,) = region(DOG, "brush", "Dog")
    rle = {"format": "rle", "rle": own["value"]["rle"]}
    ghosts = [
        {**own, "type": "keypointlabels", "from_name": "kp", "value": {**rle, "keypointlabels": ["Dog"]}},
        {**own, "type": "polygonlabels", "from_name": "poly", "value": {**rle, "polygonlabels": ["Dog"]}},
    ]
    again = {**own, "from_name": "other brush", "value": {**rle, "brushlabels": ["feline"]}}
    for items in ([own, *ghosts], [*ghosts, own], [own, again]):
        (found,), left_out = read(items)
        assert (found.label, left_out) == ("Dog", {})
        assert same(found.mask, DOG)


def test_a_renamed_polygon_has_its_new_name() -> None:
    """Accepting added the label of the list above the picture; people rename with the list of the ring."""
    xml = recommended_configs.label_config(["Cat", "Dog"], "polygons")
    (own,) = region(DOG, "outline", "Cat", config=xml)
    said = {**own, "type": "labels", "from_name": "label", "value": {**own["value"], "labels": ["Dog"]}}
    for items in ([own, said], [said, own]):
        assert [each.label for each in read(items, xml)[0]] == ["Cat"]
        assert objects.names(items, labeling_config.parse(xml)) == ["Cat"]


def test_a_region_that_only_a_shared_list_names_has_that_name() -> None:
    (own,) = region(DOG, "brush", config=CONFIG)
    said = {**own, "type": "labels", "from_name": "label", "value": {"labels": ["Dog"]}}
    assert [each.label for each in read([own, said])[0]] == ["Dog"]


def test_a_region_with_several_labels_is_an_object_of_each() -> None:
    found, _ = read(region(DOG, "brush", "Dog", "feline"))
    assert [each.label for each in found] == ["Dog", "feline"]
    assert same(found[0].mask, found[1].mask)


def test_what_names_a_region_without_labels_is_its_text_or_its_choice() -> None:
    (own,) = region(DOG, "brush", config=FREE)
    text = {**own, "type": "textarea", "from_name": "said", "value": {"text": ["  grey dog "]}}
    choice = {**own, "type": "taxonomy", "from_name": "kind", "value": {"taxonomy": [["Animal", "Dog"]]}}
    assert [each.label for each in read([own, text], FREE)[0]] == ["grey dog"]
    assert [each.label for each in read([own, choice], FREE)[0]] == ["Animal / Dog"]
    assert read([own], FREE) == ([], {"a region without a label": 1})


def test_clicks_and_boxes_of_smart_tools_are_no_objects_and_are_counted() -> None:
    (box,) = region(DOG, "rect", "Dog", number="box")
    items = [
        click(),
        click(id="negative", is_positive=False),
        {**click(id="placed"), "is_positive": None},
        {**box, "from_name": "prompt"},
        *region(CAT, "brush", "feline"),
    ]
    del items[2]["is_positive"]
    found, left_out = read(items)
    assert [each.label for each in found] == ["feline"]
    assert left_out == {
        "a click of a smart tool": 2,
        "a keypoint, which has no pixels": 1,
        "a box of a smart tool": 1,
    }


def test_what_cannot_be_read_is_counted_and_takes_nothing_along() -> None:
    other_size = region(disc(10, 10, 5, width=40, height=30), "brush", "Dog", number="size")
    (broken,) = region(DOG, "brush", "Dog", number="broken")
    broken["value"] = {"format": "rle", "rle": [1, 2, 300], "brushlabels": ["Dog"]}
    (point,) = region(DOG, "poly", "Dog", number="point")
    point["value"]["points"] = [[1, 2], ["x", {}], [3, 4]]
    (empty,) = region(DOG, "brush", "Dog", number="empty")
    empty["value"]["rle"] = brush_rle.encode(np.zeros_like(DOG))
    (line,) = region(DOG, "vector", "Dog", number="line")
    line["value"]["closed"] = False
    (elsewhere,) = region(DOG, "brush", "Dog", number="elsewhere")
    elsewhere["to_name"] = "other"
    items = [
        *other_size,
        broken,
        point,
        empty,
        line,
        elsewhere,
        None,
        {"type": 7},
        *region(CAT, "brush", "Dog"),
    ]
    found, left_out = read(items)
    assert len(found) == 1
    assert sum(left_out.values()) == 6
    said = "a brush that cannot be read: run lengths of an image of another size"
    assert left_out[said] == 1
    assert left_out["a brush without pixels"] == 1
    assert left_out["a vector without pixels"] == 1
    assert left_out["a region of another image of the task"] == 1


def test_a_task_may_not_take_for_ever() -> None:
    items = [each for n in range(3) for each in region(DOG, "brush", "Dog", number=f"n{n}")]
    with pytest.raises(TooMuch):
        list(
            objects.read(
                items, labeling_config.parse(CONFIG), (HEIGHT, WIDTH), ReadingBudget(200_000), Counter()
            )
        )
    (own,) = region(CAT, "poly", "Dog")
    own["value"]["polygonlabels"] = [f"label {number}" for number in range(500)]
    with pytest.raises(TooMuch):
        list(
            objects.read(
                [own], labeling_config.parse(CONFIG), (HEIGHT, WIDTH), ReadingBudget(2_000_000), Counter()
            )
        )


def test_the_size_is_what_most_results_say() -> None:
    config = labeling_config.parse(CONFIG)
    small = region(disc(10, 10, 5, width=40, height=30), "brush", "Dog")
    many = [*small, *region(DOG, "brush", "Dog"), *region(CAT, "brush", "Dog")]
    assert objects.size(many, config) == (HEIGHT, WIDTH)
    odd: list[Any] = [{"original_width": True, "original_height": 5}, {"original_width": 5}, "text", None]
    odd += [{"original_width": float("nan"), "original_height": 5}]
    odd += [{"original_width": 10**400, "original_height": 10**400}]
    odd = [{**each, "to_name": "image"} if isinstance(each, dict) else each for each in odd]
    assert objects.size(odd, config) is None
    told = {"original_width": 6.0, "original_height": 5, "to_name": "image"}
    assert objects.size([*odd, told], config) == (5, 6)
    assert objects.size([{**told, "to_name": "other"}], config) is None
    assert objects.size([], config) is None


def test_scores_are_the_models_alone() -> None:
    items = region(CAT, "brush", "feline")
    assert [each.score for each in read(items, scored=True)[0]] == [0.5]
    assert [each.score for each in read(items)[0]] == [None]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats(width=16) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("rle", "points", "vertices", "x", "y", "width", "height", "radiusX", "radiusY", "imageDataURL",
        "touches", "closed", "rotation", "brushlabels", "polygonlabels", "labels", "text")  # fmt: skip
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["a", "b"]) | JSON,
        "type": st.sampled_from(["brushlabels", "polygonlabels", "rectangle", "ellipselabels", "labels"])
        | JSON,
        "from_name": st.sampled_from(["brush", "poly", "prompt"]) | JSON,
        "to_name": st.just("image") | JSON,
        "value": st.dictionaries(st.sampled_from(KEYS), JSON, max_size=6) | JSON,
        "original_width": JSON,
        "original_height": JSON,
    },
)


@pytest.mark.slow
@given(st.lists(ENTRIES | JSON, max_size=4))
@settings(deadline=None, max_examples=150)
def test_whatever_a_result_list_holds_nothing_breaks(items: list[Any]) -> None:
    for config in (CONFIG, FREE):
        found, _ = read(items, config)
        objects.size(items, labeling_config.parse(config))
        objects.names(items, labeling_config.parse(config))
        assert all(each.mask.any() for each in found)


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=20)))
@settings(deadline=None, max_examples=60)
def test_any_mask_comes_back_from_a_brush_to_the_pixel(mask: Mask) -> None:
    items = region(mask, "brush", "Dog")
    left_out = Counter[str]()
    height, width = mask.shape
    found = list(
        objects.read(items, labeling_config.parse(CONFIG), (height, width), ReadingBudget(), left_out)
    )
    assert len(found) == int(mask.any())
    assert all(same(each.mask, mask) for each in found)
