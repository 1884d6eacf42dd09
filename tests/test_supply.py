"""What is installed: pinned, as pyproject.toml wants it, without the holes known when it was pinned."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = {
    requirement.name.lower().replace("_", "-"): requirement
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if (requirement := Requirement(line))
}
WANTED = [
    Requirement(text)
    for text in [
        *PROJECT["dependencies"],
        *(text for extra in PROJECT["optional-dependencies"].values() for text in extra),
    ]
]


def pinned(name: str) -> Version:
    (only,) = PINNED[name.lower().replace("_", "-")].specifier
    assert only.operator == "=="
    return Version(only.version)


@pytest.mark.parametrize("wanted", [r for r in WANTED if r.name != PROJECT["name"]], ids=lambda r: r.name)
def test_every_dependency_is_pinned_within_what_the_project_wants(wanted: Requirement) -> None:
    assert pinned(wanted.name) in wanted.specifier


# The first versions without the holes that concern us: SSRF (label-studio-sdk), code in checkpoints
# (torch, CVE-2025-32434), decoders (pillow), reaching a cluster's dashboard (ray, CVE-2025-62593).
@pytest.mark.parametrize(
    ("name", "first"), [("label-studio-sdk", "2.1.2"), ("torch", "2.6"), ("pillow", "12.2"), ("ray", "2.52")]
)
def test_f25_what_had_holes_is_wanted_and_pinned_above_them(name: str, first: str) -> None:
    asked = [r for r in WANTED if re.split(r"\[", r.name)[0] == name]
    assert asked
    for requirement in asked:
        assert any(s.operator == ">=" and Version(s.version) >= Version(first) for s in requirement.specifier)
    assert pinned(name) >= Version(first)


def test_pins_say_no_address() -> None:
    assert not re.search(r"://|@|--hash|index", (ROOT / "constraints.txt").read_text())


def test_image_and_make_install_what_is_pinned() -> None:
    for name in ("Dockerfile", "Makefile"):
        assert "--constraint constraints.txt" in (ROOT / name).read_text()
