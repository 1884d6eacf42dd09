import json
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest

from model.pipeline import VLSAM
from model.profiles import choose
from tests.support.paths import CAPTURES, ROOT

# A slow example on a busy machine is no failure.
hypothesis.settings.register_profile(
    "steady", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("steady")
# `make check`.
hypothesis.settings.register_profile("quick", hypothesis.settings.get_profile("steady"), max_examples=20)
# `make fuzz`.
hypothesis.settings.register_profile("fuzz", hypothesis.settings.get_profile("steady"), max_examples=1000)

# Where each test takes a second or more on two idle cores: it starts servers, processes or Ray, trains, or
# plays many rounds. In other files such tests are marked one by one. Measured by `pytest --durations=0`.
SLOW = (
    "e2e", "fuzz", "bench", "model/bench", "model/training", "backend/commands/test_bench.py",
    "backend/commands/test_light_commands.py", "backend/prelabel/test_cluster.py",
    "backend/prelabel/test_imports.py", "backend/test_wsgi.py", "backend/web/test_hammer.py",
    "test_connections.py", "test_doctests.py", "test_replicas.py", "test_wheel.py",
    "vlsam/test_shadowing.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = tuple(str(path) for name in SLOW for path in [ROOT / "tests" / name] if path.stat())
    for item in items:
        if str(item.path).startswith(slow):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def builtin() -> VLSAM:
    """Load the built-in weights. Tests may rely on shapes and contracts, not on their quality."""
    return VLSAM.load(choose(), device="cpu")


@pytest.fixture
def capture() -> Callable[..., Any]:
    """Load a request body recorded from Label Studio 1.23.2, by name: of the editor (ui_*) or the server."""

    def load(name: str, number: int = 0) -> Any:
        recorded = json.loads((CAPTURES / f"{name}.json").read_text("utf-8"))
        return recorded[number] if isinstance(recorded, list) else recorded["json"]

    return load
