import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from backend.answers.resources import PROCESS, Resources
from backend.commands.cli import main
from backend.web.app import create_app
from model.pipeline import VLSAM
from tests.support import fake_label_studio
from tests.support.colour_model import Model, save_image
from tests.support.detections import detection, disc
from tests.support.fake_label_studio import Studio
from tests.support.fake_web import Web
from tests.support.labeling_configs import CONFIG
from tests.support.paths import ROOT
from tests.support.processes import Process, start_server, stop, wait_until_up
from tests.support.settings import settings_with
from tests.support.stand_in import StandIn


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn([detection("cat", disc(20, 30, 12)), detection("dogs", disc(60, 30, 9), score=0.6)])


@pytest.fixture
def make_resources(stand_in: StandIn) -> Iterator[Callable[..., Resources]]:
    """Build Resources around the stand-in. Keywords are settings, `load` replaces how models are loaded."""

    def make(
        load: Callable[[], Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
        **settings: Any,
    ) -> Resources:
        load = load or (lambda: stand_in)
        return Resources(load, settings_with(**settings), version="v1", clock=clock).start()

    yield make
    PROCESS.install(None)


@pytest.fixture
def client(make_resources: Callable[..., Resources]) -> FlaskClient:
    return create_app(resources=make_resources()).test_client()


@pytest.fixture
def predict_body() -> Callable[..., dict[str, Any]]:
    """Build a /predict body as Label Studio sends it, for images that need no network."""

    def body(*tasks: Any, context: Any = None, config: str = CONFIG, project: str = "1.1") -> dict[str, Any]:
        full = [task if not isinstance(task, str) else {"id": 1, "data": {"image": task}} for task in tasks]
        params = {"login": None, "password": None, "context": context}
        return {"tasks": full, "project": project, "label_config": config, "params": params}

    return body


@pytest.fixture
def started() -> Iterator[list[Process]]:
    """List the processes that `start` started. Those that still run after the test are ended."""
    processes: list[Process] = []
    yield processes
    stop(processes)


@pytest.fixture
def start(tmp_path: Path, started: list[Process]) -> Callable[..., str]:
    """Start a command in a folder and return its address once /health answers."""

    def run(command: list[str], port: int, folder: Path = ROOT, **env: str) -> str:
        started.append(start_server(command, port, folder, tmp_path / "log", env))
        return wait_until_up(started[-1], port, tmp_path / "log")

    return run


@pytest.fixture
def studio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Studio]:
    with fake_label_studio.running(monkeypatch, tmp_path) as studio:
        yield studio


@pytest.fixture
def make_web() -> Iterator[Callable[..., Web]]:
    webs: list[Web] = []

    def make(context: ssl.SSLContext | None = None) -> Web:
        webs.append(Web(context))
        return webs[-1]

    yield make
    for web in webs:
        web.close()


@pytest.fixture
def web(make_web: Callable[..., Web]) -> Web:
    return make_web()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Save a.png (red 1) to f.png (6) and deep/g h.png (7), beside files that are no images."""
    folder = tmp_path / "photos"
    for red, name in enumerate(["a", "b", "c", "d", "e", "f", "deep/g h"], 1):
        save_image(folder / f"{name}.png", red)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    """Replace the weights of every job by a stand-in."""
    model = Model()
    monkeypatch.setattr(VLSAM, "load", lambda *args: model)
    return model


@pytest.fixture
def prelabel(model: Model) -> Callable[..., int]:
    """Run `vlsam prelabel` in this process."""
    return lambda *arguments: main(["prelabel", *map(str, arguments)])
