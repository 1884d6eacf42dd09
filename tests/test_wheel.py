"""The wheel, installed alone: its content, and its work without a checkout and without label-studio-ml."""

import ast
import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pycocotools import mask as coco

from tests.support.paths import ROOT
from tests.support.processes import call, free_port, start_server, stop, wait_until_up

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PYPROJECT["tool"]["setuptools"]["packages"]
LEFT_OUT = {"backend.demo", "model.training"}  # they run from a checkout
SAMPLE = ROOT / "model/builtin/samples/scene-04.jpg"


def test_packages_are_listed_by_exact_name_and_none_is_forgotten() -> None:
    folders = {file.parent for top in ("backend", "model", "vlsam") for file in (ROOT / top).rglob("*.py")}
    assert sorted(PACKAGES) == PACKAGES
    assert set(PACKAGES) == {".".join(folder.relative_to(ROOT).parts) for folder in folders} - LEFT_OUT


def test_every_library_that_the_code_imports_is_declared() -> None:
    """As a dependency or in an extra for users. label_studio_ml's pins forbid it; fsspec brings aiohttp."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    lines = [*PYPROJECT["project"]["dependencies"], *extras["prelabel"], *extras["ray"], *extras["heic"]]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    of_module = packages_distributions()
    for file in (file for package in PACKAGES for file in (ROOT / package.replace(".", "/")).glob("*.py")):
        for module in imported(file) - {"backend", "model", "vlsam", "label_studio_ml", "aiohttp"}:
            assert {canonicalize_name(name) for name in of_module[module]} & declared, f"{file}: {module}"


def imported(file: Path) -> set[str]:
    """The top-level modules beside Python's own that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module))
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")  # setuptools leaves files in its folder, and takes them later
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    for name in ("backend", "model", "vlsam"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", source / "dist", source)
    (file,) = (source / "dist").iterdir()
    return file


def pip(*arguments: str | Path, python: str | Path = sys.executable) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_wheel_holds_the_packages_and_the_weights_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"backend", "model", "vlsam", "vlsam-0.1.0.dist-info"}
    assert not [name for name in names if name.startswith(("backend/demo", "model/training"))]
    assert {f"{top}/py.typed" for top in ("backend", "model", "vlsam")} <= set(names)
    # Everything that the code reads beside itself; haproxy.cfg is for docker compose, in a checkout.
    data = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package.replace(".", "/")).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".py", ".cfg")
    }
    assert "model/builtin/sprites.png" in data
    assert "model/builtin/vlm/model.safetensors" in data
    assert data <= set(names)
    assert wheel.stat().st_size < 25e6  # of which the weights are 20e6


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with the wheel and links to the libraries that it declares."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip("install", "--no-deps", "--no-index", wheel, python=python)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    for library in declared():
        for name in {file.parts[0] for file in library.files or ()} - {"..", "__pycache__"}:
            place = Path(str(library.locate_file(name)))
            if not (packages / name).exists() and place.exists():
                (packages / name).symlink_to(place)
    return python


def declared() -> Iterator[Any]:
    """The libraries that `pip install vlsam` brings: those it declares, those they declare, and so on."""
    waiting = [Requirement(text) for text in PYPROJECT["project"]["dependencies"]]
    seen = set()
    while waiting:
        requirement = waiting.pop()
        key = (requirement.name.lower().replace("_", "-"), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            library = distribution(requirement.name)
        except PackageNotFoundError:  # for another platform
            continue
        yield library
        for text in library.requires or ():
            needed = Requirement(text)
            extras = ({"extra": extra} for extra in ("", *requirement.extras))
            if needed.marker is None or any(needed.marker.evaluate(extra) for extra in extras):
                waiting.append(needed)


def run(python: Path, folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # Not the environment of the tests, which may have a PYTHONPATH.
    environment = {"PATH": f"{python.parent}:/usr/bin:/bin", "HOME": str(folder), "VLSAM_DEVICE": "cpu"}
    return subprocess.run([*arguments], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_environment_has_nothing_of_ours_but_the_wheel(python: Path, tmp_path: Path) -> None:
    code = "import vlsam, model, backend, torch; print(vlsam.__file__, model.__file__, backend.__file__)"
    ended = run(python, tmp_path, python, "-c", code)
    assert all(Path(file).is_relative_to(python.parents[1]) for file in ended.stdout.split()), ended
    for absent in ("label_studio_ml", "redis", "rq", "colorama", "pytest", "backend.demo", "model.training"):
        ended = run(python, tmp_path, python, "-c", f"import {absent}")
        assert f"No module named '{absent}'" in ended.stderr


def test_every_module_of_the_wheel_can_be_imported(python: Path, tmp_path: Path) -> None:
    code = (
        "import pkgutil, importlib, backend, model, vlsam\n"
        "for top in (backend, model, vlsam):\n"
        "    for each in pkgutil.walk_packages(top.__path__, top.__name__ + '.'):\n"
        "        importlib.import_module(each.name)\n"
        "        print(each.name)\n"
    )
    ended = run(python, tmp_path, python, "-c", code)
    assert ended.returncode == 0, ended.stderr
    assert set(PACKAGES) - {"backend", "model", "vlsam"} <= set(ended.stdout.split())


def test_the_command_annotates(python: Path, tmp_path: Path) -> None:
    ended = run(python, tmp_path, "vlsam", "annotate", SAMPLE, "--json")
    assert ended.returncode == 0, ended.stderr
    (item,) = json.loads(ended.stdout)
    assert item["detections"]
    for detection in item["detections"]:
        assert coco.decode(detection["mask"]).shape == (item["height"], item["width"])


def test_the_python_api(python: Path, tmp_path: Path) -> None:
    code = "from vlsam import VLSAM, Prompt, __version__; print(VLSAM.__name__, Prompt.__name__, __version__)"
    ended = run(python, tmp_path, python, "-c", code)
    assert ended.stdout == f"VLSAM Prompt {PYPROJECT['project']['version']}\n", ended.stderr


def test_a_model_py_in_the_current_folder_is_named(python: Path, tmp_path: Path) -> None:
    (tmp_path / "model.py").touch()
    ended = run(python, tmp_path, python, "-c", "from vlsam import VLSAM")
    assert f"ImportError: {tmp_path / 'model.py'} shadows the package 'model' of vlsam" in ended.stderr
    assert run(python, tmp_path, "vlsam", "--help").returncode == 0  # a script's folder is bin


def test_prelabel_needs_nothing_else(python: Path, tmp_path: Path) -> None:
    ended = run(python, tmp_path, "vlsam", "prelabel", SAMPLE, "--to", "out.coco.json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "out.coco.json").read_text())["annotations"]


def test_serve_starts(python: Path, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    command = [str(python.parent / "vlsam"), "serve", "--host", "127.0.0.1", "--port", str(port)]
    process = start_server(command, port, tmp_path, log, {"HOME": str(tmp_path)})
    try:
        url = wait_until_up(process, port, log)
        assert call(url + "/versions")["versions"]
    finally:
        stop([process])


@pytest.mark.long
def test_pip_install_brings_all_that_it_needs(wheel: Path, tmp_path: Path) -> None:
    """With every library from the registry, within the constraints: gigabytes."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "environment"], check=True)
    python = tmp_path / "environment" / "bin" / "python"
    pip("install", "--constraint", ROOT / "constraints.txt", wheel, python=python)
    pip("check", python=python)
    test_every_module_of_the_wheel_can_be_imported(python, tmp_path)
    test_the_command_annotates(python, tmp_path)
    test_serve_starts(python, tmp_path)
