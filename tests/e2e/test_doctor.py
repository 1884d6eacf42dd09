"""`vlsam doctor` at a real Label Studio: what works, and what the commonest mistakes are told as."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.commands.cli import main
from backend.demo import processes
from backend.labelstudio import recommended_configs
from backend.labelstudio.recommended_configs import label_config
from model.builtin.scenes import NAMES
from tests.support.label_studio_user import Studio
from tests.support.studio_servers import (
    OWNER,
    START_TIMEOUT_S,
    MakeProject,
    Project,
    Servers,
    save_scene,
    start_backend,
)

Ask = Callable[..., tuple[int, dict[str, list[dict[str, str]]]]]


@pytest.fixture(scope="module")
def project(make_project: MakeProject, tmp_path_factory: pytest.TempPathFactory) -> Project:
    image = save_scene(tmp_path_factory.mktemp("doctor") / "doctor.jpg", 11, width=320, height=280)
    return make_project("Doctor", label_config(NAMES), [image])


@pytest.fixture
def ask(servers: Servers, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Runs the command; its exit status, and its findings by check."""

    def run(project: int, *more: str, key: str = OWNER.token) -> tuple[int, dict[str, Any]]:
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", key)
        url = servers.studio.url
        status = main(["doctor", "--label-studio-url", url, "--project", str(project), "--json", *more])
        findings: dict[str, Any] = {}
        for finding in json.loads(capsys.readouterr().out):
            findings.setdefault(finding["check"], []).append(finding)
        return status, findings

    return run


def failed(findings: dict[str, Any]) -> list[str]:
    return [check for check, found in findings.items() if any(f["status"] == "failed" for f in found)]


def test_a_good_project(ask: Ask, project: Project, studio: Studio, servers: Servers) -> None:
    status, found = ask(project.id)
    assert (status, failed(found)) == (0, [])
    assert list(found) == [
        "connection", "token", "project", "config", "image", "backend", "predictions", "server", "model",
        "trial", "log",
    ]  # fmt: skip
    assert "Label Studio 1.23.2" in found["connection"][0]["message"]
    assert "320 x 280" in found["image"][0]["message"]
    assert servers.backend.url in found["backend"][0]["message"]
    assert "nothing of photographs" in found["model"][-1]["message"]
    assert "shows what 'VL-SAM' answers" in found["predictions"][0]["message"]
    assert "regions: the model saw " in found["trial"][0]["message"]
    assert str(servers.backend.log) in found["log"][0]["message"]
    # It changed nothing: also its trial prediction is not stored.
    assert studio.predictions(project.id) == []
    assert len(studio.backends(project.id)) == 1


def test_a_wrong_project(ask: Ask) -> None:
    status, found = ask(987654)
    assert status == 1
    assert "sees no project 987654" in found["project"][0]["message"]
    assert "image" not in found
    assert found["backend"][0]["status"] == "skipped"


def test_a_project_without_a_backend(ask: Ask, studio: Studio, servers: Servers) -> None:
    alone = studio.create_project("Doctor: alone", label_config(NAMES))
    status, found = ask(alone, "--backend-url", servers.backend.url)
    assert (status, failed(found)) == (1, ["backend"])
    assert "No ML backend is connected" in found["backend"][0]["message"]
    assert servers.backend.url in found["backend"][0]["cure"]
    assert found["image"][0]["status"] == "skipped"  # no tasks
    assert studio.backends(alone) == []
    status, found = ask(alone, "--backend-url", "http://no-such-host.invalid:9090")
    assert "does not find the host" in found["backend"][0]["message"]


def test_an_image_that_cannot_be_reached(ask: Ask, studio: Studio, servers: Servers) -> None:
    project = studio.create_project("Doctor: image", label_config(NAMES))
    closed = f"http://{processes.LOOPBACK}:{processes.free_port(0)}/photo.jpg"
    studio.import_tasks(project, [{"image": closed}])
    studio.connect_backend(project, servers.backend.url)
    status, found = ask(project)
    assert (status, failed(found)) == (1, ["image", "trial"])
    assert f"{closed} is refused" in found["image"][0]["message"]
    assert "VLSAM_ALLOWED_HOSTS" in found["image"][0]["message"]
    assert f"{closed} is refused" in found["trial"][0]["message"]
    assert str(servers.backend.log) in found["trial"][0]["cure"]


def test_terms_that_no_label_fits_are_named_and_counted(
    ask: Ask, make_project: MakeProject, studio: Studio, tmp_path: Path
) -> None:
    images = [save_scene(tmp_path / f"{seed}.png", seed, width=320, height=280) for seed in (11, 12, 13)]
    project = make_project("Doctor: labels", recommended_configs.label_config(["unicorn"]), images)
    status, found = ask(project.id, "--tasks", "2")
    assert (status, failed(found)) == (0, [])
    *tried, summary = found["trial"]
    assert len(tried) == 2
    for trial in tried:
        assert re.search(r"Task \d+ got no regions: the model saw \w+", trial["message"])
    assert re.match(r"Seen without a label: \w+ \([12] of 2 tasks\)", summary["message"])
    assert re.match(r'add <Label value="[A-Z]\w+"/>, or predicted_values="\w+"', summary["cure"])
    assert studio.predictions(project.id) == []


def test_a_backend_that_died_since(
    ask: Ask, servers: Servers, make_project: MakeProject, studio: Studio, tmp_path: Path
) -> None:
    project = studio.create_project("Doctor: dead", recommended_configs.label_config(NAMES))
    studio.import_files(project, [save_scene(tmp_path / "dead.png", 11, width=320, height=280)])
    backend = start_backend(servers.studio, OWNER.token, tmp_path / "backend.log")
    try:
        backend.wait_until_up(START_TIMEOUT_S)
        studio.connect_backend(project, backend.url)
    finally:
        backend.stop()
    status, found = ask(project)
    assert (status, failed(found)) == (1, ["backend", "server"])
    assert f"cannot use {backend.url}" in found["backend"][0]["message"]
    assert "Retrieve predictions and clicks do nothing" in found["backend"][0]["message"]
    assert f"No vlsam answers at {backend.url}" in found["server"][0]["message"]
    studio.retrieve_predictions(project)  # as it says
    assert studio.predictions(project) == []


def test_what_is_missing_is_set_where_somebody_agrees(ask: Ask, studio: Studio, servers: Servers) -> None:
    project = studio.create_project("Doctor: fix", "<View></View>")
    url = ("--backend-url", servers.backend.url)
    status, found = ask(project, "--fix", *url)  # no terminal
    assert status == 1
    assert ["Not done, since there" in f["message"] for f in found["fix"]] == [False, True]
    assert 'name its labels: --fix --labels "Dog,Car"' in found["fix"][0]["cure"]
    assert (studio.backends(project), studio.project(project)["label_config"]) == ([], "<View></View>")

    status, found = ask(project, "--fix", "--yes", "--labels", "dog,horse", "--for", "boxes", *url)
    assert status == 0
    assert [(f["status"], f["message"].partition(" now")[0]) for f in found["fix"]] == [
        ("ok", f"Project {project} has the recommended labeling config for boxes"),
        ("ok", f"Project {project} is connected to {servers.backend.url}."),
    ]
    wanted = recommended_configs.label_config(["dog", "horse"], "boxes")
    assert studio.project(project)["label_config"].strip() == wanted.strip()
    (backend,) = studio.backends(project)
    assert (backend["url"], backend["is_interactive"]) == (servers.backend.url, True)

    studio.import_tasks(project, [{"image": "http://127.0.0.1:9/photo.jpg"}])
    studio.add_prediction(studio.tasks(project)[0]["id"], [], "v1")
    studio.change_project(project, model_version="")
    studio.set_interactive(backend["id"], project, backend["url"], False)
    _, found = ask(project, "--fix", "--yes", "--labels", "cat", *url)
    assert [f["message"] for f in found["fix"]] == [
        "The project has a labeling config, and --labels does not replace it.",
        f"Interactive preannotations of {servers.backend.url} are on.",
        f"Project {project} shows the predictions of v1.",
    ]
    (after,) = studio.backends(project)
    assert after["is_interactive"]
    assert {**after, "updated_at": ""} == {**backend, "updated_at": ""}
    assert studio.project(project)["model_version"] == "v1"
    assert "horse" in studio.project(project)["label_config"]
    _, found = ask(project, "--fix", "--yes", *url)
    assert [f["message"] for f in found["fix"]] == ["There is nothing that can be set from here."]


def test_the_config_that_is_set_fits_the_tasks_that_are_there(
    ask: Ask, studio: Studio, servers: Servers
) -> None:
    project = studio.create_project("Doctor: photos", "<View></View>")
    studio.import_tasks(project, [{"name": "7", "photo": "http://127.0.0.1:9/7.jpg"}])
    _, found = ask(project, "--fix", "--yes", "--labels", "dog", "--backend-url", servers.backend.url)
    assert [f["status"] for f in found["fix"]] == ["ok", "ok"]
    assert 'value="$photo"' in studio.project(project)["label_config"]


def test_clicks_that_are_not_sent(ask: Ask, studio: Studio, servers: Servers) -> None:
    project = studio.create_project("Doctor: clicks", label_config(NAMES))
    studio.connect_backend(project, servers.backend.url, interactive=False)
    _, found = ask(project)
    assert "does not send clicks" in found["backend"][0]["message"]


def test_predictions_that_nobody_sees(ask: Ask, studio: Studio) -> None:
    project = studio.create_project("Doctor: predictions", label_config(NAMES))
    studio.import_tasks(project, [{"image": "http://127.0.0.1:9/photo.jpg"}])
    (task,) = studio.tasks(project)
    studio.add_prediction(task["id"], [], "v1")
    (found,) = ask(project)[1]["predictions"]
    assert (found["status"], found["message"][:34]) == ("failed", "The project shows none of its 1 pr")
    studio.change_project(project, model_version="v1")
    (found,) = ask(project)[1]["predictions"]
    assert (found["status"], found["message"]) == ("ok", "The project shows 1 predictions of v1.")
    studio.delete_predictions(project)
    (found,) = ask(project)[1]["predictions"]
    assert "predictions of v1, and has none of it." in found["message"]
    studio.change_project(project, show_collab_predictions=False)
    found, _ = ask(project)[1]["predictions"]
    assert "no predictions at all" in found["message"]


@pytest.fixture
def without_legacy_tokens(studio: Studio) -> Iterator[None]:
    """As after a plain installation."""
    studio.allow_legacy_tokens(False)
    yield
    studio.allow_legacy_tokens(True)


@pytest.mark.usefixtures("without_legacy_tokens")
def test_a_legacy_token_that_is_refused(ask: Ask, project: Project, servers: Servers) -> None:
    status, found = ask(project.id, "--backend-url", servers.backend.url)
    assert (status, failed(found)) == (1, ["token"])
    assert "Legacy tokens are disabled" in found["token"][0]["message"]
    assert "Personal Access Token" in found["token"][0]["cure"]


def test_tokens_that_are_none(ask: Ask, project: Project) -> None:
    _, found = ask(project.id, key="0" * 40)
    assert "does not know this legacy token" in found["token"][0]["message"]
    _, found = ask(project.id, key="")
    assert "is not set" in found["token"][0]["message"]


def test_the_servers_own_log_says_it_too(project: Project, studio: Studio, servers: Servers) -> None:
    """Label Studio called /setup when the project was connected, and got its answer before."""
    said = f"Project {project.id}, image: The image of task"
    studio.backends(project.id)
    for _ in range(100):
        if said in servers.backend.log.read_text("utf-8"):
            return
        time.sleep(0.1)
    raise AssertionError(servers.backend.tail())
