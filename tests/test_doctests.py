"""The examples in docstrings run, beside an image of the built-in scenes called street.jpg."""

import doctest
import importlib
import shutil
from pathlib import Path

import pytest

from tests.support.paths import ROOT

MODULES = [
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for top in ("backend", "model", "vlsam")
    for path in sorted((ROOT / top).rglob("*.py"))
    if ">>> " in path.read_text("utf-8")
]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "model/builtin/samples/scene-04.jpg", tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    tested = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert tested.attempted
    assert not tested.failed


def test_the_public_names_have_examples() -> None:
    assert {
        "model.pipeline",
        "model.types",
        "model.image_decoding",
        "model.overlay",
        "model.profiles",
    } <= set(MODULES)
