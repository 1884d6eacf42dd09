"""`vlsam export` of a project in a real Label Studio, and what other programs read of it."""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import yaml
from PIL import Image
from pyarrow import parquet
from pycocotools import mask as masks
from pycocotools.coco import COCO

from backend.commands.cli import main
from backend.labelstudio import results
from model.segmentation.non_maximum_suppression import iou
from model.types import Mask
from tests.support import saved_annotations
from tests.support.detections import ring_mask
from tests.support.label_studio_user import Studio
from tests.support.studio_servers import OWNER, MakeProject, Project, Servers, save_image

WIDTH, HEIGHT = 200, 150
NAMES = '<Label value="Cat" alias="feline"/><Label value="Guide dog"/><Label value="Bird"/>'
CONFIG = (
    '<View><Image name="image" value="$image"/>'
    f'<BrushLabels name="mask" toName="image">{NAMES}</BrushLabels>'
    f'<PolygonLabels name="outline" toName="image">{NAMES}</PolygonLabels>'
    f'<RectangleLabels name="box" toName="image">{NAMES}</RectangleLabels>'
    f'<KeyPointLabels name="click" toName="image" smart="true">{NAMES}</KeyPointLabels></View>'
)
rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
CAT: Mask = ((columns - 70) / 50) ** 2 + ((rows - 80) / 40) ** 2 <= 1
# Over the cat, with a hole and a second part.
DOG: Mask = (columns - 110) ** 2 + (rows - 70) ** 2 <= 30**2
DOG = DOG & ~((columns - 110) ** 2 + (rows - 70) ** 2 <= 12**2) | (
    (columns - 170) ** 2 + (rows - 120) ** 2 <= 15**2
)


region = partial(saved_annotations.region, config=CONFIG)
STRAY: results.Result = {
    "id": "stray", "type": "keypointlabels", "from_name": "click", "to_name": "image", "is_positive": True,
    "original_width": WIDTH, "original_height": HEIGHT,
    "value": {"x": 5.0, "y": 5.0, "width": 0.5, "keypointlabels": ["feline"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def colleague(studio: Studio) -> Iterator[Studio]:
    """Somebody else in the same organisation, who has signed up by the form."""
    form = {"email": "colleague@example.com", "password": "e2e-password"}
    with requests.Session() as browser:
        page = f"{studio.url}/user/signup/"
        browser.get(page, timeout=60).raise_for_status()
        token = browser.cookies["csrftoken"]
        browser.post(page, data={**form, "csrfmiddlewaretoken": token}, timeout=60).raise_for_status()
    client = Studio(studio.url, form["email"], form["password"])
    yield client
    client.close()


@pytest.fixture
def project(
    make_project: MakeProject, studio: Studio, colleague: Studio, servers: Servers, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Project:  # fmt: skip
    """Tasks that are submitted, empty, skipped, untouched, of two people, and of an image on its side."""
    monkeypatch.setenv("LABEL_STUDIO_URL", servers.studio.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", OWNER.token)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    names = ["submitted", "empty", "skipped", "untouched", "two", "turned"]
    images = [
        save_image(
            tmp_path / f"{name}.jpg",
            rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8),
            turned=name == "turned",
        )
        for name in names
    ]
    made = make_project("Export", CONFIG, images)
    submitted, empty, skipped, _, two, turned = made.tasks
    studio.submit(submitted, [*region(CAT, "mask", "feline"), *region(DOG, "mask", "Guide dog"), STRAY])
    studio.submit(empty, [])
    studio.skip(skipped)
    studio.submit(two, region(CAT, "mask", "feline"))
    colleague.submit(two, [*region(DOG, "outline", "Guide dog"), *region(CAT, "box", "feline")])
    studio.submit(turned, region(DOG, "mask", "Guide dog"))
    return made


def export(project: Project, to: str, *more: str) -> int:
    return main(["export", "--project", str(project.id), "--to", to, *more])


def plain(name: str) -> str:
    """The name of a file, without what Label Studio puts in front of an upload's."""
    return re.sub(r"^[0-9a-f]{8}-", "", Path(name).name).partition(".")[0]


def test_coco_holds_what_was_submitted(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(project, "out.coco.json", "--copy-images") == 0
    said = capsys.readouterr().err
    for line in (
        "4 images: 4 labelled with 5 regions, 1 of them empty; 0 failed",
        "several annotations, of which one was taken: 1",
        "regions left out: 1 x a click of a smart tool",
        "skipped: 1 x skipped by the annotator",
        "skipped: 1 x without an annotation",
    ):
        assert line in said
    read = COCO("out.coco.json")
    assert [each["name"] for each in read.loadCats(read.getCatIds())] == ["feline", "Guide dog", "Bird"]
    pictures = {plain(each["file_name"]): each for each in read.loadImgs(read.getImgIds())}
    assert list(pictures) == ["submitted", "empty", "two", "turned"]

    def objects(name: str) -> list[Any]:
        picture = pictures[name]
        with Image.open(Path("out.images", picture["file_name"])) as opened:
            assert opened.size == (WIDTH, HEIGHT) == (picture["width"], picture["height"])
            assert not opened.getexif().get(0x0112)
        return list(read.loadAnns(read.getAnnIds(imgIds=[picture["id"]])))

    cat, dog = objects("submitted")
    assert (cat["category_id"], dog["category_id"]) == (1, 2)
    assert np.array_equal(read.annToMask(cat), CAT)  # also where the dog is over it
    assert np.array_equal(read.annToMask(dog), DOG)
    assert objects("empty") == []
    # The colleague was the last.
    outline, box = objects("two")
    assert iou(read.annToMask(outline).astype(bool), DOG) > 0.95
    assert box["bbox"] == pytest.approx([20, 40, 100, 80], abs=1e-3)
    (turned,) = objects("turned")
    assert np.array_equal(read.annToMask(turned), DOG)


def test_the_other_kinds_hold_the_same(project: Project) -> None:
    assert export(project, "out.yolo", "--copy-images") == 0
    assert yaml.safe_load(Path("out.yolo/data.yaml").read_text())["names"] == {
        0: "feline",
        1: "Guide dog",
        2: "Bird",
    }
    lines = {plain(path.name): path.read_text().splitlines() for path in Path("out.yolo/labels").iterdir()}
    assert {name: len(found) for name, found in lines.items()} == {
        "submitted": 2,
        "empty": 0,
        "two": 2,
        "turned": 1,
    }
    for line, mask in zip(lines["submitted"], (CAT, DOG), strict=True):
        ring = np.array(line.split()[1:], float).reshape(-1, 2) * (WIDTH, HEIGHT)
        assert iou(ring_mask(ring, (HEIGHT, WIDTH)), mask) > 0.95
    assert len(list(Path("out.yolo/images").iterdir())) == 4

    assert export(project, "masks/") == 0
    (name,) = [path.name for path in Path("masks").glob("*submitted.png")]
    classes = np.asarray(Image.open(Path("masks", name)))
    assert np.array_equal(classes == 2, DOG)
    assert np.array_equal(classes == 1, CAT & ~DOG)
    assert np.array_equal(np.asarray(Image.open(Path("masks/objects", Path(name).stem, "1.png"))) > 0, CAT)

    assert export(project, "out.parquet") == 0
    found = {plain(row["image"]): row["detections"] for row in parquet.read_table("out.parquet").to_pylist()}
    assert [each["label"] for each in found["two"]] == ["Guide dog", "feline"]
    assert np.array_equal(masks.decode(found["submitted"][0]["mask"]), CAT)


def test_a_list_of_tasks_can_be_imported_again(project: Project, studio: Studio) -> None:
    assert export(project, "out.json") == 0
    tasks = json.loads(Path("out.json").read_text())
    other = studio.create_project("Export again", CONFIG)
    studio.json("POST", f"/api/projects/{other}/import", json=tasks)
    taken = [task["annotations"][0]["result"] for task in studio.tasks(other)]
    assert taken == [task["annotations"][0]["result"] for task in tasks]
    assert export(Project(other, 0, ()), "again.json") == 0
    again = json.loads(Path("again.json").read_text())
    assert [task["annotations"][0]["result"] for task in again] == taken


def test_what_changes_is_read_again_and_nothing_else(project: Project, studio: Studio) -> None:
    assert export(project, "out.parquet") == 0
    lines = Path("out.parquet.state/rows.jsonl").read_bytes().count(b"\n")
    assert lines == len(project.tasks)
    _, empty, skipped, untouched, two, _ = project.tasks
    studio.change_annotation(studio.annotations(empty)[0]["id"], result=region(CAT, "box", "Bird"))
    studio.submit(untouched, [])
    own = next(each for each in studio.annotations(two) if each["result"][0]["type"] == "brushlabels")
    studio.change_annotation(own["id"], ground_truth=True)
    assert export(project, "out.parquet") == 0
    assert Path("out.parquet.state/rows.jsonl").read_bytes().count(b"\n") == lines + 3
    found = {
        int(row["key"]): [each["label"] for each in row["detections"]]
        for row in parquet.read_table("out.parquet").to_pylist()
    }
    assert found[empty] == ["Bird"]
    assert found[untouched] == []
    assert found[two] == ["feline"]
    assert skipped not in found


def test_drafts_of_everybody_and_predictions(project: Project, colleague: Studio, studio: Studio) -> None:
    submitted, *_, turned = project.tasks
    colleague.save_draft(turned, region(CAT, "box", "feline"))
    assert export(project, "drafts.coco.json", "--what", "drafts") == 0
    (draft,) = COCO("drafts.coco.json").dataset["annotations"]
    assert draft["bbox"] == pytest.approx([20, 40, 100, 80], abs=1e-3)
    for version, mask in (("one", CAT), ("two", DOG)):
        studio.add_prediction(submitted, region(mask, "mask", "Bird"), version)
    for arguments, mask in (((), DOG), (("--model-version", "one"), CAT)):
        to = f"{len(arguments)}.coco.json"
        assert export(project, to, "--what", "predictions", *arguments) == 0
        read = COCO(to)
        (found,) = read.dataset["annotations"]
        assert np.array_equal(read.annToMask(found), mask)
        assert found["score"] == 0.5
