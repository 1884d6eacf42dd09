"""A project as source and destination, against a server that answers as Label Studio does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.colour_model import Model
from tests.support.fake_label_studio import Studio
from tests.support.images import data_url
from tests.support.labeling_configs import CONFIG

Run = Callable[..., int]


ARGUMENTS = ("labelstudio://7", "--to", "labelstudio://7")


def test_predictions_go_in_chunks_to_each_task_once(studio: Studio, prelabel: Run, model: Model) -> None:
    assert prelabel(*ARGUMENTS) == 0
    assert [p["task"] for p in studio.predictions] == [1, 2, 3, 4, 5, 6]
    assert studio.imports == 3
    labels = [[r["value"].get("brushlabels") for r in p["result"]][:1] for p in studio.predictions]
    assert labels == [[["Cat"]], [["Cat"]], [["Cat"]], [], [["Cat"]], [["Cat"]]]
    assert len(model.seen) == 6
    assert prelabel(*ARGUMENTS) == 0
    assert studio.imports == 3


def test_half_a_token_is_sent_to_nobody(
    studio: Studio, prelabel: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "eyJhbGciOiJIUzI1NiJ9.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.")
    assert prelabel(*ARGUMENTS) == 2
    assert "without its signature" in capsys.readouterr().err


def test_an_answer_that_got_lost_does_not_double_anything(studio: Studio, prelabel: Run) -> None:
    studio.answers = [504, 503, 201, 201]
    assert prelabel(*ARGUMENTS) == 0
    assert sorted(p["task"] for p in studio.predictions) == [1, 2, 3, 4, 5, 6]


def test_while_label_studio_is_down_nothing_is_lost(
    studio: Studio, prelabel: Run, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    studio.answers = [201, 503, 503, 503]
    assert prelabel(*ARGUMENTS) == 2
    assert "HTTP 503" in capsys.readouterr().err
    done = Path("labelstudio-7.state/rows.jsonl").read_bytes().count(b"\n")
    seen = len(model.seen)
    assert done >= 4
    assert prelabel(*ARGUMENTS) == 0
    assert sorted(p["task"] for p in studio.predictions) == [1, 2, 3, 4, 5, 6]
    assert len(model.seen) - seen == 6 - done


def test_a_task_that_was_deleted_meanwhile_spoils_no_other(studio: Studio, prelabel: Run) -> None:
    studio.gone = {3}
    assert prelabel(*ARGUMENTS) == 0
    assert sorted(p["task"] for p in studio.predictions) == [1, 2, 4, 5, 6]
    summary = json.loads(Path("labelstudio-7.state/summary.json").read_text())
    assert summary["failed"] == 1
    assert "HTTP 400" in next(iter(summary["failures"]))


def test_all_replaces_predictions_of_this_version_only(studio: Studio, prelabel: Run) -> None:
    assert prelabel(*ARGUMENTS) == 0
    version = studio.predictions[0]["model_version"]
    studio.predictions.append({"id": -1, "task": 1, "model_version": "another", "result": [], "project": 7})
    before = {p["id"] for p in studio.predictions if p["model_version"] == version}
    assert prelabel(*ARGUMENTS, "--all", "--restart") == 0
    ours = [p for p in studio.predictions if p["model_version"] == version]
    assert sorted(p["task"] for p in ours) == [1, 2, 3, 4, 5, 6]
    assert not before & {p["id"] for p in ours}
    assert {p["id"] for p in studio.predictions} >= {-1}


def test_a_file_gets_all_tasks_also_those_with_predictions(studio: Studio, prelabel: Run) -> None:
    assert prelabel(*ARGUMENTS) == 0
    assert prelabel("labelstudio://7", "--to", "out.json") == 0
    assert len(json.loads(Path("out.json").read_text())) == 6


def test_tasks_that_are_labelled_already_are_said(
    studio: Studio, prelabel: Run, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prelabel(*ARGUMENTS) == 0
    assert "skipped" not in capsys.readouterr().err
    studio.data[7] = {"image": data_url(shade=7)}
    assert prelabel(*ARGUMENTS) == 0
    assert len(model.seen) == 7
    err = capsys.readouterr().err
    assert "1 images: 1 labelled" in err
    assert "skipped: 6 x labelled by this model already (--all replaces)" in err


def test_a_task_whose_image_is_another_now_is_labelled_again(
    studio: Studio, prelabel: Run, model: Model
) -> None:
    assert prelabel("labelstudio://7", "--to", "out.json") == 0
    studio.data[2] = {"image": data_url(shade=99)}
    model.seen.clear()
    assert prelabel("labelstudio://7", "--to", "out.json") == 0
    assert model.seen == [99]


def test_tasks_data_reads_no_files_of_this_machine(studio: Studio, prelabel: Run, photos: Path) -> None:
    studio.data = {
        1: {"image": str(photos / "a.png")},
        2: {"image": f"file://{photos}/a.png"},
        3: {"text": 1},
        4: {"image": "simplecache::http://169.254.169.254/latest/meta-data"},
        5: {"image": "ftp://127.0.0.1/a.png"},
    }
    assert prelabel("labelstudio://7", "--to", "out.json") == 1
    reasons = [task["meta"]["vlsam_error"] for task in json.loads(Path("out.json").read_text())]
    assert "not the path of a file in Label Studio" in reasons[0]
    assert "is not supported" in reasons[1]
    assert "no field 'image', where the image should be" in reasons[2]


def test_the_images_of_tasks_may_be_deep_in_their_data(studio: Studio, prelabel: Run) -> None:
    studio.project["label_config"] = CONFIG.replace('"$image"', '"$photos[0].url"')
    studio.data = {1: {"photos": [{"url": data_url(shade=2)}]}, 2: {"photos": []}}
    assert prelabel("labelstudio://7", "--to", "out.json") == 0
    found, failed = json.loads(Path("out.json").read_text())
    assert found["predictions"][0]["result"]
    assert "no field 'photos[0].url'" in failed["meta"]["vlsam_error"]


def test_predictions_need_their_own_tasks(
    studio: Studio, prelabel: Run, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prelabel(photos, "--to", "labelstudio://7") == 2
    assert "write a .json and import it" in capsys.readouterr().err


def test_coco_and_yolo_of_a_project_have_the_names_of_its_images(
    studio: Studio, prelabel: Run, model: Model, photos: Path
) -> None:
    addresses = [
        "/data/local-files/?d=cam1/1.png",
        "/data/local-files/?d=cam2/1.png",
        "/data/upload/7/5ab9-x.png",
    ]
    studio.data = {n: {"image": address} for n, address in enumerate(addresses, 11)}
    studio.files = {
        address: (photos / f"{name}.png").read_bytes() for address, name in zip(addresses, "abc", strict=True)
    }
    assert prelabel("labelstudio://7", "--to", "out.coco.json") == 0
    images = json.loads(Path("out.coco.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["cam1/1.png", "cam2/1.png", "5ab9-x.png"]
    assert [image["coco_url"] for image in images] == addresses
    assert prelabel("labelstudio://7", "--to", "out.yolo", "--copy-images") == 0
    for name, photo in (("cam1-1", "a"), ("cam2-1", "b"), ("5ab9-x", "c")):
        assert (
            Path("out.yolo", "images", f"{name}.png").read_bytes() == (photos / f"{photo}.png").read_bytes()
        )
        assert Path("out.yolo", "labels", f"{name}.txt").is_file()
    assert len(model.seen) == 6
    # Without copies no link is made for a task, whatever path its address looks like.
    assert prelabel("labelstudio://7", "--to", "out.yolo") == 0
    assert list(Path("out.yolo/images").iterdir()) == []


def test_a_project_as_destination_takes_no_files(
    studio: Studio, prelabel: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--copy-images", "--coco-polygons"):
        assert prelabel(*ARGUMENTS, option) == 2
        assert "go with files, not with a project" in capsys.readouterr().err


def shown(studio: Studio, capsys: pytest.CaptureFixture[str]) -> tuple[str, list[str]]:
    """The version that the project shows, and what was said about it."""
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vlsam: project 7")]
    return studio.project["model_version"], told


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", None, "VL-SAM"])
def test_the_project_shows_the_predictions_where_it_showed_none_or_a_backends(
    studio: Studio, prelabel: Run, capsys: pytest.CaptureFixture[str], before: str | None
) -> None:
    studio.project["model_version"] = before
    studio.backends = [{"id": 1, "title": "Another"}, {"id": 2, "title": "VL-SAM"}]
    assert prelabel(*ARGUMENTS) == 0
    version = studio.predictions[0]["model_version"]
    after, told = shown(studio, capsys)
    assert after == version
    assert told == [
        f"vlsam: project 7 shows the predictions of {version} now"
        + (", no longer those of backend VL-SAM" if before else "")
    ]
    # Once more there is nothing to tell.
    assert prelabel(*ARGUMENTS) == 0
    assert shown(studio, capsys) == (version, [])


def test_what_a_stopped_run_could_not_set_the_next_one_sets(studio: Studio, prelabel: Run) -> None:
    assert prelabel(*ARGUMENTS) == 0
    studio.project["model_version"] = ""
    assert prelabel(*ARGUMENTS) == 0
    assert studio.project["model_version"] == studio.predictions[0]["model_version"]


def test_another_models_predictions_stay_shown_unless_show_is_given(
    studio: Studio, prelabel: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    studio.project["model_version"] = "yolo-11"
    studio.predictions = [{"id": -1, "task": 1, "model_version": "yolo-11", "result": [], "project": 7}]
    studio.backends = [{"id": 1, "title": "VL-SAM"}]
    assert prelabel(*ARGUMENTS) == 0
    after, (told,) = shown(studio, capsys)
    assert after == "yolo-11"
    assert "shows the predictions of yolo-11" in told
    assert "--show" in told
    assert "Use predictions to prelabel tasks" in told
    assert prelabel(*ARGUMENTS, "--show") == 0  # nothing is annotated anew
    after, (told,) = shown(studio, capsys)
    assert after == studio.predictions[-1]["model_version"] != "yolo-11"
    assert told.endswith("now, no longer yolo-11")


def test_predictions_that_are_switched_off_are_told_and_switched_on_by_show(
    studio: Studio, prelabel: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    studio.project["show_collab_predictions"] = False
    assert prelabel(*ARGUMENTS) == 0
    after, (_, told) = shown(studio, capsys)
    assert after == studio.predictions[0]["model_version"]  # the score column shows it all the same
    assert "shows annotators no predictions at all" in told
    assert prelabel(*ARGUMENTS, "--show") == 0
    assert studio.project["show_collab_predictions"] is True
    assert len(shown(studio, capsys)[1]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("status", [403, 503])
def test_a_project_that_may_not_be_changed_ends_no_run(
    studio: Studio, prelabel: Run, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    studio.may_change = status
    assert prelabel(*ARGUMENTS) == 0
    said = capsys.readouterr().err
    assert f"HTTP {status}" in said
    assert f"choose {studio.predictions[0]['model_version']} in Label Studio: project 7, Settings" in said


def test_a_run_without_predictions_changes_nothing(
    studio: Studio, prelabel: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    studio.data = {1: {"image": "/nowhere.png"}}
    prelabel(*ARGUMENTS)
    after, (told,) = shown(studio, capsys)
    assert after == ""
    assert "has no predictions of" in told


def test_only_projects_show_predictions(
    studio: Studio, prelabel: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prelabel("labelstudio://7", "--to", "out.json", "--show") == 2
    assert "--show goes with --to labelstudio://N" in capsys.readouterr().err
