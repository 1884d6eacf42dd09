"""What any answer must be, whatever was asked; and the count of what was."""

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
    Door,
    Said,
)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if INPUTS:
        figures = {"inputs": INPUTS.total(), "by_kind": INPUTS, "statuses": dict(sorted(STATUSES.items()))}
        terminalreporter.section("fuzz")
        terminalreporter.line(json.dumps(figures))


@pytest.fixture(scope="session")
def said() -> Said:
    return Said()


@pytest.fixture(scope="session")
def door(said: Said, builtin: VLSAM) -> Iterator[Door]:
    """A server with the segmenter that ships, and what a VLM says given."""
    yield Door(VLSAM(cast(VLM, said), builtin.segmenter, version="v1"))
    PROCESS.install(None)
