import json
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest

from model.pipeline import VLSAM
from model.profiles import choose
from tests.support.paths import CAPTURES

# A busy machine is no bug.
hypothesis.settings.register_profile(
    "steady", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("steady")
# `make fuzz`.
hypothesis.settings.register_profile("fuzz", hypothesis.settings.get_profile("steady"), max_examples=1000)


@pytest.fixture(scope="session")
def builtin() -> VLSAM:
    """The weights that ship. Tests may rely on shapes and promises, not on how good they are."""
    return VLSAM.load(choose(), device="cpu")


@pytest.fixture
def capture() -> Callable[..., Any]:
    """A body that Label Studio 1.23.2 sent, by name: those from an editor (ui_*), or the server's own."""

    def load(name: str, number: int = 0) -> Any:
        recorded = json.loads((CAPTURES / f"{name}.json").read_text("utf-8"))
        return recorded[number] if isinstance(recorded, list) else recorded["json"]

    return load
