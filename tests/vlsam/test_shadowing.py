"""A Label Studio ML backend has a `model.py`, which Python finds before our package `model` in its folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import BIN, ROOT

FROM_THE_FOLDER = {
    "python -c": [sys.executable, "-c", "from vlsam import VLSAM"],
    "python -m vlsam": [sys.executable, "-m", "vlsam", "--help"],
    "python -m backend": [sys.executable, "-m", "backend.commands.cli", "--help"],
    "gunicorn": [str(BIN / "gunicorn"), "backend._wsgi:app", "--bind", "127.0.0.1:0"],
}


def run_in(folder: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    # The current folder comes first in sys.path, then PYTHONPATH.
    return subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("command", FROM_THE_FOLDER.values(), ids=FROM_THE_FOLDER)
@pytest.mark.parametrize("intruder", ["model.py", "model/__init__.py"])
def test_a_module_that_shadows_ours_is_named_and_not_run(
    tmp_path: Path, command: list[str], intruder: str
) -> None:
    file = tmp_path / intruder
    file.parent.mkdir(exist_ok=True)
    file.write_text("raise SystemExit('the intruder ran')")
    ended = run_in(tmp_path, command)
    assert ended.returncode not in (0, None)
    assert f"{file} shadows the package 'model' of vlsam: rename it, or run from a folder" in ended.stderr
    assert "the intruder ran" not in ended.stderr


def test_the_command_says_it_in_one_line(tmp_path: Path) -> None:
    for name in ("backend.py", "model.py"):
        file = tmp_path / name
        file.touch()
        ended = run_in(tmp_path, FROM_THE_FOLDER["python -m vlsam"])
        assert (ended.returncode, ended.stdout) == (2, "")
        (line,) = ended.stderr.splitlines()
        assert line.startswith(f"vlsam: {file} shadows the package '{file.stem}' of vlsam: ")
        file.unlink()


def test_a_host_application_may_have_a_module_of_the_name_backend(tmp_path: Path) -> None:
    (tmp_path / "backend.py").touch()
    assert run_in(tmp_path, FROM_THE_FOLDER["python -c"]).returncode == 0


def test_a_folder_without_code_shadows_nothing(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert run_in(tmp_path, FROM_THE_FOLDER["python -m vlsam"]).returncode == 0


def test_a_folder_without_code_that_hides_an_editable_install_is_named(tmp_path: Path) -> None:
    """Such an install finds our packages after all of sys.path."""
    (tmp_path / "model").mkdir()
    finder = (
        "import sys; from importlib.machinery import PathFinder\n"
        f"find = lambda name, path=None, target=None: PathFinder.find_spec(name, path or [{str(ROOT)!r}])\n"
        "sys.meta_path.append(type('Editable', (), {'find_spec': staticmethod(find)}))\n"
    )
    command = [sys.executable, "-S", "-c", finder + "import backend"]
    ended = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True, timeout=120)
    assert f"{tmp_path / 'model'} shadows the package 'model' of vlsam: rename it" in ended.stderr
