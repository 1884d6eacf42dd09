"""Each row of docs/failure-modes.md has the tests that it names, and these look at something."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = {
    int(row[1]): row[2]
    for row in re.finditer(
        r"^\| F(\d+) \|.*\| ([^|]*) \|$", (ROOT / "docs/failure-modes.md").read_text(), re.M
    )
}
Test = ast.FunctionDef | ast.AsyncFunctionDef


def files(number: int) -> list[Path]:
    """The files that a row names: from tests/ on, or by name where they lie beside the one before."""
    folder, found = Path(), []
    for name in re.findall(r"(?:tests/[\w/]*)?test_\w+\.py", ROWS[number]):
        folder = (ROOT / name).parent if "/" in name else folder
        found.append(folder / Path(name).name)
    return found


def collected(number: int, module: ast.Module) -> list[Test]:
    """What pytest collects of a file for a row: functions of the module itself."""
    named = re.compile(rf"test_(?:f\d+_)*f{number}_")
    return [node for node in module.body if isinstance(node, Test) and named.match(node.name)]


def faults(test: Test, module: ast.Module) -> Iterator[str]:
    """Why a test says nothing."""
    marks = {ast.unparse(mark) for mark in test.decorator_list}
    if any(re.match(r"pytest\.mark\.(skip|xfail)\b", mark) for mark in marks):
        yield "is left out"
    helpers = {node.name: node for node in module.body if isinstance(node, Test) and node is not test}
    if not _looks(test) and not any(_looks(helpers[name]) for name in _called(test) & helpers.keys()):
        yield "asserts nothing"


def _called(test: Test) -> set[str]:
    calls = (node.func for node in ast.walk(test) if isinstance(node, ast.Call))
    return {func.id for func in calls if isinstance(func, ast.Name)}


def _looks(test: Test) -> bool:
    """Whether something in it may fail: an assert of more than a constant, or an error that must come."""
    return any(
        (isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant))
        or (isinstance(node, ast.withitem) and "raises(" in ast.unparse(node.context_expr))
        for node in ast.walk(test)
    )


def test_every_failure_mode_has_a_row() -> None:
    assert sorted(ROWS) == list(range(1, len(ROWS) + 1))


@pytest.mark.parametrize("number", ROWS)
def test_every_row_has_its_tests(number: int) -> None:
    assert files(number)
    for file in files(number):
        module = ast.parse(file.read_text())
        tests = collected(number, module)
        assert tests, file
        assert {test.name: why for test in tests for why in faults(test, module)} == {}, file


def test_every_test_of_a_failure_mode_is_in_a_file_that_its_row_names() -> None:
    for file in (ROOT / "tests").rglob("test_*.py"):
        for name in re.findall(r"^(?:async )?def test_((?:f\d+_)+)", file.read_text(), re.MULTILINE):
            for number in re.findall(r"\d+", name):
                assert file in files(int(number)), f"F{number}"


@pytest.mark.parametrize(
    ("test", "why"),
    [
        ("def test_f1_x():\n    assert answer() == 1", []),
        ("def test_f1_x():\n    with pytest.raises(ValueError):\n        answer()", []),
        ("def test_f1_x():\n    checked(answer())\ndef checked(it):\n    assert it", []),
        ("def test_f1_x():\n    answer()\ndef answer():\n    pass", ["asserts nothing"]),
        ("def test_f1_x():\n    '''Nothing.'''", ["asserts nothing"]),
        ("def test_f1_x():\n    assert True", ["asserts nothing"]),
        ("@pytest.mark.skip\ndef test_f1_x():\n    assert answer()", ["is left out"]),
        ("@pytest.mark.xfail(strict=False)\ndef test_f1_x():\n    assert answer()", ["is left out"]),
    ],
)
def test_a_test_that_cannot_fail_is_found(test: str, why: list[str]) -> None:
    module = ast.parse(test)
    (found,) = collected(1, module)
    assert list(faults(found, module)) == why
    assert collected(1, ast.parse("class Inner:\n    def test_f1_x(self): ...")) == []
