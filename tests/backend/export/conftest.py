"""Pieces of annotations, as Label Studio 1.23.2 saves them."""

from collections.abc import Callable

import pytest

from backend.commands.cli import main


@pytest.fixture
def export() -> Callable[..., int]:
    """Runs `vlsam export` of project 7 in this process."""
    return lambda *arguments: main(["export", "--project", "7", *map(str, arguments)])
