"""What holds for every file of tests: where things are, and what they may touch."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

TESTS = ROOT / "tests"
FILES = {str(path.relative_to(ROOT)): ast.parse(path.read_text("utf-8")) for path in TESTS.rglob("*.py")}
# Modules that are named so, and private names of libraries that have no public ones for the purpose.
ALLOWED = {
    "_wsgi", "_exit", "_manager", "__main__", "_can_set_attn_implementation", "_prepare_cache_for_generation",
}  # fmt: skip


def not_fixtures(conftest: ast.Module) -> Iterator[str]:
    """Yield the functions and classes that are neither a fixture nor a hook of pytest."""
    for node in conftest.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not (
            node.name.startswith("pytest_") or "fixture" in " ".join(map(ast.unparse, node.decorator_list))
        ):
            yield node.name


def imports_of_tests(module: ast.Module) -> list[str]:
    """Return the names of test modules and conftests that it imports, or imports from."""
    paths: list[str] = []
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom):
            paths += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            paths += [alias.name for alias in node.names]
    return [path for path in paths if re.search(r"(^|\.)(conftest|test_\w+)(\.|$)", path)]


def private(module: ast.Module) -> Iterator[str]:
    """Yield each use of a name with a leading underscore that belongs to another object."""
    for node in ast.walk(module):
        names: list[str] = []
        match node:
            case ast.Attribute(attr=name) if name.startswith("_"):
                names = [] if ast.unparse(node.value) in ("self", "cls", "super()") else [name]
            case ast.ImportFrom():
                names = [alias.name for alias in node.names]
            case ast.Call(
                func=ast.Attribute(attr="setattr" | "delattr") | ast.Name(id="getattr" | "setattr")
            ):
                texts = [each.value for each in node.args if isinstance(each, ast.Constant)]
                names = [part for text in texts if isinstance(text, str) for part in text.split(".")]
        for name in names:
            if re.fullmatch(r"_\w*[^_]_?", name) and name not in ALLOWED:  # no dunder
                yield ast.unparse(node)


def test_a_conftest_holds_fixtures_alone() -> None:
    conftests = {name: module for name, module in FILES.items() if Path(name).name == "conftest.py"}
    assert len(conftests) > 1
    assert {name: found for name, module in conftests.items() if (found := list(not_fixtures(module)))} == {}


def test_no_test_imports_another_test_or_a_conftest() -> None:
    assert {name: found for name, module in FILES.items() if (found := imports_of_tests(module))} == {}


def test_no_test_reaches_into_another_objects_underscore() -> None:
    assert {name: found for name, module in FILES.items() if (found := list(private(module)))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "model._hidden",
        "make()._hidden()",
        "self.model._hidden",
        "from model.vlm import _hidden",
        "monkeypatch.setattr(model, '_hidden', 1)",
        "monkeypatch.setattr('model.vlm._hidden', 1)",
        "getattr(model, '_hidden')",
    ],
)
def test_a_reach_is_seen(source: str) -> None:
    assert list(private(ast.parse(source)))


@pytest.mark.parametrize("source", ["self._own", "super()._own()", "_own", "model.__class__", "a.b_c"])
def test_own_names_and_dunders_are_no_reach(source: str) -> None:
    assert not list(private(ast.parse(source)))


def test_a_helper_in_a_conftest_is_seen() -> None:
    source = "import pytest\n@pytest.fixture(scope='session')\ndef good(): ...\ndef pytest_configure(): ...\n"
    assert list(not_fixtures(ast.parse(source))) == []
    assert list(not_fixtures(ast.parse(source + "class Model: ...\ndef build(): ..."))) == ["Model", "build"]


@pytest.mark.parametrize(
    "source",
    [
        "from tests.backend import conftest as given",
        "import tests.test_a",
        "from tests.model.test_a import b",
    ],
)
def test_an_import_of_a_test_is_seen(source: str) -> None:
    assert imports_of_tests(ast.parse(source))
    assert imports_of_tests(ast.parse("from tests.support.images import png\nimport pytest")) == []
