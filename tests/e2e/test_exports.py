"""What Label Studio's own exports make of our regions."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from backend import labels, results, shapes
from backend.studio import Studio
from model.merge import iou
from model.types import Mask, box_of
from tests.e2e.conftest import MakeProject

WIDTH, HEIGHT = 200, 150
LABELS = '<Label value="Cat"/><Label value="Dog"/>'
# With KeyPointLabels in the config Label Studio 1.23.2 exports keypoints alone as YOLO, and COCO only where
# every label has a `model_index`.
OWN = "".join(
    f'<{tag}Labels name="{shape}" toName="image">{LABELS}</{tag}Labels>'
    for shape, tag in labels.SHAPES.items()
    if shape != "keypoint"
)
SHARED = f'<Labels name="label" toName="image">{LABELS}</Labels>' + "".join(
    f'<{tag} name="{shape}" toName="image" smart="false"/>' for shape, tag in labels.SHAPES.items()
)
rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
CAT: Mask = ((columns - 70) / 50) ** 2 + ((rows - 80) / 40) ** 2 <= 1
DOG: Mask = (columns - 150) ** 2 + (rows - 40) ** 2 <= 30**2
DOG = (DOG & ~((columns - 150) ** 2 + (rows - 40) ** 2 <= 12**2)) | (
    (columns - 150) ** 2 + (rows - 120) ** 2 <= 15**2
)


class Exported:
    """A project whose one annotation has a cat and a dog of each shape, and its exports."""

    def __init__(self, studio: Studio, make_project: MakeProject, style: str, image: Path) -> None:
        self.config = f'<View><Image name="image" value="$image"/>{OWN if style == "own" else SHARED}</View>'
        self.regions = [
            result
            for control in labels.parse(self.config).outputs
            for label, mask in (("Cat", CAT), ("Dog", DOG))
            for result in results.region(
                mask,
                control=control,
                labels=[label],
                region_id=f"{control.name}-{label}-{'0' * 12}",
                score=0.5,
            )
        ]
        self.studio = studio
        project = make_project(f"Exports of {style} labels", self.config, [image])
        self.id, self.task = project.id, project.tasks[0]
        studio.submit(self.task, self.regions)

    def files(self, kind: str) -> dict[str, bytes]:
        archive = zipfile.ZipFile(io.BytesIO(self.studio.export(self.id, kind)))
        return {name: archive.read(name) for name in archive.namelist()}

    def coco(self, kind: str = "COCO") -> list[tuple[str, dict[str, Any]]]:
        files = self.files(kind)
        (name,) = (name for name in files if name.endswith(".json"))
        held = json.loads(files[name])
        names = {category["id"]: category["name"] for category in held["categories"]}
        return [(names[found["category_id"]], found) for found in held["annotations"]]

    def yolo(self) -> list[tuple[str, list[float]]]:
        files = self.files("YOLO")
        names = files["classes.txt"].decode().split()
        (text,) = (held.decode() for name, held in files.items() if name.startswith("labels/") and held)
        lines = [line.split() for line in text.splitlines()]
        return [(names[int(first)], [float(number) for number in rest]) for first, *rest in lines]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exports") / "exports.png"
    Image.new("RGB", (WIDTH, HEIGHT), "white").save(path)
    return path


@pytest.fixture(scope="module")
def own(studio: Studio, make_project: MakeProject, image: Path) -> Exported:
    return Exported(studio, make_project, "own", image)


@pytest.fixture(scope="module")
def shared(studio: Studio, make_project: MakeProject, image: Path) -> Exported:
    return Exported(studio, make_project, "shared", image)


def box(x: float, y: float, width: float, height: float) -> tuple[float, ...]:
    return (x, y, x + width, y + height)


def mask_of(name: str) -> Mask:
    return {"Cat": CAT, "Dog": DOG}[name]


def test_json_holds_every_shape_as_it_was_submitted(own: Exported, shared: Exported) -> None:
    for project in (own, shared):
        (task,) = json.loads(project.studio.export(project.id, "JSON"))
        held = task["annotations"][0]["result"]
        assert [(r["id"], r["type"], r["value"]) for r in held] == [
            (r["id"], r["type"], r["value"]) for r in project.regions
        ]
        drawn = [r for r in held if r["type"].removesuffix("labels") not in ("", "keypoint")]
        assert len(drawn) >= 11
        for result in drawn:
            decoded = results.decode(result, (HEIGHT, WIDTH))
            assert decoded is not None
            wanted = mask_of("Cat" if "Cat" in result["id"] else "Dog")
            least = 0.4 if "rectangle" in result["type"] else 0.96
            assert iou(decoded, wanted) > least


def test_coco_has_the_polygons_and_the_boxes(own: Exported) -> None:
    found = own.coco()
    polygons = [(name, each) for name, each in found if each["segmentation"]]
    boxes = [(name, each) for name, each in found if not each["segmentation"] and each["area"]]
    assert sorted(name for name, _ in polygons) == sorted(name for name, _ in boxes) == ["Cat", "Dog"]
    for name, each in polygons:
        drawn = coco.decode(coco.merge(coco.frPyObjects(each["segmentation"], HEIGHT, WIDTH))) == 1
        assert iou(drawn, mask_of(name)) > 0.96
        assert each["area"] == pytest.approx(mask_of(name).sum(), rel=0.03)
    for name, each in boxes:
        assert box(*each["bbox"]) == pytest.approx(box_of(mask_of(name)), abs=1e-3)


def test_yolo_has_the_polygons_and_the_boxes(own: Exported) -> None:
    found = own.yolo()
    assert sorted((name, len(numbers) == 4) for name, numbers in found) == [
        (name, is_box) for name in ("Cat", "Dog") for is_box in (False, True)
    ]
    for name, numbers in found:
        points = np.array(numbers).reshape(-1, 2) * (WIDTH, HEIGHT)
        if len(numbers) == 4:
            (x, y), (width, height) = points
            assert box(x - width / 2, y - height / 2, width, height) == pytest.approx(
                box_of(mask_of(name)), abs=1e-3
            )
        else:
            assert iou(shapes.fill(points, (HEIGHT, WIDTH)), mask_of(name)) > 0.96


def test_brushes_come_out_to_the_pixel(own: Exported, shared: Exported) -> None:
    for project in (own, shared):
        pictures = {
            name: np.asarray(Image.open(io.BytesIO(held)))
            for name, held in project.files("BRUSH_TO_PNG").items()
            if name.endswith(".png")
        }
        for label in ("Cat", "Dog"):
            (picture,) = (picture for name, picture in pictures.items() if f"-{label}-" in name)
            assert ((picture == 255) == mask_of(label)).all()


def test_brushes_as_coco(own: Exported) -> None:
    """Polygons and boxes come along; a brush has a contour for each part, and its holes are dropped."""
    drawn = [
        coco.decode(coco.merge(coco.frPyObjects(each["segmentation"], HEIGHT, WIDTH))) == 1
        for name, each in own.coco("BRUSH_TO_COCO")
        if name == "Cat" and each["segmentation"]
    ]
    assert sorted(iou(mask, CAT) > 0.94 for mask in drawn)[-2:] == [True, True]  # the brush and the polygon


def test_boxes_that_take_their_labels_from_a_labels_tag(shared: Exported) -> None:
    found = [(name, each["bbox"]) for name, each in shared.coco() if each["bbox"]]
    for name, bbox in found:
        assert box(*bbox) == pytest.approx(box_of(mask_of(name)), abs=1e-3)
    assert sorted(name for name, _ in found) == ["Cat", "Dog"]
