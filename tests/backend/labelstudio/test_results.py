import base64
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image

from backend.labelstudio import labeling_config, region_reading, results
from model.segmentation.non_maximum_suppression import iou
from model.types import Mask
from tests.support.detections import disc
from tests.support.labeling_configs import CONFIG

masks = arrays.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)))


EXACT = ("brush", "bitmask")


def there_and_back(mask: Mask, shape: str, *, compact: bool = False) -> Mask:
    value = json.loads(json.dumps(results.encode(mask, shape, compact=compact)))
    decoded = region_reading.decode({"type": shape, "value": value}, (mask.shape[0], mask.shape[1]))
    assert decoded is not None
    return decoded


@given(masks, st.sampled_from(EXACT), st.booleans())
def test_a_brush_and_a_bitmask_are_the_mask_exactly(mask: Mask, shape: str, compact: bool) -> None:
    if not mask.any():
        assert results.encode(mask, shape, compact=compact) is None
        return
    assert (there_and_back(mask, shape, compact=compact) == mask).all()


@given(masks.filter(lambda mask: bool(mask.any())))
def test_the_sdk_reads_our_brush(mask: Mask) -> None:
    value = results.encode(mask, "brush")
    assert value is not None
    assert all(type(number) is int for number in value["rle"])
    alpha = decode_rle(value["rle"]).reshape(*mask.shape, 4)[:, :, 3]
    assert (alpha == mask * 255).all()


def test_a_click_is_never_answered_with_a_mask_that_label_studio_would_not_save() -> None:
    """1.23.2 submits the first `maskDataURL` of a region, whatever replaced it since."""
    assert results.encode(disc(20, 30, 9), "brush", compact=True) == results.encode(disc(20, 30, 9), "brush")


@given(masks.filter(lambda mask: bool(mask.any())))
def test_anybody_reads_our_png(mask: Mask) -> None:
    """Opaque where the mask is, and white: the editor looks at alpha in one place and at red in another."""
    bitmask = results.encode(mask, "bitmask")
    assert bitmask is not None
    picture = Image.open(io.BytesIO(base64.b64decode(bitmask["imageDataURL"].partition(",")[2])))
    red, _, _, alpha = np.moveaxis(np.asarray(picture.convert("RGBA")), -1, 0)
    assert (alpha == mask * 255).all()
    assert (red == 255).all()


@given(masks.filter(lambda mask: bool(mask.any())))
def test_a_rectangle_is_the_tight_box(mask: Mask) -> None:
    rows, columns = np.nonzero(mask)
    box = np.zeros_like(mask)
    box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    assert (there_and_back(mask, "rectangle") == box).all()


@pytest.mark.parametrize("shape", ["polygon", "vector", "ellipse"])
def test_an_outline_comes_back_alike(shape: str) -> None:
    assert iou(there_and_back(disc(40, 30, 20), shape), disc(40, 30, 20)) > 0.97


@given(
    masks.filter(lambda mask: bool(mask.any())), st.sampled_from(["polygon", "vector", "ellipse", "keypoint"])
)
def test_f23_coordinates_are_plain_numbers_within_what_label_studio_takes(mask: Mask, shape: str) -> None:
    value = results.encode(mask, shape, compact=True)
    assert value is not None
    points = value.get("points") or [[v["x"], v["y"]] for v in value.get("vertices", [value])]
    assert all(type(number) is float and 0 <= number <= 100 for point in points for number in point)
    assert value.get("radiusX", 50.0) <= 50
    assert value.get("radiusY", 50.0) <= 50


def test_f22_a_mask_of_several_parts_with_a_hole_is_one_ring() -> None:
    mask = (disc(25, 30, 20) & ~disc(25, 30, 8)) | disc(65, 30, 8)
    for shape in ("polygon", "vector"):
        assert iou(there_and_back(mask, shape), mask) > 0.95


def test_an_ellipse_that_does_not_fit_is_for_clicks_only() -> None:
    apart = disc(15, 30, 10) | disc(65, 30, 10)
    assert results.encode(apart, "ellipse") is None
    assert results.encode(apart, "ellipse", compact=True) is not None


def test_a_keypoint_is_the_deepest_pixel_and_reads_as_no_mask() -> None:
    value = results.encode(disc(30.5, 20.5, 9), "keypoint")
    assert value == {"x": pytest.approx(100 * 30.5 / 80), "y": pytest.approx(100 * 20.5 / 60), "width": 0.75}
    assert region_reading.decode({"type": "keypointlabels", "value": value}, (60, 80)) is None


@pytest.mark.parametrize("shape", labeling_config.SHAPES)
def test_f22_an_empty_mask_is_no_region(shape: str) -> None:
    assert results.encode(np.zeros((6, 8), bool), shape) is None


OWN_LABELS = '<{tag}Labels name="c" toName="i" smart="false"><Label value="Cat"/></{tag}Labels>'


SHARED_LABELS = (
    '<Labels name="l" toName="i"><Label value="Cat"/></Labels><{tag} name="c" toName="i" smart="false"/>'
)


@pytest.mark.parametrize("tags", [OWN_LABELS, SHARED_LABELS])
@pytest.mark.parametrize("tag", labeling_config.SHAPES.values())
def test_label_studio_accepts_every_region(tag: str, tags: str) -> None:
    xml = f'<View><Image name="i" value="$i"/>{tags.format(tag=tag)}</View>'
    (control,) = labeling_config.parse(xml).outputs
    # At the edge, where a rounded percentage might come out above 100.
    made = results.region(disc(70, 50, 12), control=control, labels=["Cat"], region_id="r" * 20, score=0.5)
    made = json.loads(json.dumps(made))
    assert len(made) == (1 if tags == OWN_LABELS else 2)
    prediction = {"result": made, "score": made[0]["score"], "model_version": "v1"}
    assert LabelInterface(xml).validate_prediction(prediction, return_errors=True) == []
    for result in made:
        assert (result["id"], result["origin"], result["score"]) == ("r" * 20, "prediction", 0.5)
        assert (result["original_width"], result["original_height"], result["image_rotation"]) == (80, 60, 0)
    assert made[-1]["value"][made[-1]["type"]] == ["Cat"]


@pytest.mark.parametrize("score", [0.5, 1.0000001, -1, float("nan"), float("inf"), np.float32(0.3)])
def test_f23_a_score_is_a_plain_number_from_0_to_1(score: float) -> None:
    control = labeling_config.parse(CONFIG).outputs[0]
    (made,) = results.region(disc(9, 9, 5), control=control, labels=["Cat"], region_id="r" * 20, score=score)
    assert type(made["score"]) is float
    assert 0 <= made["score"] <= 1


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


def test_hashes_tell_masks_apart() -> None:
    mask = disc(40, 30, 9)
    assert results.mask_hash(mask) == results.mask_hash(mask.copy())
    assert results.mask_hash(mask) != results.mask_hash(~mask)
    assert results.mask_hash(np.zeros((2, 6), bool)) != results.mask_hash(np.zeros((3, 4), bool))


def test_the_config_of_these_tests_is_valid() -> None:
    assert [c.name for c in labeling_config.parse(CONFIG).outputs] == ["brush", "poly"]
