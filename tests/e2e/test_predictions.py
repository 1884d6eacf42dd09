"""Import, connect, "Retrieve predictions"."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from backend.demo.processes import LOOPBACK
from backend.labelstudio.recommended_configs import label_config
from model.builtin.scenes import NAMES
from tests.support.editor_gestures import mask_of
from tests.support.label_studio_user import Studio
from tests.support.studio_servers import MakeProject, Project, Servers, save_scene

# File name: width, height as shown.
IMAGES = {"wide.jpg": (420, 300), "tall.png": (280, 390), "turned.jpg": (300, 400)}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    return [
        save_scene(folder / name, seed, width=width, height=height, turned=name == "turned.jpg")
        for seed, (name, (width, height)) in enumerate(IMAGES.items())
    ]


@pytest.fixture(scope="module")
def project(make_project: MakeProject, studio: Studio, images: list[Path]) -> Project:
    made = make_project("Brush", label_config(NAMES), images)
    studio.retrieve_predictions(made.id)
    return made


@pytest.fixture(scope="module")
def predictions(studio: Studio, project: Project) -> dict[int, dict[str, Any]]:
    return {int(p["task"]): p for p in studio.predictions(project.id)}


@pytest.fixture(scope="module")
def regions(predictions: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    found = [region for prediction in predictions.values() for region in prediction["result"]]
    if not found:
        pytest.fail("the built-in weights find nothing in these scenes")
    return found


def test_every_task_has_one_prediction_of_the_connected_model(
    studio: Studio, project: Project, predictions: dict[int, dict[str, Any]]
) -> None:
    assert len(studio.predictions(project.id)) == len(IMAGES)
    assert set(predictions) == set(project.tasks)
    (backend,) = studio.backends(project.id)
    assert backend["readable_state"] == "Connected"
    assert backend["model_version"]
    assert {p["model_version"] for p in predictions.values()} == {backend["model_version"]}


def test_another_retrieval_adds_nothing(studio: Studio, project: Project) -> None:
    before = {p["id"] for p in studio.predictions(project.id)}
    studio.retrieve_predictions(project.id)
    assert {p["id"] for p in studio.predictions(project.id)} == before


def test_regions_name_the_controls_and_labels_of_the_config(regions: list[dict[str, Any]]) -> None:
    for region in regions:
        assert (region["from_name"], region["to_name"], region["type"]) == ("mask", "image", "brushlabels")
        (label,) = region["value"]["brushlabels"]
        assert label in NAMES
        assert 0 <= region["score"] <= 1


def test_masks_have_the_size_that_the_editor_shows(
    project: Project, predictions: dict[int, dict[str, Any]]
) -> None:
    """Label Studio turns images as EXIF says, so a picture stored on its side is portrait for it."""
    for task, (width, height) in zip(project.tasks, IMAGES.values(), strict=True):
        for region in predictions[task]["result"]:
            assert (region["original_width"], region["original_height"]) == (width, height)
            mask = mask_of(region)
            assert mask.shape == (height, width)
            assert mask.any()


def test_regions_carry_their_evidence_and_an_id_of_their_own(regions: list[dict[str, Any]]) -> None:
    ids = [region["id"] for region in regions]
    assert len(set(ids)) == len(ids)
    for region in regions:
        assert len(region["id"]) >= 16
        assert region["meta"]["vlsam"]["term"]
        assert len(json.dumps(region["meta"])) < 2048


def test_polygons_and_rectangles_for_a_config_that_has_both(
    make_project: MakeProject, studio: Studio, images: list[Path]
) -> None:
    labels = "".join(f'<Label value="{name}"/>' for name in NAMES)
    config = (
        '<View><Image name="picture" value="$image"/>'
        f'<PolygonLabels name="outline" toName="picture">{labels}</PolygonLabels>'
        f'<RectangleLabels name="frame" toName="picture">{labels}</RectangleLabels></View>'
    )
    project = make_project("Polygons", config, images[:2])
    studio.retrieve_predictions(project.id)
    predictions = {int(p["task"]): p for p in studio.predictions(project.id)}
    assert set(predictions) == set(project.tasks)
    for prediction in predictions.values():
        kinds = [(region["from_name"], region["type"]) for region in prediction["result"]]
        assert set(kinds) <= {("outline", "polygonlabels"), ("frame", "rectanglelabels")}
        assert kinds.count(("outline", "polygonlabels")) == kinds.count(("frame", "rectanglelabels"))
        for region in prediction["result"]:
            value = region["value"]
            if region["type"] == "polygonlabels":
                assert len(value["points"]) >= 3
                assert all(0 <= number <= 100 for point in value["points"] for number in point)
            else:
                assert value["x"] >= 0
                assert value["y"] >= 0
                assert value["x"] + value["width"] <= 100 + 1e-6
                assert value["y"] + value["height"] <= 100 + 1e-6


def test_broken_images_do_not_cost_the_others_their_predictions(
    studio: Studio, servers: Servers, images: list[Path]
) -> None:
    inline = f"data:image/png;base64,{base64.b64encode(images[1].read_bytes()).decode()}"
    addresses = {
        "data": inline,
        "text": "data:image/png;base64," + base64.b64encode(b"There is no image here.").decode(),
        "missing": "/data/upload/999/00000000-missing.jpg",
        # Port 9 discards; nothing listens there.
        "unreachable": f"http://{LOOPBACK}:9/image.jpg",
        "again": inline,
    }
    project = studio.create_project("Broken", label_config(NAMES))
    studio.import_tasks(project, [{"image": address, "case": case} for case, address in addresses.items()])
    studio.connect_backend(project, servers.backend.url)
    studio.retrieve_predictions(project)
    cases = {int(task["id"]): task["data"]["case"] for task in studio.tasks(project)}
    assert {cases[int(p["task"])] for p in studio.predictions(project)} == {"data", "again"}
    servers.backend.check()


def test_a_broken_upload_among_good_ones(make_project: MakeProject, studio: Studio, tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    Image.new("RGB", (64, 48), "white").save(good)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 this is no picture")
    project = make_project("Broken upload", label_config(NAMES), [broken, good])
    studio.retrieve_predictions(project.id)
    assert [int(p["task"]) for p in studio.predictions(project.id)] == [project.tasks[1]]
