"""Small images and a model that reads their colour: fast, and every image has another answer."""

from collections.abc import Callable
from pathlib import Path

import pytest

from backend.commands.cli import main
from model.pipeline import VLSAM
from tests.support.colour_model import Model, save_image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """a.png (red 1) to f.png (6) and deep/g h.png (7), beside files that are no images."""
    folder = tmp_path / "photos"
    for red, name in enumerate(["a", "b", "c", "d", "e", "f", "deep/g h"], 1):
        save_image(folder / f"{name}.png", red)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    """In place of the weights of every job."""
    model = Model()
    monkeypatch.setattr(VLSAM, "load", lambda *args: model)
    return model


@pytest.fixture
def prelabel(model: Model) -> Callable[..., int]:
    """Runs `vlsam prelabel` in this process."""
    return lambda *arguments: main(["prelabel", *map(str, arguments)])
