"""Imports run downwards: which rooms each room may import, and no circle of rooms or modules."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter

import pytest

from tests.support.paths import ROOT

CORE = "labelstudio settings telemetry"
ANSWERS = f"images labelstudio_api runtime {CORE}"
BATCH = f"answers {ANSWERS}"
ALLOWED = {  # what a room of backend/ may import beside model/, and a room of model/ beside its single files
    "labelstudio": "", "settings": "", "telemetry": "", "runtime": "telemetry",
    "images": "runtime settings", "labelstudio_api": "images settings", "answers": ANSWERS,
    "doctor": f"images labelstudio_api {CORE}", "datasets": BATCH, "prelabel": f"datasets {BATCH}",
    "export": f"datasets {BATCH}",
    "web": f"doctor {BATCH}", "_wsgi": f"web {BATCH}", "bench": f"datasets prelabel web {BATCH}",
    "demo": f"labelstudio_api {CORE}", "commands": f"_wsgi bench doctor export prelabel {BATCH}",
    "backend": "vlsam._shadowing", "vlsam._shadowing": "", "vlsam": "vlsam._shadowing",
    "vlsam.__main__": "commands vlsam._shadowing",
    "model.weights": "", "model.attention": "model.weights", "model.segmentation": "model.weights",
    "model.vlm": "model.attention model.weights",
}  # fmt: skip
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("backend", "model", "vlsam")
    for path in (ROOT / package).rglob("*.py")
}


def imports(module: str, *, deferred: bool) -> Iterator[str]:
    """Yield our modules that a module imports, with `deferred` also those within functions."""
    pending: list[ast.AST] = [ast.parse(MODULES[module].read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                yield from [each for each in (name, node.module) if each in MODULES][:1]
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
        elif deferred or not isinstance(node, ast.FunctionDef):
            pending += ast.iter_child_nodes(node)


def room(module: str) -> str:
    """Return "answers" for backend.answers.batch, "model.vlm" for model.vlm.terms, "model.types" as it is."""
    return ".".join(module.split(".")[:2]).removeprefix("backend.")


ROOMS = {room(module): set[str]() for module in MODULES}
for _module in MODULES:
    ROOMS[room(_module)] |= {room(name) for name in imports(_module, deferred=True)} - {room(_module)}


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_what_it_may(name: str) -> None:
    model = name.startswith("model")
    limited = {to for to in ROOMS[name] if not to.startswith("model") or (model and {name, to} <= {*ALLOWED})}
    assert limited <= set(ALLOWED.get(name, "").split())


def test_no_circle_of_rooms_or_modules() -> None:
    TopologicalSorter(ROOMS).prepare()  # raises CycleError, which lists the circle
    TopologicalSorter({module: imports(module, deferred=False) for module in MODULES}).prepare()
