"""`vlsam warm`: a project's images before anybody opens it."""

import time
from pathlib import Path

import pytest
import requests
from PIL import Image

from backend.commands.cli import main
from backend.demo.processes import Service
from backend.labelstudio.recommended_configs import label_config
from backend.labelstudio_api import client
from backend.runtime.embedding_files import SUFFIX
from model.builtin.scenes import NAMES
from tests.support.label_studio_user import Studio
from tests.support.studio_servers import (
    OWNER,
    START_TIMEOUT_S,
    MakeProject,
    Servers,
    save_scene,
    start_backend,
)


@pytest.mark.filterwarnings("ignore:The `parse_obj` method is deprecated")  # by the SDK, for personal tokens
@pytest.mark.parametrize("kind", ["legacy token", "personal access token"])
def test_a_project_is_encoded_page_by_page_and_only_once(
    kind: str,
    make_project: MakeProject,
    studio: Studio,
    servers: Servers,
    personal_token: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = [tmp_path / f"{shade}.png" for shade in range(3)]
    for shade, path in enumerate(images):
        Image.new("RGB", (64, 48), (shade, 0, 0)).save(path)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 this is no picture")
    project = make_project(f"Warm by {kind}", label_config(NAMES), [*images, broken])
    key = OWNER.token if kind == "legacy token" else personal_token
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", key)
    monkeypatch.setenv("VLSAM_CACHE_DIR", str(tmp_path / "kept"))
    monkeypatch.setattr(client, "PAGE", 2)
    command = ["warm", "--project", str(project.id), "--label-studio-url", servers.studio.url]

    assert main(command) == 1
    out, err = capsys.readouterr()
    assert out == "3 encoded, 0 there already, 1 failed\n"
    assert f"vlsam: task {project.tasks[3]}: The image file is broken" in err
    assert len(list((tmp_path / "kept").glob(f"*{SUFFIX}"))) == 3
    assert studio.predictions(project.id) == []

    assert main(command) == 1
    assert capsys.readouterr().out == "0 encoded, 3 there already, 1 failed\n"


def test_an_opened_task_is_not_annotated_but_ready_for_clicks(
    make_project: MakeProject,
    studio: Studio,
    servers: Servers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = [save_scene(tmp_path / f"{seed}.png", seed, width=320, height=240) for seed in (3, 4)]
    project = make_project("Prewarm", label_config(NAMES), images)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", OWNER.token)
    monkeypatch.setenv("LABEL_STUDIO_URL", servers.studio.url)
    monkeypatch.setenv("VLSAM_CACHE_DIR", str(tmp_path / "kept"))
    assert main(["warm", "--project", str(project.id)]) == 0

    settings = {"VLSAM_CACHE_DIR": str(tmp_path / "kept"), "VLSAM_ON_OPEN": "prewarm"}
    backend = start_backend(servers.studio, OWNER.token, tmp_path / "backend.log", **settings)
    try:
        backend.wait_until_up(START_TIMEOUT_S)
        # While models load, what is asked twice is done once.
        ready = time.monotonic() + START_TIMEOUT_S
        while requests.get(f"{backend.url}/ready", timeout=10).status_code != 200:
            assert time.monotonic() < ready, backend.tail()
            time.sleep(0.1)
        studio.connect_backend(project.id, backend.url)
        for _ in range(2):  # Label Studio asks each time, since there is no prediction
            assert studio.task(project.tasks[0])["predictions"] == []
        until = time.monotonic() + 60
        while 'vlsam_embedding_hits_total{tier="host"} 1.0' not in (text := metrics(backend)):
            assert time.monotonic() < until, backend.tail()
            time.sleep(0.1)
        assert 'vlsam_embedding_hits_total{tier="disk"} 1.0' in text
        assert "vlsam_embedding_misses_total 0.0" in text
        studio.retrieve_predictions(project.id)
        assert {p["task"] for p in studio.predictions(project.id)} == set(project.tasks)
    finally:
        backend.stop()


def metrics(backend: Service) -> str:
    return requests.get(f"{backend.url}/metrics", timeout=10).text


def test_what_label_studio_refuses_is_one_sentence(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", servers.studio.url)
    monkeypatch.setenv("VLSAM_CACHE_DIR", str(tmp_path))
    sees_none = f"This user sees no project 99999 at {servers.studio.url} (HTTP 404); take the number from"
    for key, said in (
        (OWNER.token, sees_none),
        ("e2e1" * 10, "Label Studio does not know this legacy token"),
    ):
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", key)
        assert main(["warm", "--project", "99999"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"vlsam: {said}")
