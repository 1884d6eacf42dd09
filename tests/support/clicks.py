"""Send clicks to a backend."""

from typing import Any

from backend.answers.ml_backend import VLSAMBackend


def click(x: float, y: float, label: str = "Cat") -> dict[str, Any]:
    value = {"x": x / 0.8, "y": y / 0.6, "width": 0.2, "keypointlabels": [label]}
    return {"result": [{"value": value, "type": "keypointlabels", "id": "p", "is_positive": True}]}


def task(source: str, number: int = 1) -> dict[str, Any]:
    return {"id": number, "data": {"image": source}}


def regions(ours: VLSAMBackend, source: str, number: int = 1) -> list[Any]:
    (answer,) = ours.predict([task(source, number)], context=click(20, 30))
    return list(answer["result"])
