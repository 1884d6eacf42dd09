"""The names of `from vlsam import ...`."""

import subprocess
import sys

import pytest

import vlsam
from model import types


def loaded_by(code: str) -> set[str]:
    """The modules that a new process has loaded after `code`."""
    code += "; import sys; print(*sys.modules)"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )


@pytest.mark.parametrize(
    "code",
    [
        "import vlsam",
        "import vlsam; dir(vlsam); vlsam.__version__",
        "from vlsam import Detection, Prompt, PromptError",
        "from vlsam import PROFILES, RECIPES, Options, Profile",
        "from vlsam import Image, ImageError, ImageLike, draw, read_image",
    ],
)
def test_what_needs_no_model_loads_no_torch(code: str) -> None:
    assert not loaded_by(code) & {"torch", "transformers", "label_studio_sdk", "flask", "requests"}


def test_importing_the_package_loads_no_other_of_ours() -> None:
    ours = {name.split(".")[0] for name in loaded_by("import vlsam")}
    assert "vlsam" in ours
    assert not ours & {"model", "backend", "numpy"}


def test_every_public_name_is_there_and_listed() -> None:
    for name in vlsam.__all__:
        assert getattr(vlsam, name) is not None
        assert name in dir(vlsam)
    with pytest.raises(AttributeError, match="module 'vlsam' has no attribute 'Sam'"):
        vlsam.Sam  # noqa: B018


def test_every_error_of_model_types_is_public() -> None:
    classes = {name: value for name, value in vars(types).items() if isinstance(value, type)}
    errors = {name for name, kind in classes.items() if issubclass(kind, Exception)}
    assert len(errors) > 5
    assert errors <= set(vlsam.__all__)
