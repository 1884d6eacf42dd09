"""The README's table of settings is the table of the code."""

import re
from pathlib import Path

from backend.settings import Settings

README = Path(__file__).parents[1] / "README.md"
# The rows of a table whose first cell is a variable: | `NAME` | ...
ROW = re.compile(r"^\| *`([A-Z][A-Z0-9_]*)` *\|", re.MULTILINE)


def documented() -> list[str]:
    text = README.read_text("utf-8")
    section = re.search(r"^## Settings\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, "README.md has no section '## Settings'"
    return ROW.findall(section[1])


def test_every_setting_is_documented_once() -> None:
    names = documented()
    assert sorted(names) == sorted(set(names))
    assert {name for name, _, _ in Settings.table()} - set(names) == set()


def test_every_documented_setting_exists() -> None:
    assert set(documented()) - {name for name, _, _ in Settings.table()} == set()
