"""A real Label Studio and a real `vlsam serve` with its built-in weights, once for all tests here."""

import os
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from backend.demo import processes
from backend.demo.processes import Account, Service
from backend.demo.studio import Studio
from model.builtin.scenes import NAMES, draw_scene

EXECUTABLE = Path(__file__).parents[2] / ".venv-studio" / "bin" / "label-studio"
OWNER = Account("owner@example.com", "e2e-password", "e2e0" * 10)
START_TIMEOUT_S = 300.0
# Label Studio's flag for refusing predictions that do not fit the labeling config; off as it ships.
VALIDATION = "fflag_feat_utc_210_prediction_validation_15082025"
ORIENTATION = 0x0112  # the EXIF tag; 6 says: turn clockwise by a quarter to show

_RUNNING = pytest.StashKey[list[Service]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RUNNING] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows what the servers logged last."""
    report = yield
    if report.failed:
        report.sections += [(service.name, service.tail()) for service in item.config.stash[_RUNNING]]
    return report


def without(reason: str) -> NoReturn:
    """Skip what needs something that is not installed; in CI, which installs it, fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def chromium() -> str:
    executable = shutil.which("chromium")
    if executable is None:
        without("Chromium is not installed: on Debian `apt-get install chromium` does it")
    return executable


@dataclass(frozen=True)
class Servers:
    studio: Service
    backend: Service


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    if not EXECUTABLE.exists():
        without("Label Studio is not installed in .venv-studio: `make studio` does it")
    folder = tmp_path_factory.mktemp("label-studio")
    running = request.config.stash[_RUNNING]
    try:
        studio = processes.start_label_studio(
            EXECUTABLE,
            folder / "data",
            processes.free_port(0),
            OWNER,
            folder / "label-studio.log",
            {VALIDATION: "true"},
        )
        running.append(studio)
        backend = start_backend(studio, OWNER.token, folder / "backend.log")
        running.append(backend)
        for service in (backend, studio):
            service.wait_until_up(START_TIMEOUT_S, on_wait=lambda seconds: None)
        yield Servers(studio, backend)
    finally:
        for service in reversed(running):
            service.stop()


def start_backend(studio: Service, token: str, log: Path, **settings: str) -> Service:
    settings = {"VLSAM_PROFILE": "builtin", **settings}
    return processes.start_backend(processes.free_port(0), studio.url, token, log, settings)


@pytest.fixture(scope="session")
def studio(servers: Servers) -> Iterator[Studio]:
    client = Studio(servers.studio.url, OWNER.email, OWNER.password)
    yield client
    client.close()


@pytest.fixture(scope="session")
def personal_token(studio: Studio) -> str:
    """A personal access token; Label Studio gives an account but one."""
    return studio.personal_access_token()


@dataclass(frozen=True)
class Project:
    id: int
    backend: int  # the id of the backend in Label Studio
    tasks: tuple[int, ...]  # in the order of the images


MakeProject = Callable[[str, str, Sequence[Path]], Project]


@pytest.fixture(scope="session")
def make_project(studio: Studio, servers: Servers) -> MakeProject:
    """A project with a labeling config and uploaded images, one task each, connected to the backend."""

    def make(title: str, label_config: str, images: Sequence[Path]) -> Project:
        project = studio.create_project(title, label_config)
        studio.import_files(project, images)
        backend = studio.connect_backend(project, servers.backend.url)
        # Label Studio calls an upload "<8 digits>-<name>" and may store the tasks in any order.
        by_name = {
            Path(task["data"]["image"]).name.partition("-")[2]: int(task["id"])
            for task in studio.tasks(project)
        }
        return Project(project, backend, tuple(by_name[path.name] for path in images))

    return make


def save_scene(path: Path, seed: int, *, width: int, height: int, turned: bool = False) -> Path:
    """A scene of one to three objects."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 4))
    scene = draw_scene(
        rng, width=width, height=height, count=count, scale=(0.35, 0.5), degrade=False, names=NAMES
    )
    return save_image(path, scene.image, turned=turned)


def save_image(path: Path, image: NDArray[np.uint8], *, turned: bool = False) -> Path:
    """`turned` is stored on its side, with an EXIF tag that says so."""
    shown = Image.fromarray(image)
    if turned:
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        shown.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    else:
        shown.save(path)
    return path
