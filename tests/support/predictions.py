"""Requests of Label Studio, and what their answers hold."""

from typing import Any

from backend.answers.ml_backend import VLSAMBackend
from backend.answers.resources import Resources
from tests.support.editor_gestures import click_context
from tests.support.images import data_url
from tests.support.labeling_configs import CONFIG

SPLIT = CONFIG.replace('<Label value="Dog"/></BrushLabels>', "</BrushLabels>")  # dogs are polygons only


def task(number: int = 1, image: Any = None, **more: Any) -> dict[str, Any]:
    """Return a task as Label Studio sends it; its image, of 80 x 60 pixels, has the shade of its number."""
    return {"id": number, "data": {"image": image or data_url(shade=number)}, **more}


def backend(resources: Resources, config: str = CONFIG, **more: Any) -> VLSAMBackend:
    return VLSAMBackend(config, resources=resources, **more)


def regions(ours: VLSAMBackend, image: str, number: int = 1) -> list[Any]:
    """Return the regions that answer a click on a task."""
    (answer,) = ours.predict([task(number, image)], context=click_context(20, 30))
    return list(answer["result"])


def placed(prediction: dict[str, Any]) -> list[tuple[str, list[str], Any]]:
    """Return the control, labels and notes of each region."""
    return [
        (r["from_name"], r["value"].get(r["type"]), r["meta"].get("text"))
        for r in prediction["result"]
        if "meta" in r
    ]


OPEN = """<View><Image name="image" value="$image"/><Brush name="brush" toName="image"/>
  <TextArea name="what" toName="image" perRegion="true"/>
  <Taxonomy name="kind" toName="image" perRegion="true">
    <Choice value="Animal"><Choice value="Cat"/></Choice></Taxonomy>
  <KeyPoint name="kp" toName="image" smart="true"/></View>"""


STATUS = CONFIG.replace(
    "</View>",
    '<Text name="said" value="VL-SAM says:"/><TextArea name="vlsam_status" toName="said"/></View>',
)


def shown(answer: dict[str, Any]) -> list[str]:
    """Return the lines in the TextArea `vlsam_status` after an answer."""
    *_, status = answer["result"]
    assert (status["from_name"], status["to_name"]) == ("vlsam_status", "said")
    assert (status["type"], status["origin"]) == ("textarea", "prediction")
    assert list(status["value"]) == ["text"]
    lines: list[str] = status["value"]["text"]
    return lines
