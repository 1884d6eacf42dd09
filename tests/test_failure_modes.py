"""Each row of docs/operate/failure-modes.md has tests named after it, and each of these can fail."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/operate/failure-modes.md"
ROWS = [int(number) for number in re.findall(r"^\| F(\d+) \|", PAGE.read_text("utf-8"), re.MULTILINE)]
Test = ast.FunctionDef | ast.AsyncFunctionDef


def numbers(name: str) -> list[int]:
    """The rows that a test's name refers to: [20, 21] for test_f20_f21_..."""
    prefix = re.match(r"test_((?:f\d+_)+)", name)
    return [int(number) for number in re.findall(r"\d+", prefix[1])] if prefix else []


def collected(module: ast.Module) -> list[Test]:
    """What pytest collects of a file for any row: functions of the module itself."""
    return [node for node in module.body if isinstance(node, Test) and numbers(node.name)]


def faults(test: Test, module: ast.Module) -> Iterator[str]:
    """Why a test cannot fail."""
    marks = {ast.unparse(mark) for mark in test.decorator_list}
    if any(re.match(r"pytest\.mark\.(skip|xfail)\b", mark) for mark in marks):
        yield "is left out"
    helpers = {node.name: node for node in module.body if isinstance(node, Test) and node is not test}
    if not _asserts(test) and not any(_asserts(helpers[name]) for name in _called(test) & helpers.keys()):
        yield "asserts nothing"


def _called(test: Test) -> set[str]:
    calls = (node.func for node in ast.walk(test) if isinstance(node, ast.Call))
    return {func.id for func in calls if isinstance(func, ast.Name)}


def _asserts(test: Test) -> bool:
    """Whether it holds an assert of more than a constant, or an error that must be raised."""
    return any(
        (isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant))
        or (isinstance(node, ast.withitem) and "raises(" in ast.unparse(node.context_expr))
        for node in ast.walk(test)
    )


def test_rows_are_numbered_from_one() -> None:
    assert sorted(ROWS) == list(range(1, len(ROWS) + 1))


def test_every_row_has_tests_and_every_such_test_a_row() -> None:
    tested = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        if "def test_f" not in (text := file.read_text("utf-8")):
            continue
        module = ast.parse(text)
        tests = collected(module)
        assert {test.name: why for test in tests for why in faults(test, module)} == {}, file
        tested |= {number for test in tests for number in numbers(test.name)}
    assert tested == set(ROWS)


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
    (found,) = collected(module)
    assert list(faults(found, module)) == why
    assert collected(ast.parse("class Inner:\n    def test_f1_x(self): ...")) == []
