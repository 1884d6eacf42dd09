import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface
from numpy.typing import NDArray

from backend import labels, results
from model.types import Mask
from tests.backend.conftest import CONFIG, disc

KINDS = ("brushlabels", "polygonlabels", "rectanglelabels")
masks = arrays.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)))


def iou(a: Mask, b: Mask) -> float:
    return float((a & b).sum() / (a | b).sum())


def there_and_back(mask: Mask, kind: str) -> Mask:
    value = json.loads(json.dumps(results.encode(mask, kind)))
    decoded = results.decode({"type": kind, "value": value}, (mask.shape[0], mask.shape[1]))
    assert decoded is not None
    return decoded


@given(masks)
def test_a_brush_is_the_mask_exactly(mask: Mask) -> None:
    if not mask.any():
        assert results.encode(mask, "brushlabels") is None
        return
    assert (there_and_back(mask, "brushlabels") == mask).all()


@given(masks.filter(lambda mask: bool(mask.any())))
def test_the_sdk_reads_our_brush(mask: Mask) -> None:
    value = results.encode(mask, "brushlabels")
    assert value is not None
    assert all(type(number) is int for number in value["rle"])
    alpha = decode_rle(value["rle"]).reshape(*mask.shape, 4)[:, :, 3]
    assert (alpha == mask * 255).all()


@given(masks.filter(lambda mask: bool(mask.any())))
def test_a_rectangle_is_the_tight_box(mask: Mask) -> None:
    rows, columns = np.nonzero(mask)
    box = np.zeros_like(mask)
    box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    assert (there_and_back(mask, "rectanglelabels") == box).all()


@given(masks.filter(lambda mask: bool(mask.any())))
@example(np.ones((1, 1), bool))
@example(np.eye(9, dtype=bool))
def test_any_mask_gives_a_valid_ring(mask: Mask) -> None:
    value = results.encode(mask, "polygonlabels")
    assert value is not None
    points = np.array(value["points"])
    assert len(points) >= 3
    assert ((points >= 0) & (points <= 100)).all()


@pytest.mark.parametrize("radius", [3, 8, 25])
def test_a_polygon_follows_the_outline(radius: int) -> None:
    mask = disc(40, 30, radius)
    decoded = there_and_back(mask, "polygonlabels")
    assert iou(decoded, mask) > (0.8 if radius == 3 else 0.9)


def test_a_square_polygon_is_exact() -> None:
    mask = np.zeros((60, 80), bool)
    mask[10:30, 20:50] = True
    assert (there_and_back(mask, "polygonlabels") == mask).all()


def test_of_several_parts_the_polygon_is_the_largest_without_its_holes() -> None:
    large = disc(25, 30, 15)
    mask = (large & ~disc(25, 30, 5)) | disc(65, 30, 6)
    assert iou(there_and_back(mask, "polygonlabels"), large) > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_mask_is_no_region(kind: str) -> None:
    assert results.encode(np.zeros((6, 8), bool), kind) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("score", [0.5, 1.0000001, -1, float("nan"), float("inf"), np.float32(0.3)])
def test_label_studio_accepts_every_region(kind: str, score: float) -> None:
    tag = {k.lower(): k for k in labels.OUTPUT_TAGS.values()}[kind]
    xml = f'<View><Image name="i" value="$i"/><{tag} name="c" toName="i"><Label value="Cat"/></{tag}></View>'
    control = labels.parse(xml).outputs[0]
    region = results.region(disc(79, 59, 9), control=control, label="Cat", region_id="r" * 20, score=score)
    assert region is not None
    region = json.loads(json.dumps(region))
    prediction = {"result": [region], "score": region["score"], "model_version": "v1"}
    assert LabelInterface(xml).validate_prediction(prediction, return_errors=True) == []
    assert region["origin"] == "prediction"
    assert (region["original_width"], region["original_height"], region["image_rotation"]) == (80, 60, 0)
    assert 0 <= region["score"] <= 1


def test_a_rectangle_may_be_turned() -> None:
    value = {"x": 50, "y": 20, "width": 20, "height": 20, "rotation": 90}
    mask = results.decode({"type": "rectanglelabels", "value": value}, (100, 100))
    assert mask is not None
    rows, columns = np.nonzero(mask)
    # About its first corner, clockwise: now it lies left of x = 50.
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (30, 49, 20, 39)


@pytest.mark.parametrize(
    "result",
    [
        {},
        {"type": "brushlabels", "value": None},
        {"type": "brushlabels", "value": {"format": "rle", "rle": None}},
        {"type": "brushlabels", "value": {"format": "rle", "rle": []}},
        {"type": "brushlabels", "value": {"format": "rle", "rle": [1, 2, 3]}},
        {"type": "brushlabels", "value": {"format": "rle", "rle": [0, 0, 0, 192, 58, 55]}},
        {"type": "brushlabels", "value": {"format": "rle", "rle": [0, 0, 0, 192, 58, 55, 0, 0, 0]}},
        {"type": "brushlabels", "value": {"format": "rle", "rle": [256] * 20}},
        {"type": "brushlabels", "value": {"format": "rle", "rle": [255] * 20}},  # asks for 4 GB
        {"type": "brushlabels", "value": {"touches": [{"relativePoints": [1, 2]}]}},
        {"type": "brushlabels", "value": {"maskDataURL": "data:image/png;base64,AAAA"}},
        {"type": "polygonlabels", "value": {"points": [[1, 2], [3, 4]]}},
        {"type": "polygonlabels", "value": {"points": [[1, 2], [3, "x"], [4, 5]]}},
        {"type": "polygonlabels", "value": {"points": [[1, 2], [3, float("nan")], [4, 5]]}},
        {"type": "polygonlabels", "value": {"points": [[1, 2]] * 30_000}},
        {"type": "rectanglelabels", "value": {"x": 1, "y": 1, "width": 0, "height": 9}},
        {"type": "rectanglelabels", "value": {"x": 1e308, "y": 1, "width": 1e308, "height": 9}},
        {"type": "rectanglelabels", "value": {"x": 1, "y": 1, "width": 5}},
        {"type": "keypointlabels", "value": {"x": 1, "y": 1}},
    ],
)
def test_what_is_no_mask_of_this_image_decodes_to_nothing(result: dict[str, Any]) -> None:
    assert results.decode(result, (6, 8)) is None


def test_a_brush_of_another_size_decodes_to_nothing() -> None:
    value = results.encode(disc(40, 30, 9), "brushlabels")
    assert results.decode({"type": "brushlabels", "value": value}, (60, 79)) is None


@given(st.lists(st.integers(0, 255), max_size=60))
def test_hostile_rle_never_raises(tail: list[int]) -> None:
    rle = [0, 0, 0, 192, *tail]  # of 6 x 8 pixels
    mask = results.decode({"type": "brushlabels", "value": {"rle": rle}}, (6, 8))
    assert mask is None or mask.shape == (6, 8)


@given(st.lists(st.tuples(*[st.floats(-1e9, 1e9)] * 2), min_size=3, max_size=8))
def test_hostile_rings_never_raise(points: list[tuple[float, float]]) -> None:
    value = {"points": [list(point) for point in points]}
    mask = results.decode({"type": "polygonlabels", "value": value}, (6, 8))
    assert mask is None or mask.shape == (6, 8)


def test_the_fill_rule_is_even_odd() -> None:
    ring: NDArray[np.float64] = np.array([[1, 1], [7, 1], [7, 5], [1, 5]], float)
    mask = results.fill(ring, (6, 8))
    assert mask.sum() == 24
    assert mask[1:5, 1:7].all()


def test_ids_are_long_stable_and_one_per_control() -> None:
    one = results.prediction_id("image", "v1", "brush", "cat", 0)
    assert len(one) >= 16
    assert one == results.prediction_id("image", "v1", "brush", "cat", 0)
    others = {
        results.prediction_id(*key)
        for key in (
            ("image2", "v1", "brush", "cat", 0),
            ("image", "v2", "brush", "cat", 0),
            ("image", "v1", "poly", "cat", 0),
            ("image", "v1", "brush", "dog", 0),
            ("image", "v1", "brush", "cat", 1),
        )
    }
    assert len(others) == 5
    assert one not in others
    assert len({results.new_id() for _ in range(1000)}) == 1000
    assert len(results.new_id()) >= 16


def test_hashes_tell_masks_and_images_apart() -> None:
    mask = disc(40, 30, 9)
    assert results.mask_hash(mask) == results.mask_hash(mask.copy())
    assert results.mask_hash(mask) != results.mask_hash(~mask)
    assert results.mask_hash(np.zeros((2, 6), bool)) != results.mask_hash(np.zeros((3, 4), bool))
    image = np.zeros((4, 6, 3), np.uint8)
    assert results.image_hash(image) != results.image_hash(image.reshape(6, 4, 3))


def test_the_config_of_these_tests_is_valid() -> None:
    assert [c.name for c in labels.parse(CONFIG).outputs] == ["brush", "poly"]
