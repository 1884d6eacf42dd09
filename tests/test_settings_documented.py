"""The table of docs/reference/settings.md is the table of the code."""

import re
from pathlib import Path

from backend.settings import Settings

PAGE = Path(__file__).parents[1] / "docs/reference/settings.md"
# The rows of a table whose first cell is a variable: | `NAME` | ...
ROW = re.compile(r"^\| *`([A-Z][A-Z0-9_]*)` *\|", re.MULTILINE)


def documented() -> list[str]:
    return ROW.findall(PAGE.read_text("utf-8"))


def test_every_setting_is_documented_once() -> None:
    names = documented()
    assert sorted(names) == sorted(set(names))
    assert {name for name, _, _ in Settings.table()} - set(names) == set()


def test_every_documented_setting_exists() -> None:
    assert set(documented()) - {name for name, _, _ in Settings.table()} == set()
