"""What Label Studio's own exports make of regions of the configs in docs/label-studio/configs.md."""

import csv
import io
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from backend.commands.cli import main
from backend.labelstudio import labeling_config, region_reading, results
from backend.labelstudio.recommended_configs import KINDS, Kind, LabelTag, label_config, tags_of
from backend.labelstudio_api.client import StudioError
from model.segmentation.non_maximum_suppression import iou
from model.types import Mask, box_of
from tests.support.detections import ring_mask
from tests.support.label_studio_user import Studio
from tests.support.studio_servers import OWNER, MakeProject, Servers

PAGE = (Path(__file__).parents[2] / "docs/label-studio/configs.md").read_text()
WIDTH, HEIGHT = 200, 150
SIZE = np.array((WIDTH, HEIGHT))
rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5


def disc(x: float, y: float, radius: float) -> Mask:
    mask: Mask = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    return mask


ONE_PIECE = ((columns - 70) / 50) ** 2 + ((rows - 80) / 40) ** 2 <= 1
TWO_PARTS = (disc(150, 40, 30) & ~disc(150, 40, 12)) | disc(150, 120, 15)  # the larger one with a hole
FILLED = disc(150, 40, 30) | disc(150, 120, 15)

# What Label Studio 1.23.2 offers for each recommended config, beside JSON, CSV and the like; for each the
# words of the page's table.
HOLDS: dict[str, dict[Kind, str]] = {
    "COCO": {"polygons": "the ring", "boxes": "the box"},
    "YOLO": {"polygons": "the ring", "boxes": "the box"},
    "YOLO_OBB": {"polygons": "the ring", "boxes": "the box's corners"},
    "VOC": {"boxes": "the box, in whole pixels"},
    "BRUSH_TO_COCO": {"masks": "a polygon for each part, without holes"},
    "BRUSH_TO_PNG": {"masks": "each mask, to the pixel"},
    "BRUSH_TO_NUMPY": {"masks": "each mask, to the pixel"},
}
TITLES = {
    "COCO": "COCO",
    "YOLO": "YOLO",
    "YOLO_OBB": "YOLOv8 OBB",
    "VOC": "Pascal VOC XML",
    "BRUSH_TO_COCO": "Brush labels to COCO",
    "BRUSH_TO_PNG": "Brush labels to PNG",
    "BRUSH_TO_NUMPY": "Brush labels to NumPy",
}
TEXTS = ("JSON", "JSON_MIN", "CSV", "TSV")  # of whatever config


def of_page(kind: Kind) -> str:
    """The config of a kind as the page shows it."""
    (xml,) = re.findall(rf"```sh\nvlsam config [^\n]* --for {kind}\n```\n+```xml\n(.*?)```", PAGE, re.DOTALL)
    return str(xml)


@dataclass(frozen=True)
class Exported:
    """A project with two tasks of two regions each: as we predict them, and as the editor may leave them."""

    studio: Studio
    id: int
    kind: Kind
    masks: dict[str, Mask]  # by label, as the config has them

    def files(self, kind: str) -> dict[str, bytes]:
        archive = zipfile.ZipFile(io.BytesIO(self.studio.export(self.id, kind)))
        return {name: archive.read(name) for name in archive.namelist()}

    def coco(self, kind: str) -> list[list[tuple[str, dict[str, Any]]]]:
        """The annotations of each image, each with the name of its category."""
        (held,) = (
            json.loads(held)
            for name, held in self.files(kind).items()
            if name.endswith(".json") and "notes" not in name
        )
        names = {category["id"]: category["name"] for category in held["categories"]}
        assert sorted(names.values()) == sorted(self.masks)
        return [
            [(names[a["category_id"]], a) for a in held["annotations"] if a["image_id"] == image["id"]]
            for image in held["images"]
        ]

    def yolo(self, kind: str) -> list[list[tuple[str, NDArray[np.float64]]]]:
        """The lines of each image, each with the name of its class."""
        files = self.files(kind)
        names = files["classes.txt"].decode().splitlines()
        assert sorted(names) == sorted(self.masks)
        lines = [
            [line.split() for line in held.decode().splitlines()]
            for name, held in files.items()
            if name.startswith("labels/") and name.endswith(".txt")
        ]
        return [[(names[int(first)], np.array(rest, float)) for first, *rest in each] for each in lines]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("exports")
    paths = [folder / "predicted.png", folder / "edited.png"]
    for path in paths:
        Image.new("RGB", (WIDTH, HEIGHT), "white").save(path)
    return paths


@pytest.fixture(scope="module", params=[(kind, alias) for kind in KINDS for alias in (False, True)], ids=str)
def exported(
    request: pytest.FixtureRequest, studio: Studio, make_project: MakeProject, image: list[Path]
) -> Exported:
    kind, alias = request.param
    config = of_page(kind)
    if alias:
        config = label_config([LabelTag("Dog", "the dog"), LabelTag("Hütchen, <groß>", "cone", "cone")], kind)
    names = [tag.name for tag in tags_of(config)]
    masks = dict(zip(names, (ONE_PIECE, TWO_PARTS), strict=True))
    (control,) = labeling_config.parse(config).outputs
    project = make_project(f"Exports of {kind}", config, image)
    for task in project.tasks:
        regions = [
            result
            for number, (name, mask) in enumerate(masks.items())
            for result in results.region(
                mask, control=control, labels=[name], region_id=f"region-{number}-{task:016}", score=0.5
            )
        ]
        studio.submit(task, as_edited(regions, kind) if task == project.tasks[1] else regions)
    return Exported(studio, project.id, kind, masks)


FRAME = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0, "to_name": "image"}
STATUS = {
    "id": "status00", "from_name": "vlsam_status", "to_name": "said", "type": "textarea",
    "value": {"text": []},
}  # fmt: skip


def left_click(*names: str) -> dict[str, Any]:
    """A click that had no answer, as it stays in an annotation."""
    value = {"x": 35.0, "y": 50.0, "width": 0.5, "labels": list(names)}
    return {**FRAME, "id": "click000", "from_name": "click", "type": "keypoint", "value": value}


def as_edited(regions: list[dict[str, Any]], kind: Kind) -> list[dict[str, Any]]:
    """With all that the editor may save beside the regions, as recorded from 1.23.2 for these configs.

    That is the emptied status, a click that had no answer, with a label or without, and where the chosen
    label is not of the list that the regions are of, that label with each region's shape once more.
    """
    saved = [*regions, STATUS, left_click()]
    if kind == "boxes":
        return saved  # see below for a click with a label
    key = regions[0]["type"]
    name = regions[0]["value"][key]
    point = {**left_click(*name), "id": "click001"}
    chosen = {"masks": ("mask", key), "polygons": ("label", "labels")}[kind]
    saved += [
        point,
        {**point, "from_name": chosen[0], "type": chosen[1], "value": {**point["value"], chosen[1]: name}},
    ]
    for region in regions if kind == "polygons" else ():
        shape = {each: value for each, value in region["value"].items() if each != key}
        again = {**shape, "labels": region["value"][key]}
        saved.append({**region, "from_name": "label", "type": "labels", "value": again})
    return saved


def of(kind: Kind) -> pytest.MarkDecorator:
    """For tests of one kind alone."""
    return pytest.mark.parametrize("exported", [(kind, False), (kind, True)], indirect=True, ids=str)


def drawn(segmentation: list[list[float]]) -> Mask:
    mask: Mask = coco.decode(coco.merge(coco.frPyObjects(segmentation, HEIGHT, WIDTH))) == 1
    return mask


def corners(x: float, y: float, width: float, height: float) -> tuple[float, ...]:
    return (x, y, x + width, y + height)


def centred(numbers: NDArray[np.float64]) -> tuple[float, ...]:
    """The box of a line of YOLO."""
    centre, size = numbers.reshape(2, 2) * SIZE
    return (*(centre - size / 2), *(centre + size / 2))


def around(numbers: NDArray[np.float64]) -> tuple[float, ...]:
    """The box of four corners."""
    points = numbers.reshape(4, 2) * SIZE
    return (*points.min(0), *points.max(0))


def voc(xml: bytes) -> list[tuple[str, tuple[float, ...]]]:
    return [
        (str(found.findtext("name")), tuple(float(side.text or "") for side in found.find("bndbox") or ()))
        for found in ElementTree.fromstring(xml).iter("object")
    ]


def test_what_is_offered_holds_regions_and_is_in_the_readme(exported: Exported) -> None:
    formats = exported.studio.json("GET", f"/api/projects/{exported.id}/export/formats")
    offered = {each["name"] for each in formats if not each.get("disabled")}
    assert {name for name in HOLDS if name in offered} == {
        name for name, kinds in HOLDS.items() if exported.kind in kinds
    }
    assert offered >= set(TEXTS)
    for name, kinds in HOLDS.items():
        cells = " | ".join(kinds.get(kind, "not offered") for kind in KINDS)
        assert f"| {TITLES[name]} | {cells} |" in PAGE


def test_json_holds_what_was_submitted(exported: Exported) -> None:
    (control,) = labeling_config.parse(exported.studio.project(exported.id)["label_config"]).outputs
    for task in json.loads(exported.studio.export(exported.id, "JSON")):
        (annotation,) = task["annotations"]
        regions = [result for result in annotation["result"] if result["id"].startswith("region-")]
        found = [result for result in regions if result["from_name"] == control.name]
        assert len(found) == 2
        for result, mask in zip(found, exported.masks.values(), strict=True):
            decoded = region_reading.decode(result, (HEIGHT, WIDTH))
            assert decoded is not None
            if exported.kind == "boxes":
                assert box_of(decoded) == box_of(mask)
            else:
                assert iou(decoded, mask) > (0.999 if exported.kind == "masks" else 0.96)


@of("polygons")
@pytest.mark.parametrize("name", ["COCO", "YOLO", "YOLO_OBB"])
def test_polygons(exported: Exported, name: str) -> None:
    """The ring goes around both parts and the hole."""
    rings: list[list[tuple[str, Mask]]]
    if name == "COCO":
        rings = [[(label, drawn(a["segmentation"])) for label, a in each] for each in exported.coco(name)]
    else:
        rings = [
            [(label, ring_mask(numbers.reshape(-1, 2) * SIZE, (HEIGHT, WIDTH))) for label, numbers in each]
            for each in exported.yolo(name)
        ]
    assert len(rings) == 2
    for each in rings:
        assert [label for label, _ in each] == list(exported.masks)
        for label, mask in each:
            assert iou(mask, exported.masks[label]) > 0.96


@of("boxes")
@pytest.mark.parametrize("name", ["COCO", "YOLO", "YOLO_OBB", "VOC"])
def test_boxes(exported: Exported, name: str) -> None:
    boxes: list[list[tuple[str, tuple[float, ...]]]]
    if name == "COCO":
        boxes = [[(label, corners(*a["bbox"])) for label, a in each] for each in exported.coco(name)]
    elif name == "VOC":
        boxes = [voc(held) for file, held in exported.files(name).items() if file.endswith(".xml")]
    else:
        box = centred if name == "YOLO" else around
        boxes = [[(label, box(numbers)) for label, numbers in each] for each in exported.yolo(name)]
    assert len(boxes) == 2
    for each in boxes:
        assert [label for label, _ in each] == list(exported.masks)
        for label, found in each:
            assert found == pytest.approx(box_of(exported.masks[label]), abs=1 if name == "VOC" else 1e-3)


@of("masks")
def test_masks_as_coco(exported: Exported) -> None:
    """A brush has a polygon for each part, and its holes are gone."""
    images = exported.coco("BRUSH_TO_COCO")
    assert len(images) == 2
    one, two = exported.masks
    for each in images:
        assert sorted(label for label, _ in each) == sorted([one, two, two])
        for name, mask in ((one, ONE_PIECE), (two, FILLED)):
            polygons = [a["segmentation"][0] for label, a in each if label == name]
            assert iou(drawn(polygons), mask) > 0.94


@of("masks")
@pytest.mark.parametrize("name", ["BRUSH_TO_PNG", "BRUSH_TO_NUMPY"])
def test_masks_as_pictures(exported: Exported, name: str) -> None:
    found = {
        file: np.load(io.BytesIO(held)) if file.endswith(".npy") else np.asarray(Image.open(io.BytesIO(held)))
        for file, held in exported.files(name).items()
        if file.endswith((".npy", ".png"))
    }
    assert len(found) == 4
    for label, mask in exported.masks.items():
        pictures = [picture for file, picture in found.items() if f"-mask-{label}-0." in file]
        assert len(pictures) == 2
        for picture in pictures:
            assert ((picture == 255) == mask).all()


@pytest.mark.parametrize("name", TEXTS[1:])
def test_short_forms_hold_labels_and_shapes(exported: Exported, name: str) -> None:
    control = labeling_config.parse(exported.studio.project(exported.id)["label_config"]).outputs[0]
    text = exported.studio.export(exported.id, name).decode()
    if name == "JSON_MIN":
        tasks = json.loads(text)
    else:
        csv.field_size_limit(10**7)
        tasks = list(csv.DictReader(io.StringIO(text), delimiter="," if name == "CSV" else "\t"))
    assert len(tasks) == 2
    shape = {"masks": "rle", "polygons": "points", "boxes": "width"}[exported.kind]
    key = "labels" if control.labels_name else control.type
    for task in tasks:
        held = {
            column: json.loads(each) if isinstance(each, str) and each.startswith("[") else each
            for column, each in task.items()
        }
        assert len([each for each in held[control.name] if each.get(shape)]) == 2
        named = [each for each in held[control.labels_name or control.name] if each.get(shape)]
        assert [label for each in named for label in each[key]] == [*exported.masks]


def test_vlsam_export_holds_all(
    exported: Exported, servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of each task the two regions, whatever else the editor has saved."""
    assert "| `vlsam export` | all | all | all |" in PAGE
    monkeypatch.setenv("LABEL_STUDIO_URL", servers.studio.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", OWNER.token)
    to = str(tmp_path / "out.coco.json")
    assert main(["export", "--project", str(exported.id), "--to", to]) == 0
    read = COCO(to)
    names = {category["id"]: category["name"] for category in read.loadCats(read.getCatIds())}
    assert len(read.getImgIds()) == 2
    for image in read.getImgIds():
        found = read.loadAnns(read.getAnnIds(imgIds=[image]))
        assert [names[each["category_id"]] for each in found] == list(exported.masks)
        for each, mask in zip(found, exported.masks.values(), strict=True):
            if exported.kind == "boxes":
                assert corners(*each["bbox"]) == pytest.approx(box_of(mask), abs=1e-3)
            else:
                share = iou(read.annToMask(each).astype(bool), mask)
                assert share == 1 if exported.kind == "masks" else share > 0.96


# ---- What the recommended configs avoid; the page says so.


def submitted(studio: Studio, make_project: MakeProject, image: list[Path], config: str) -> Exported:
    (control,) = labeling_config.parse(config).outputs
    project = make_project("Exports", config, image[:1])
    studio.submit(
        project.tasks[0],
        results.region(ONE_PIECE, control=control, labels=["Dog"], region_id="region-00000000000", score=0.5),
    )
    return Exported(studio, project.id, "masks", {"Dog": ONE_PIECE})


def test_keypoint_labels_take_the_names_out_of_coco_and_yolo(
    studio: Studio, make_project: MakeProject, image: list[Path]
) -> None:
    label = '<Label value="Dog" model_index="0"/>'
    config = f"""<View><Image name="image" value="$image"/>
    <PolygonLabels name="outline" toName="image">{label}</PolygonLabels>
    <KeyPointLabels name="click" toName="image" smart="true">{label}</KeyPointLabels></View>"""
    files = submitted(studio, make_project, image, config).files
    assert [c["name"] for c in json.loads(files("COCO")["result.json"])["categories"]] == ["default"]
    assert files("YOLO")["classes.txt"] == b""


@pytest.mark.parametrize(("tool", "name"), [("Brush", "BRUSH_TO_COCO"), ("Polygon", "COCO")])
def test_tools_apart_from_their_labels_are_not_exported(
    studio: Studio, make_project: MakeProject, image: list[Path], tool: str, name: str
) -> None:
    config = f"""<View><Image name="image" value="$image"/>
    <Labels name="label" toName="image"><Label value="Dog"/></Labels>
    <{tool} name="drawn" toName="image" smart="false"/></View>"""
    files = submitted(studio, make_project, image, config).files(name)
    (held,) = (json.loads(held) for file, held in files.items() if file.endswith(".json"))
    assert held["annotations"] == []


def test_a_brush_apart_from_its_labels_is_exported_as_pictures(
    studio: Studio, make_project: MakeProject, image: list[Path]
) -> None:
    config = """<View><Image name="image" value="$image"/>
    <Labels name="label" toName="image"><Label value="Dog"/></Labels>
    <Brush name="drawn" toName="image" smart="false"/></View>"""
    project = submitted(studio, make_project, image, config).id
    # A single file comes as it is.
    png, numpy = (io.BytesIO(studio.export(project, f"BRUSH_TO_{kind}")) for kind in ("PNG", "NUMPY"))
    for picture in (np.asarray(Image.open(png)), np.load(numpy)):
        assert ((picture == 255) == ONE_PIECE).all()


def test_a_text_of_another_value_leaves_texts_alone(studio: Studio) -> None:
    config = label_config(["Dog"], "masks").replace(
        '<Text name="said" value="$image"/>', '<Text name="said" value="Hello"/>'
    )
    project = studio.create_project("Hello", config)
    formats = studio.json("GET", f"/api/projects/{project}/export/formats")
    offered = {each["name"] for each in formats if not each.get("disabled")}
    assert offered >= {*TEXTS}
    assert not offered & {*HOLDS}


def test_what_pascal_voc_does_not_bear(studio: Studio, make_project: MakeProject, image: list[Path]) -> None:
    """An image whose first result is a status is left out, and a click with a label breaks all."""
    config = label_config(["Dog"], "boxes")
    (control,) = labeling_config.parse(config).outputs
    regions = results.region(ONE_PIECE, control=control, labels=["Dog"], region_id="0" * 16, score=0.5)
    project = make_project("Exports", config, image)
    studio.submit(project.tasks[0], [STATUS, *regions])
    exported = Exported(studio, project.id, "boxes", {})
    assert not any(name.endswith(".xml") for name in exported.files("VOC"))
    point = left_click("Dog")
    studio.submit(project.tasks[1], [*regions, point, {**point, "from_name": "label", "type": "labels"}])
    with pytest.raises(StudioError, match="500"):
        exported.files("VOC")


# ---- `vlsam config` against a real server.


@pytest.mark.parametrize("kind", KINDS)
def test_label_studio_takes_whatever_labels_there_are(studio: Studio, kind: Kind) -> None:
    names = ['Boots, "black" & <white>', "Hündin 🐕", "it's", *(f"label {number}" for number in range(60))]
    xml = label_config(names, kind)
    studio.send("POST", "/api/projects/validate", json={"label_config": xml})
    project = studio.create_project(f"Any labels for {kind}", xml)
    assert [tag.value for tag in tags_of(studio.project(project)["label_config"])] == names


def test_the_labels_of_a_project(
    studio: Studio,
    servers: Servers,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tags = [LabelTag("Traffic cone", "cone", "pylon", "orange"), LabelTag("Dog", "", "", "#112233")]
    project = studio.create_project("Labels", label_config(tags, "boxes"))
    monkeypatch.setenv("LABEL_STUDIO_URL", servers.studio.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", OWNER.token)
    assert main(["config", "--from", f"labelstudio://{project}", "--for", "polygons"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (label_config(tags, "polygons"), "")
    assert main(["config", "--from", "labelstudio://99999"]) == 2
    assert "HTTP 404" in capsys.readouterr().err


def test_a_project_takes_the_config_that_is_made_of_its_own(
    studio: Studio,
    servers: Servers,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Label Studio refuses one that the tasks and annotations do not fit."""
    before = """<View><Image name="photo" value="$picture"/>
    <BrushLabels name="label" toName="photo" smart="false"><Label value="Dog"/></BrushLabels>
    <KeyPointLabels name="point" toName="photo" smart="true"><Label value="Dog"/></KeyPointLabels></View>"""
    project = studio.create_project("Names", before)
    studio.import_tasks(project, [{"picture": "/data/upload/none.png"}])
    (control,) = labeling_config.parse(before).outputs
    (task,) = studio.tasks(project)
    studio.submit(
        task["id"],
        results.region(ONE_PIECE, control=control, labels=["Dog"], region_id="0" * 16, score=0.5),
    )
    with pytest.raises(StudioError, match="400"):
        studio.change_project(project, label_config=label_config(["Dog"], "masks"))
    monkeypatch.setenv("LABEL_STUDIO_URL", servers.studio.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", OWNER.token)
    assert main(["config", "--from", "project", str(project)]) == 0
    made = capsys.readouterr().out
    studio.change_project(project, label_config=made)
    assert studio.project(project)["label_config"] == made.strip()
