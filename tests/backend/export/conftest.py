"""Run exports."""

from collections.abc import Callable

import pytest

from backend.commands.cli import main


@pytest.fixture
def export() -> Callable[..., int]:
    """Run `vlsam export` of project 7 in this process."""
    return lambda *arguments: main(["export", "--project", "7", *map(str, arguments)])
