"""Each row of docs/failure-modes.md has the tests that it names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = {
    int(row[1]): row[2]
    for row in re.finditer(
        r"^\| F(\d+) \|.*\| ([^|]*) \|$", (ROOT / "docs/failure-modes.md").read_text(), re.M
    )
}


def test_every_failure_mode_has_a_row() -> None:
    assert sorted(ROWS) == list(range(1, len(ROWS) + 1))


@pytest.mark.parametrize("number", ROWS)
def test_every_row_has_its_tests(number: int) -> None:
    """Files are named from tests/ on, or by name where they lie beside the one before."""
    folder, named = Path(), re.findall(r"(?:tests/[\w/]*)?test_\w+\.py", ROWS[number])
    assert named
    for name in named:
        folder = (ROOT / name).parent if "/" in name else folder
        text = (folder / Path(name).name).read_text()
        assert re.search(rf"^def test_(?:f\d+_)*f{number}_", text, re.MULTILINE), name
