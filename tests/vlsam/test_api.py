"""The Python API on the built-in weights, as its users write it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from pycocotools.coco import COCO

from tests.support.paths import ROOT
from vlsam import (
    PROFILES,
    VLSAM,
    Detection,
    ImageError,
    ModelLoadError,
    Prompt,
    PromptError,
    VLSAMError,
    draw,
    read_image,
)

STREET = ROOT / "model/builtin/samples/scene-04.jpg"


def same(first: list[Detection], second: list[Detection]) -> bool:
    return [d.to_json() for d in first] == [d.to_json() for d in second]


@pytest.fixture(scope="module")
def found(builtin: VLSAM) -> list[Detection]:
    return builtin.annotate(STREET)


@pytest.mark.slow
def test_a_path_a_pillow_image_and_an_array_give_the_same(builtin: VLSAM, found: list[Detection]) -> None:
    assert found
    assert same(builtin.annotate(str(STREET)), found)
    assert same(builtin.annotate(read_image(STREET)), found)
    with Pillow.open(STREET) as image:
        assert same(builtin.annotate(image), found)


@pytest.mark.slow
def test_exif_is_applied_wherever_an_image_is_taken(builtin: VLSAM, tmp_path: Path) -> None:
    """The photograph lies on its side in the file, and its EXIF data say so."""
    upright = read_image(STREET)
    exif = Pillow.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "turned.png"
    Pillow.fromarray(np.rot90(upright)).save(turned, exif=exif)
    click = Prompt.of((120, 80, 1))
    assert same(builtin.annotate(turned), builtin.annotate(upright))
    assert same(builtin.find(turned, "the dog"), builtin.find(upright, "the dog"))
    assert same([builtin.refine(turned, click)], [builtin.refine(upright, click)])
    for tensor, expected in zip(
        builtin.encode(turned).tensors.values(), builtin.encode(upright).tensors.values(), strict=True
    ):
        assert np.array_equal(tensor, expected)


@pytest.mark.slow
def test_one_embedding_answers_any_number_of_prompts(builtin: VLSAM) -> None:
    embedding = builtin.encode(STREET)
    for prompt in (
        Prompt.of((120, 80, 1)),
        Prompt.of(box=(40, 30, 200, 180)),
        Prompt.of((9, 9, 1), (99, 9, 0)),
    ):
        assert same([builtin.refine(embedding, prompt)], [builtin.refine(STREET, prompt)])


def test_a_detection_as_json_and_as_coco(found: list[Detection], tmp_path: Path) -> None:
    height, width = found[0].mask.shape
    names = sorted({d.term for d in found})
    annotations = [
        d.to_coco(image_id=1, category_id=names.index(d.term), annotation_id=number)
        for number, d in enumerate(found, 1)
    ]
    file = tmp_path / "found.coco.json"
    file.write_text(
        json.dumps(
            {
                "info": {},
                "images": [{"id": 1, "file_name": "street.jpg", "width": width, "height": height}],
                "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
                "annotations": annotations,
            }
        )
    )
    read = COCO(file)
    for detection, annotation in zip(found, read.loadAnns(read.getAnnIds()), strict=True):
        assert np.array_equal(read.annToMask(annotation).astype(bool), detection.mask)
        x0, y0, x1, y1 = detection.box
        assert annotation["bbox"] == [x0, y0, x1 - x0, y1 - y0]
        assert annotation["area"] == detection.mask.sum()
        assert annotation["score"] == detection.score
        assert detection.to_json()["mask"] == annotation["segmentation"]
    assert "id" not in found[0].to_coco(image_id=1, category_id=1)


def test_reprs_fit_on_a_line(builtin: VLSAM, found: list[Detection]) -> None:
    for value in (found[0], found[0].evidence.prompt, builtin.encode(STREET)):
        assert len(repr(value)) < 200


def test_arrays_of_any_layout(builtin: VLSAM) -> None:
    """As OpenCV's BGR reversed, which has negative strides, or what numpy gives of a Pillow image."""
    pixels = read_image(STREET)
    expected = builtin.encode(pixels).tensors["image"]
    read_only = pixels.copy()
    read_only.setflags(write=False)
    for image in (pixels[..., ::-1].copy()[..., ::-1], np.asfortranarray(pixels), read_only):
        assert np.array_equal(builtin.encode(image).tensors["image"], expected)


def test_draw_takes_whatever_annotate_takes(found: list[Detection]) -> None:
    drawn = draw(STREET, found)
    assert drawn.shape == (*found[0].mask.shape, 3)
    assert np.array_equal(drawn, draw(read_image(STREET), found))
    assert not np.array_equal(drawn, read_image(STREET))


@pytest.mark.slow
def test_without_a_name_the_weights_that_ship_are_loaded(builtin: VLSAM) -> None:
    assert VLSAM.load().version == VLSAM.load(PROFILES["builtin"]).version == builtin.version


def test_a_profile_that_there_is_not() -> None:
    with pytest.raises(ModelLoadError, match=r"no profile 'gpu-8': choose one of builtin, gpu-8g, gpu-24g"):
        VLSAM.load("gpu-8")
    with pytest.raises(ModelLoadError, match="no profile None"):
        VLSAM.load(None)  # type: ignore[arg-type]


def test_a_profile_with_a_value_that_is_no_choice() -> None:
    with pytest.raises(ModelLoadError, match="profile 'builtin': '3bit' is none of none, 4bit, 8bit"):
        replace(PROFILES["builtin"], quantization="3bit")  # type: ignore[arg-type]


def test_an_embedding_or_a_detection_of_another_image_is_refused(
    builtin: VLSAM, found: list[Detection]
) -> None:
    other = np.zeros((100, 200, 3), np.uint8)
    message = "embedding is of an image of 200 x 100 pixels, this one has 427 x 549"
    with pytest.raises(ImageError, match=message):
        builtin.annotate(STREET, embedding=builtin.encode(other))
    with pytest.raises(ImageError, match=message):
        builtin.find(STREET, "the guitar", embedding=builtin.encode(other))
    with pytest.raises(ImageError, match=r"mask=549x427.* is not of this image, which is 100x200"):
        draw(other, found)


def test_clicks_and_a_box_from_arrays(builtin: VLSAM) -> None:
    box: Any = np.array([40, 30, 200, 180], np.float32)
    prompt = Prompt.of(*np.array([[120, 80, 1], [9, 9, 0]]), box=box)
    plain = Prompt.of((120, 80, 1), (9, 9, 0), box=(40, 30, 200, 180))
    embedding = builtin.encode(STREET)
    assert same([builtin.refine(embedding, prompt)], [builtin.refine(embedding, plain)])
    json.dumps(builtin.refine(embedding, prompt).to_json())


def test_malformed_clicks_and_boxes() -> None:
    for click in ((3, 4), ("x", 4, 1)):
        with pytest.raises(PromptError, match="a click is x, y and 1 or 0"):
            Prompt.of(click)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="a box is x0, y0, x1, y1"):
        Prompt.of(box=(1, 2, 3))  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="x0 <= x1 and y0 <= y1"):
        Prompt.of(box=(200, 180, 40, 30))


def test_every_error_has_one_root(builtin: VLSAM) -> None:
    with pytest.raises(ImageError, match=r"'nowhere\.jpg' cannot be read"):
        builtin.annotate("nowhere.jpg")
    with pytest.raises(ImageError, match="not float64"):
        builtin.encode(np.zeros((4, 4, 3)))  # type: ignore[arg-type]
    with pytest.raises(PromptError):
        builtin.refine(STREET, Prompt.of())
    with pytest.raises(PromptError, match="no level 'half': choose one of auto, whole, part, subpart"):
        builtin.refine(STREET, Prompt.of((9, 9, 1)), level="half")  # type: ignore[arg-type]
    assert issubclass(ImageError, VLSAMError)
    assert issubclass(PromptError, VLSAMError)
