"""`vlsam prelabel` of a project in a real Label Studio, and an import of its list."""

import json
from pathlib import Path
from typing import Any

import pytest
from label_studio_sdk.converter.imports.coco import convert_coco_to_ls

from backend.commands.cli import main
from backend.labelstudio.recommended_configs import label_config
from backend.labelstudio_api import client
from backend.prelabel import project_import
from model.builtin.scenes import NAMES
from tests.support.label_studio_user import Studio
from tests.support.studio_servers import OWNER, MakeProject, Project, Servers, save_scene

SCENES = 5


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("scenes")
    return [save_scene(folder / f"{n}.png", n, width=300, height=240) for n in range(SCENES)]


@pytest.fixture
def project(
    make_project: MakeProject, servers: Servers, scenes: list[Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Project:  # fmt: skip
    monkeypatch.setenv("LABEL_STUDIO_URL", servers.studio.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", OWNER.token)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(client, "PAGE", 2)
    monkeypatch.setattr(project_import, "CHUNK", 2)
    return make_project("Prelabel", label_config(NAMES), scenes)


def prelabel(source: Project, to: str, *more: str) -> int:
    return main(["prelabel", f"labelstudio://{source.id}", "--to", to, *more])


def by_task(studio: Studio, project: Project) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {task: [] for task in project.tasks}
    for prediction in studio.predictions(project.id):
        found[int(prediction["task"])].append(prediction)
    return found


def test_each_task_gets_one_prediction_however_often_it_is_asked_for(
    studio: Studio, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    to = f"labelstudio://{project.id}"
    assert prelabel(project, to, "--limit", "3") == 0
    assert sum(len(found) for found in by_task(studio, project).values()) == 3
    assert prelabel(project, to) == 0
    first = by_task(studio, project)
    assert [len(found) for found in first.values()] == [1] * SCENES
    assert prelabel(project, to) == 0
    assert by_task(studio, project) == first
    # A kill between Label Studio's answer and our note of it, and the loss of the whole state.
    Path(f"labelstudio-{project.id}.state/sent.jsonl").unlink()
    assert prelabel(project, to) == 0
    assert by_task(studio, project) == first
    assert prelabel(project, to, "--restart") == 0
    err = capsys.readouterr().err
    assert "0 images" in err
    assert f"skipped: {SCENES} x labelled by this model already" in err
    assert by_task(studio, project) == first


def test_label_all_tasks_and_the_score_column_show_them(
    studio: Studio, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert studio.project(project.id)["model_version"] == "VL-SAM"  # the connected backend's title
    assert prelabel(project, f"labelstudio://{project.id}") == 0
    version = studio.project(project.id)["model_version"]
    assert (
        f"shows the predictions of {version} now, no longer those of backend VL-SAM"
        in capsys.readouterr().err
    )
    assert {p["model_version"] for p in studio.predictions(project.id)} == {version}
    (shown,) = studio.next_task(project.id)["predictions"]
    assert shown["model_version"] == version
    scores = [task["predictions_score"] for task in studio.tasks(project.id)]
    assert len(scores) == SCENES
    assert all(isinstance(score, float) for score in scores)
    # Another model's are somebody's choice.
    studio.add_prediction(project.tasks[0], [], "another")
    studio.change_project(project.id, model_version="another")
    assert prelabel(project, f"labelstudio://{project.id}") == 0
    assert studio.project(project.id)["model_version"] == "another"
    assert "shows the predictions of another" in capsys.readouterr().err
    studio.change_project(project.id, show_collab_predictions=False)
    assert prelabel(project, f"labelstudio://{project.id}", "--show") == 0
    assert studio.project(project.id)["model_version"] == version
    assert len(studio.next_task(project.id)["predictions"]) == 1


def test_all_replaces_what_is_there_and_equals_the_server(studio: Studio, project: Project) -> None:
    studio.retrieve_predictions(project.id)
    server = by_task(studio, project)
    assert prelabel(project, f"labelstudio://{project.id}") == 0
    assert by_task(studio, project) == server  # nothing was left to do
    assert prelabel(project, f"labelstudio://{project.id}", "--all", "--restart") == 0
    ours = by_task(studio, project)
    assert [len(found) for found in ours.values()] == [1] * SCENES
    for task in project.tasks:
        (one,), (other,) = ours[task], server[task]
        assert one["id"] != other["id"]
        for key in ("result", "score", "model_version"):
            assert one[key] == other[key]


def test_a_list_of_a_project_can_be_imported(studio: Studio, project: Project, tmp_path: Path) -> None:
    assert prelabel(project, "trial.json", "--limit", "2") == 0
    tasks = json.loads((tmp_path / "trial.json").read_text())
    tasks[1] = {"data": tasks[1]["data"], "predictions": [], "meta": {"vlsam_error": "as if"}}
    other = studio.create_project("Imported", label_config(NAMES))
    studio.json("POST", f"/api/projects/{other}/import", json=tasks)
    one, two = studio.tasks(other)
    assert one["data"] == tasks[0]["data"]
    assert one["predictions"][0]["result"] == tasks[0]["predictions"][0]["result"]
    assert two["predictions"] == []


def test_coco_comes_back_through_label_studios_own_converter(
    studio: Studio, project: Project, tmp_path: Path
) -> None:
    assert prelabel(project, "out.coco.json", "--coco-polygons", "--limit", "2") == 0
    # An upload is called in Label Studio's folder what it is called here.
    root = f"/data/upload/{project.id}"
    convert_coco_to_ls("out.coco.json", "tasks.json", out_type="predictions", image_root_url=root)
    tasks = json.loads(Path("tasks.json").read_text())
    other = studio.create_project("Converted", Path("tasks.label_config.xml").read_text())
    studio.json("POST", f"/api/projects/{other}/import", json=tasks)
    originals = [task["data"]["image"] for task in studio.tasks(project.id)]
    taken = studio.tasks(other)
    assert [task["data"]["image"] for task in taken] == originals[:2]
    for task, sent in zip(taken, tasks, strict=True):
        (prediction,) = task["predictions"]
        assert len(prediction["result"]) == len(sent["predictions"][0]["result"]) > 0
        assert {region["type"] for region in prediction["result"]} == {"polygonlabels", "rectanglelabels"}


def test_yolo_takes_uploads_along(project: Project, scenes: list[Path], studio: Studio) -> None:
    assert prelabel(project, "out.yolo", "--copy-images") == 0
    names = [task["data"]["image"].rpartition("/")[2] for task in studio.tasks(project.id)]
    assert len(names) == SCENES
    for name, scene in zip(names, scenes, strict=True):
        assert Path("out.yolo/images", name).read_bytes() == scene.read_bytes()
        assert Path("out.yolo/labels", f"{Path(name).stem}.txt").read_text()


def test_a_project_that_is_not_there(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prelabel", "labelstudio://99999", "--to", "out.json"]) == 2
    assert "sees no project 99999" in capsys.readouterr().err
