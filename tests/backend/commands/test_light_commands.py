"""Help and the commands that ask no model import no library of models, images or servers."""

import subprocess
import sys

import pytest

from backend.commands.cli import parser
from tests.support.processes import free_port

HEAVY = {"torch", "transformers", "label_studio_sdk", "label_studio_ml", "flask", "pyarrow", "ray"}
CODE = """\
import sys
from backend.commands.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(*{name.partition(".")[0] for name in sys.modules})
"""


def imported(*arguments: str) -> set[str]:
    """Return the top-level packages that a process has imported after running a command."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("command", [each.prog for each in parser().walk()])
def test_help_imports_neither_models_nor_servers(command: str) -> None:
    assert imported(*command.split()[1:], "--help") & {*HEAVY, "cv2", "PIL", "requests"} == set()


@pytest.mark.parametrize("command", ["terms --url http://127.0.0.1:{}", "config --labels Dog"])
def test_commands_that_ask_no_model_import_none(command: str) -> None:
    assert imported(*command.format(free_port()).split()) & HEAVY == set()
