"""`vlsam export` from the command to its files, of a project that a fake Label Studio has."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image as Pillow
from pyarrow import parquet
from pycocotools import mask as masks
from pycocotools.coco import COCO

from backend.export import job
from model.segmentation.non_maximum_suppression import iou
from model.types import Mask
from tests.support.detections import ring_mask
from tests.support.fake_label_studio import Studio
from tests.support.images import data_url
from tests.support.saved_annotations import CAT, CONFIG, DOG, HEIGHT, WIDTH, annotation, click, region, same

Run = Callable[..., int]


@pytest.fixture
def studio(studio: Studio) -> Studio:
    """Task 1 has a cat and a dog over it, 2 is without objects, 3 skipped, 4 untouched, 5 of three people."""
    studio.project["label_config"] = CONFIG
    for number in studio.data:
        studio.data[number] = {"image": f"/data/upload/7/1234-{number}.png"}
        picture = Pillow.new("RGB", (WIDTH, HEIGHT), (number, 0, 0))
        picture.save(f"{number}.png")
        studio.files[f"/data/upload/7/1234-{number}.png"] = Path(f"{number}.png").read_bytes()
    del studio.data[6]
    studio.annotations = {
        1: [annotation([*region(CAT, "brush", "feline"), *region(DOG, "brush", "Dog"), click()])],
        2: [annotation([])],
        3: [annotation([], was_cancelled=True)],
        5: [
            annotation(region(DOG, "poly", "Dog"), 11, at="2026-01-01T00:00:01Z"),
            annotation(region(CAT, "poly", "feline"), 12, at="2026-01-03T00:00:01Z"),
            annotation([], 13, at="2026-01-02T00:00:01Z"),
        ],
    }
    return studio


def read_json(path: str) -> Any:
    return json.loads(Path(path).read_text("utf-8"))


def summary(to: str) -> Any:
    return read_json(f"{to}.state/summary.json")


def test_coco_has_names_holes_parts_and_what_is_below(
    studio: Studio, export: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("--to", "out.coco.json") == 0
    read = COCO("out.coco.json")
    assert [each["name"] for each in read.loadCats(read.getCatIds())] == ["feline", "Dog"]
    pictures = read.loadImgs(read.getImgIds())
    assert [each["file_name"] for each in pictures] == ["1234-1.png", "1234-2.png", "1234-5.png"]
    assert {(each["width"], each["height"]) for each in pictures} == {(WIDTH, HEIGHT)}
    cat, dog, other = read.loadAnns(read.getAnnIds())
    for found, mask, category in ((cat, CAT, 1), (dog, DOG, 2)):
        assert isinstance(found["segmentation"], list)
        assert same(read.annToMask(found), mask)
        assert (found["category_id"], found["area"], found["iscrowd"]) == (category, mask.sum(), 0)
        assert "score" not in found
    assert len(dog["segmentation"]) == 2
    # Of three people the one who changed it last; a ring that was drawn is written as it was drawn.
    assert other["image_id"] == pictures[2]["id"]
    (points,) = (each["value"]["points"] for each in studio.annotations[5][1]["result"])
    (ring,) = other["segmentation"]
    assert np.array(ring).reshape(-1, 2) == pytest.approx(np.array(points) * (WIDTH, HEIGHT) / 100, abs=0.01)
    assert iou(read.annToMask(other).astype(bool), CAT) > 0.9
    assert "3 images: 3 labelled with 3 regions, 1 of them empty; 0 failed" in (
        said := capsys.readouterr().err
    )
    assert "skipped: 1 x without an annotation" in said
    assert "skipped: 1 x skipped by the annotator" in said
    assert "regions left out: 1 x a click of a smart tool (1)" in said
    assert "several annotations, of which one was taken: 1" in said


def test_run_lengths_say_the_same(studio: Studio, export: Run) -> None:
    assert export("--to", "out.coco.json") == 0
    drawn = COCO("out.coco.json")
    assert export("--to", "out.coco.json", "--coco-rle") == 0  # nothing is read anew
    assert sum("annotations" in path for path in studio.asked) == len(studio.data)
    coded = COCO("out.coco.json")
    for one, other in zip(drawn.dataset["annotations"], coded.dataset["annotations"], strict=True):
        assert isinstance(other["segmentation"], dict)
        assert iou(drawn.annToMask(one).astype(bool), coded.annToMask(other).astype(bool)) > 0.95
    assert same(coded.annToMask(coded.dataset["annotations"][1]), DOG)


def as_supervision_reads(annotation: dict[str, Any]) -> Mask:
    """What roboflow/supervision makes of a segmentation: rings in whole pixels, filled one over the other.

    Run lengths, where `iscrowd` is 0, it reads as an empty mask. It is not installed here.
    """
    canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
    assert isinstance(annotation["segmentation"], list)
    for ring in annotation["segmentation"]:
        own = np.zeros_like(canvas)
        cv2.fillPoly(own, [np.asarray(ring, np.int32).reshape(-1, 2)], 1)
        canvas |= own
    return canvas.astype(bool)


def test_supervision_finds_images_classes_and_masks(studio: Studio, export: Run) -> None:
    assert export("--to", "out.coco.json", "--copy-images") == 0
    held = read_json("out.coco.json")
    names = [each["name"] for each in sorted(held["categories"], key=lambda category: category["id"])]
    assert len(set(names)) == len(names)
    for image in held["images"]:
        with Pillow.open(Path("out.images", image["file_name"])) as opened:
            assert opened.size == (image["width"], image["height"])
            assert opened.mode in ("RGB", "L")  # others it refuses
    cat, dog, _ = held["annotations"]
    assert iou(as_supervision_reads(cat), CAT) > 0.9
    assert iou(as_supervision_reads(dog), DOG) > 0.75  # it counts pixels on the ring as inside
    assert not as_supervision_reads(dog)[30, 50]
    assert as_supervision_reads(dog)[52, 70]


def test_yolo_is_a_data_set_as_ultralytics_checks_it(studio: Studio, export: Run) -> None:
    """What `yolo check` of Ultralytics 8.4 asks for, which read such folders when it was tried."""
    assert export("--to", "out.yolo", "--copy-images") == 0
    about = yaml.safe_load(Path("out.yolo/data.yaml").read_text())
    assert about == {"train": "images", "val": "images", "names": {0: "feline", 1: "Dog"}}
    images = sorted(path.name for path in Path("out.yolo/images").iterdir())
    assert images == ["1234-1.png", "1234-2.png", "1234-5.png"]
    rings = {}
    for name in images:
        lines = Path("out.yolo/labels", name).with_suffix(".txt").read_text().splitlines()
        rings[name] = [(int(line.split()[0]), np.array(line.split()[1:], float)) for line in lines]
        for number, values in rings[name]:
            assert number in about["names"]
            assert len(values) >= 6
            assert len(values) % 2 == 0
            assert (values >= 0).all()
            assert (values <= 1).all()
    (_, cat), (second, dog) = rings["1234-1.png"]
    assert second == 1
    assert iou(ring_mask(cat.reshape(-1, 2) * (WIDTH, HEIGHT), (HEIGHT, WIDTH)), CAT) > 0.95
    assert iou(ring_mask(dog.reshape(-1, 2) * (WIDTH, HEIGHT), (HEIGHT, WIDTH)), DOG) > 0.9
    assert rings["1234-2.png"] == []


def test_masks_say_the_class_of_each_pixel_and_each_object_whole(studio: Studio, export: Run) -> None:
    assert export("--to", "masks/", "--copy-images") == 0
    assert Path("masks/classes.txt").read_text() == "background\nfeline\nDog\n"
    with Pillow.open("masks/1234-1.png") as opened:
        assert opened.mode == "P"
        classes = np.asarray(opened)
        assert len({*map(tuple, np.asarray(opened.convert("RGB")).reshape(-1, 3).tolist())}) == 3
    assert same(classes == 2, DOG)  # which lies over the cat
    assert same(classes == 1, CAT & ~DOG)
    assert same(np.asarray(Pillow.open("masks/objects/1234-1/1.png")) == 255, CAT)
    assert same(np.asarray(Pillow.open("masks/objects/1234-1/2.png")) == 255, DOG)
    assert not np.asarray(Pillow.open("masks/1234-2.png")).any()
    held = read_json("masks/index.json")
    assert held["classes"] == ["background", "feline", "Dog"]
    first, empty, _ = held["images"]
    assert (first["mask"], first["file"], empty["objects"]) == ("1234-1.png", "images/1234-1.png", [])
    assert [(each["label"], each["class"], each["area"]) for each in first["objects"]] == [
        ("feline", 1, CAT.sum()),
        ("Dog", 2, DOG.sum()),
    ]
    assert Path("masks/images/1234-5.png").is_file()


def test_many_classes_take_masks_of_16_bits(studio: Studio, export: Run) -> None:
    many = "".join(f'<Label value="{n}"/>' for n in range(300))
    config = f'<View><Image name="image" value="$image"/><BrushLabels name="brush" toName="image">{many}'
    studio.project["label_config"] = config = f"{config}</BrushLabels></View>"
    studio.annotations = {1: [annotation(region(DOG, "brush", "299", config=config))]}
    assert export("--to", "masks") == 0
    classes = np.asarray(Pillow.open("masks/1234-1.png"))
    assert same(classes == 300, DOG)


def test_parquet_has_the_rows_of_prelabel(studio: Studio, export: Run) -> None:
    assert export("--to", "out.parquet") == 0
    first, empty, last = parquet.read_table("out.parquet").to_pylist()
    assert [each["label"] for each in first["detections"]] == ["feline", "Dog"]
    assert same(masks.decode(first["detections"][1]["mask"]), DOG)
    assert (first["key"], first["image"], first["width"]) == ("1", "/data/upload/7/1234-1.png", WIDTH)
    assert (empty["detections"], last["detections"][0]["score"], last["model_version"]) == ([], None, None)


def test_a_list_of_tasks_has_the_annotations_as_they_are(studio: Studio, export: Run) -> None:
    assert export("--to", "out.json") == 0
    tasks = read_json("out.json")
    assert [task["data"] for task in tasks] == [studio.data[n] for n in (1, 2, 5)]
    assert tasks[0]["annotations"][0]["result"] == studio.annotations[1][0]["result"]
    assert summary("out.json")["labels"] == {"feline": 2, "Dog": 1}


def test_ground_truth_goes_before_what_is_newer(studio: Studio, export: Run) -> None:
    studio.annotations[5][0]["ground_truth"] = True
    assert export("--to", "out.coco.json") == 0
    assert COCO("out.coco.json").dataset["annotations"][-1]["category_id"] == 2


def test_the_newest_draft_of_all_people_is_taken_and_read_anew_each_time(studio: Studio, export: Run) -> None:
    studio.drafts = {
        1: [
            {"id": 1, "updated_at": "2026-01-02T00:00:00Z", "result": region(DOG, "brush", "Dog")},
            {"id": 2, "updated_at": "2026-01-01T00:00:00Z", "result": region(CAT, "brush", "feline")},
        ]
    }
    assert export("--to", "out.coco.json", "--what", "drafts") == 0
    (found,) = COCO("out.coco.json").dataset["annotations"]
    assert found["category_id"] == 2
    studio.drafts[1][1]["updated_at"] = "2026-01-03T00:00:00Z"
    assert export("--to", "out.coco.json", "--what", "drafts") == 0
    (found,) = COCO("out.coco.json").dataset["annotations"]
    assert found["category_id"] == 1
    assert summary("out.coco.json")["skipped"] == {"without a draft": 4}


def test_predictions_are_those_that_the_project_shows_or_of_a_version(studio: Studio, export: Run) -> None:
    def predicted(mask: Mask, label: str, version: str, at: int) -> dict[str, Any]:
        return {"id": at, "task": 1, "model_version": version, "updated_at": f"2026-01-0{at}",
                "result": region(mask, "brush", label)}  # fmt: skip

    studio.predictions = [predicted(CAT, "feline", "one", 1), predicted(DOG, "Dog", "two", 2)]
    studio.backends = [{"id": 1, "title": "VL-SAM"}]

    def taken(*more: str) -> tuple[int, float]:
        assert export("--to", "out.coco.json", "--what", "predictions", "--restart", *more) == 0
        (found,) = COCO("out.coco.json").dataset["annotations"]
        return found["category_id"], found["score"]

    for shown in ("", "VL-SAM"):
        studio.project["model_version"] = shown
        assert taken() == (2, 0.5)
    studio.project["model_version"] = "one"
    assert taken() == (1, 0.5)
    assert taken("--model-version", "two") == (2, 0.5)
    assert summary("out.coco.json")["skipped"] == {"without a prediction of two": 4}


def test_f31_a_run_that_was_stopped_goes_on_and_reads_again_what_changed(studio: Studio, export: Run) -> None:
    studio.down_after = 4  # the project, a page or two of tasks, some of the annotations
    assert export("--to", "out.coco.json") == 2
    assert not Path("out.coco.json").exists()
    read = Path("out.coco.json.state/rows.jsonl").read_bytes().count(b"\n")
    assert read < len(studio.data)
    studio.down_after, studio.asked = 1000, []
    assert export("--to", "out.coco.json") == 0
    assert sum("annotations" in path for path in studio.asked) == len(studio.data) - read
    before = Path("out.coco.json").read_bytes()
    studio.asked = []
    assert export("--to", "out.coco.json") == 0
    assert not any("annotations" in path for path in studio.asked)
    assert Path("out.coco.json").read_bytes() == before
    # One is changed, one is submitted, one is deleted.
    studio.annotations[2] = [annotation(region(DOG, "brush", "Dog"))]
    studio.updated[2] += 1
    studio.annotations[4] = [annotation(region(CAT, "brush", "feline"))]
    del studio.data[5]
    studio.asked = []
    assert export("--to", "out.coco.json") == 0
    # Several are asked for at a time.
    assert sorted(path for path in studio.asked if "annotations" in path) == [
        "/api/tasks/2/annotations/",
        "/api/tasks/4/annotations/",
    ]
    held = read_json("out.coco.json")
    assert [each["file_name"] for each in held["images"]] == ["1234-1.png", "1234-2.png", "1234-4.png"]
    assert [each["category_id"] for each in held["annotations"]] == [1, 2, 2, 1]


def test_another_config_has_everything_read_again(studio: Studio, export: Run) -> None:
    (box,) = region(CAT, "rect", "feline")
    studio.annotations[2] = [annotation([{**box, "from_name": "prompt"}])]
    assert export("--to", "out.yolo") == 0
    assert Path("out.yolo/labels/1234-2.txt").read_text() == ""
    studio.project["label_config"] = CONFIG.replace(
        '<Label value="Dog"/>', '<Label value="Bird"/><Label value="Dog"/>'
    ).replace('name="prompt" toName="image" smart="true"', 'name="prompt" toName="image"')
    assert export("--to", "out.yolo") == 0
    names = yaml.safe_load(Path("out.yolo/data.yaml").read_text())["names"]
    assert names == {0: "feline", 1: "Bird", 2: "Dog"}
    assert Path("out.yolo/labels/1234-2.txt").read_text().startswith("0 ")
    assert Path("out.yolo/labels/1234-1.txt").read_text().splitlines()[1].startswith("2 ")


def test_labels_that_the_config_does_not_have_follow_by_name(studio: Studio, export: Run) -> None:
    items = region(DOG, "brush", "Dog")
    for name in ("zebra", "ant"):
        (own,) = region(CAT, "brush", "feline", number=name)
        items.append({**own, "value": {**own["value"], "brushlabels": [name]}})
    studio.annotations = {1: [annotation(items)]}
    assert export("--to", "out.coco.json") == 0
    held = read_json("out.coco.json")
    assert [each["name"] for each in held["categories"]] == ["feline", "Dog", "ant", "zebra"]


def test_f31_one_bad_task_takes_no_other_along(
    studio: Studio, export: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del studio.files["/data/upload/7/1234-2.png"]  # whose size no region tells
    studio.gone = {4}
    huge = annotation(region(DOG, "brush", "Dog"))
    huge["result"][0].update(original_width=10**5, original_height=10**5)
    studio.annotations[3] = [huge]
    monkeypatch.setattr(job, "TASK_UNITS", 300_000)  # enough for one region
    assert export("--to", "out.coco.json") == 0
    assert [each["file_name"] for each in read_json("out.coco.json")["images"]] == ["1234-5.png"]
    told = summary("out.coco.json")
    assert told["failed"] == 3
    reasons = " ".join(told["failures"])
    assert "VLSAM_MAX_IMAGE_PIXELS" in reasons
    assert "too much to read" in reasons
    assert told["skipped"] == {"deleted since the tasks were listed": 1}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--to", "out.xml"), "the name must end in .coco.json"),
        (("--to", "labelstudio://8"), "write a .json, and import that"),
        (("--to", "."), "give the name of a file or a folder"),
        (("--to", "out.yolo", "--coco-rle"), "--coco-rle goes with --to NAME.coco.json"),
        (("--to", "out.parquet", "--copy-images"), "--copy-images goes with"),
        (("--to", "out.json", "--copy-images"), "--copy-images goes with"),
        (("--to", "out.yolo", "--model-version", "v"), "--model-version goes with --what predictions"),
        (("--to", "theirs.yolo"), "is a folder that no run has written"),
        (("--to", "theirs"), "is a folder that no run has written"),
        (("--to", "theirs.coco.json"), "is there already"),
        (("--to", "mine.coco.json", "--copy-images"), "mine.images is a folder that no run has written"),
        (("--to", "out.yolo", "--project", "8"), "as in /projects/7"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(
    arguments: tuple[str, ...], said: str, studio: Studio, export: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("theirs.yolo", "theirs", "mine.images"):
        Path(name).mkdir()
        Path(name, "precious.txt").touch()
    Path("theirs.coco.json").touch()
    assert export(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert Path("theirs", "precious.txt").exists()
    assert not Path("out.yolo.state").exists()


def test_without_a_token_it_says_what_to_set(
    export: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    assert export("--to", "out.yolo") == 2
    assert "needs LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY" in capsys.readouterr().err


def test_a_project_without_annotations_says_so(
    studio: Studio, export: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    studio.annotations = {}
    assert export("--to", "out.yolo") == 0
    assert "project 7 has no annotations to write (--what drafts or predictions?)" in capsys.readouterr().err
    assert yaml.safe_load(Path("out.yolo/data.yaml").read_text())["names"] == {0: "feline", 1: "Dog"}


@pytest.mark.parametrize("to", ["out.coco.json", "out.yolo", "masks/", "out.parquet", "out.json"])
def test_any_name_of_a_label_can_be_written(
    to: str, studio: Studio, export: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        "../../x",
        "a\nb",
        "a,b",
        "yes",
        "- x: {y}",
        "#",
        '"',
        "\x00",
        "\ud800",
        "é",
        "e\u0301",
        "dog",
        "🐕",
    ]
    (own,) = region(CAT, "brush", "feline")
    items = [
        {**own, "id": f"region-{number}", "value": {**own["value"], "brushlabels": [name]}}
        for number, name in enumerate(names)
    ]
    studio.annotations = {1: [annotation(items)]}
    assert export("--to", to) == 0
    assert f"labelled with {len(names)} regions" in capsys.readouterr().err
    if to == "out.coco.json":
        assert {each["name"] for each in read_json(to)["categories"]} == {"feline", "Dog", *names}
    if to == "out.yolo":
        known = yaml.safe_load(Path("out.yolo/data.yaml").read_text("utf-8"))["names"].values()
        assert {*names} <= {*known}
    if to == "masks/":
        lines = Path("masks/classes.txt").read_text("utf-8").split("\n")
        assert len(lines) == 1 + 2 + len(names) + 1
        assert not Path("x").exists()
    if to == "out.parquet":
        first, *_ = parquet.read_table(to).to_pylist()
        assert [each["label"] for each in first["detections"]] == [
            name.replace("\ud800", "\\xed\\xa0\\x80") for name in names
        ]


def test_a_link_to_a_folder_stays_a_link(studio: Studio, export: Run) -> None:
    Path("disk").mkdir()
    Path("masks").symlink_to("disk")
    for _ in range(2):
        assert export("--to", "masks/") == 0
        assert Path("masks").is_symlink()
        assert Path("disk", "1234-1.png").is_file()


def test_names_of_images_lead_nowhere_else(studio: Studio, export: Run) -> None:
    studio.data = {
        1: {"image": "/data/local-files/?d=../../etc/a.png"},
        2: {"image": "/data/local-files/?d=cam/a.png"},
        5: {"image": data_url(WIDTH, HEIGHT)},
    }
    studio.annotations[2] = studio.annotations[1]
    assert export("--to", "masks/") == 0
    names = {path.name for path in Path("masks").glob("*.png")}
    assert names == {"etc-a.png", "cam-a.png", "5.png"}
