"""The whole server in this process, and the checks that each of its answers must pass."""

import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from werkzeug.test import TestResponse

from backend.answers.resources import Resources
from backend.images.fetch import Fetcher
from backend.web.app import create_app
from model.types import Image
from tests.support.clock import Clock
from tests.support.settings import settings_with

INPUTS: Counter[str] = Counter()  # by kind


STATUSES: Counter[int] = Counter()


def counted(kind: str) -> None:
    """Count an input."""
    INPUTS[kind] += 1


class ScriptedVLM:
    """Replaces a VLM: its text and its attention are given."""

    text = "dog, cat"
    cut = False
    attention: NDArray[np.float32] = np.eye(5, 7, dtype=np.float32)

    def answer(
        self, image: Image, question: str, *, forced_answer: str | None = None, **_: Any
    ) -> "ScriptedVLM":
        if forced_answer is None:
            return self
        spoken = ScriptedVLM()
        spoken.text = forced_answer
        return spoken

    def attention_maps(self, answer: "ScriptedVLM", spans: Sequence[Any], recipe: Any) -> NDArray[np.float32]:
        return np.stack([self.attention] * len(spans)) if spans else np.zeros((0, 5, 7), np.float32)


class WholeServer:
    """The whole server without a network: no host has an address."""

    def __init__(self, model: Any, **set_to: Any) -> None:
        settings = settings_with(**set_to)
        self._clock = Clock()
        self.resources = Resources(lambda: model, settings, version="v1", clock=self._clock)
        self.resources.images = Fetcher(settings.images, settings.label_studio, resolve=_nobody)
        self.app = create_app(resources=self.resources)
        self._client = self.app.test_client()

    def forget(self) -> None:
        """Let the caches expire, so that no example affects the next."""
        self._clock.now += 3600

    def predict(self, body: bytes) -> list[Any]:
        """Return the results, or none if the body was refused. Fail if the answer is not valid."""
        with no_errors():
            response = self._client.post("/predict", data=body, content_type="application/json")
        found = checked(response)
        if response.status_code != 200:
            assert response.status_code in (400, 413)
            return []
        asked = json.loads(body)
        context = (asked.get("params") or {}).get("context")
        results: list[Any] = found["results"]
        assert len(results) == (len(asked["tasks"]) if context is None else 1)
        assert all(item == {} or {"result", "score", "model_version"} <= set(item) for item in results)
        return results


def checked(response: TestResponse) -> Any:
    """Check an answer and return its JSON, whose numbers must be finite."""
    STATUSES[response.status_code] += 1
    assert response.status_code < 500 or response.status_code == 503
    assert "Traceback" not in response.text
    assert response.content_type == "application/json"
    found = json.loads(response.text, parse_constant=_not_json, parse_float=_finite)
    assert response.status_code < 400 or isinstance(found["error"], str)
    return found


class _Errors(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.seen: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record)


@contextmanager
def no_errors() -> Iterator[None]:
    """Fail if an error is logged: the answer alone does not tell our errors from those of a task."""
    errors = _Errors(logging.ERROR)
    logging.getLogger().addHandler(errors)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(errors)
    for record in errors.seen:
        if record.exc_info and record.exc_info[1]:
            raise record.exc_info[1]
        raise AssertionError(record.getMessage())


def _nobody(*_: Any, **__: Any) -> NoReturn:
    raise OSError("no network here")


def _not_json(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is no JSON")


def _finite(text: str) -> float:
    assert math.isfinite(float(text))
    return float(text)
