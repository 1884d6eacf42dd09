"""A real Label Studio and a real `vlsam serve` with its built-in weights, once for all tests here."""

import shutil
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import pytest

from backend.demo import processes
from backend.demo.processes import Service
from tests.support.label_studio_user import Studio
from tests.support.studio_servers import (
    EXECUTABLE,
    OWNER,
    START_TIMEOUT_S,
    VALIDATION,
    MakeProject,
    Project,
    Servers,
    start_backend,
    without,
)

_RUNNING = pytest.StashKey[list[Service]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RUNNING] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the end of the servers' logs to the report of a failure."""
    report = yield
    if report.failed:
        report.sections += [(service.name, service.tail()) for service in item.config.stash[_RUNNING]]
    return report


@pytest.fixture(scope="session")
def chromium() -> str:
    executable = shutil.which("chromium")
    if executable is None:
        without("Chromium is not installed: on Debian `apt-get install chromium` does it")
    return executable


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
            service.wait_until_up(START_TIMEOUT_S)
        yield Servers(studio, backend)
    finally:
        for service in reversed(running):
            service.stop()


@pytest.fixture(scope="session")
def studio(servers: Servers) -> Iterator[Studio]:
    client = Studio(servers.studio.url, OWNER.email, OWNER.password)
    yield client
    client.close()


@pytest.fixture(scope="session")
def personal_token(studio: Studio) -> str:
    """Create a personal access token. Label Studio gives an account only one."""
    return studio.personal_access_token()


@pytest.fixture(scope="session")
def make_project(studio: Studio, servers: Servers) -> MakeProject:
    """Create a project with uploaded images, one task each, and connect it to the backend."""

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
