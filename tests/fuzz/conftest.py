"""A server for fuzzing, and the count of inputs at the end of a run."""

import json
from collections.abc import Iterator
from typing import cast

import pytest

from backend.answers.resources import PROCESS
from model.pipeline import VLSAM
from model.vlm.vlm import VLM
from tests.support.whole_server import (
    INPUTS,
    STATUSES,
    ScriptedVLM,
    WholeServer,
)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if INPUTS:
        figures = {"inputs": INPUTS.total(), "by_kind": INPUTS, "statuses": dict(sorted(STATUSES.items()))}
        terminalreporter.section("fuzz")
        terminalreporter.line(json.dumps(figures))


@pytest.fixture(scope="session")
def said() -> ScriptedVLM:
    return ScriptedVLM()


@pytest.fixture(scope="session")
def server(said: ScriptedVLM, builtin: VLSAM) -> Iterator[WholeServer]:
    """Build a server with the built-in segmenter and a scripted VLM."""
    yield WholeServer(VLSAM(cast(VLM, said), builtin.segmenter, version="v1"))
    PROCESS.install(None)
