"""Tasks, and clicks on them."""

from typing import Any

from backend.answers.ml_backend import VLSAMBackend
from tests.support.editor_gestures import click, context


def task(source: str, number: int = 1) -> dict[str, Any]:
    return {"id": number, "data": {"image": source}}


def regions(ours: VLSAMBackend, source: str, number: int = 1) -> list[Any]:
    """Return the regions that answer a click on a task."""
    (answer,) = ours.predict([task(source, number)], context=context(click(20, 30)))
    return list(answer["result"])
