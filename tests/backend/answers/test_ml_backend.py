import base64
import json
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image as Pillow

from backend.answers.resources import Resources
from backend.labelstudio import region_meta
from backend.labelstudio.region_reading import decode
from model.builtin.scenes import NAMES, draw_scene
from model.pipeline import VLSAM
from tests.support.predictions import backend, task

Make = Callable[..., Resources]


@pytest.fixture(scope="module")
def photo() -> str:
    scene = draw_scene(np.random.default_rng(3), width=320, height=240, count=2, degrade=False)
    file = BytesIO()
    Pillow.fromarray(scene.image).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_the_way_to_label_studio(make_resources: Make) -> None:
    from_setup = {"hostname": "http://localhost:8080/", "access_token": "theirs"}
    server = backend(make_resources(), **from_setup).access.server
    assert server is not None
    assert (server.url, server.token) == ("http://localhost:8080", "theirs")
    assert backend(make_resources()).access.server is None
    assert backend(make_resources(), hostname=None, access_token=None).access.server is None


def test_f16_the_settings_go_before_what_setup_said(make_resources: Make) -> None:
    resources = make_resources(label_studio_url="http://studio:8080", label_studio_api_key="ours")
    server = backend(resources, hostname="http://localhost:8080", access_token="theirs").access.server
    assert server is not None
    assert (server.url, server.token) == ("http://studio:8080", "ours")
    assert server.name == "http://localhost:8080"  # by which tasks may know it


def test_f16_a_token_from_setup_goes_to_the_address_that_came_with_it_alone(make_resources: Make) -> None:
    resources = make_resources(label_studio_url="http://studio:8080")
    for hostname, token in (("http://localhost:8080", None), ("http://Studio:8080/", "theirs")):
        server = backend(resources, hostname=hostname, access_token="theirs").access.server
        assert server is not None
        assert (server.url, server.token) == ("http://studio:8080", token)


def test_f16_our_key_is_not_sent_to_an_address_from_setup(make_resources: Make) -> None:
    server = backend(make_resources(label_studio_api_key="ours"), hostname="http://anybody").access.server
    assert server is not None
    assert server.token is None


def every_name(kind: str, name: str) -> str:
    labels = "".join(f'<Label value="{value}"/>' for value in NAMES)
    return f'<{kind} name="{name}" toName="image">{labels}</{kind}>'


EVERYTHING = (
    '<View><Image name="image" value="$image"/>'
    + every_name("BrushLabels", "brush")
    + every_name("PolygonLabels", "poly")
    + every_name("RectangleLabels", "rect")
    + "</View>"
)


def test_the_built_in_models_give_valid_predictions(make_resources: Make, builtin: VLSAM, photo: str) -> None:
    ours = backend(make_resources(lambda: builtin), EVERYTHING)
    first, second = ours.predict([task(1, photo), task(2, photo)])
    assert first == second
    assert LabelInterface(EVERYTHING).validate_prediction(first, return_errors=True) == []
    for region in json.loads(json.dumps(first))["result"]:
        assert decode(region, (240, 320)) is not None
        stored = region_meta.read(region["meta"], (240, 320))
        assert stored is not None
        assert len(stored.prompt.points) >= 1


def test_the_built_in_models_answer_clicks(make_resources: Make, builtin: VLSAM, photo: str) -> None:
    ours = backend(make_resources(lambda: builtin), EVERYTHING)

    def answer(x: float, y: float, **more: Any) -> dict[str, Any]:
        value = {"x": x / 3.2, "y": y / 2.4, "width": 0.2, "keypointlabels": ["cat"]}
        context = {"result": [{"value": value, "type": "keypointlabels", "id": "p", "is_positive": True}]}
        (prediction,) = ours.predict([task(1, photo, **more)], context=context)
        (region,) = prediction["result"]
        mask = decode(region, (240, 320))
        assert mask is not None
        assert mask[int(y), int(x)]
        return dict(region)

    first = answer(160.5, 120.5)
    again = answer(160.5, 120.5, annotations=[{"result": [first]}])
    assert again["id"] == first["id"]
    elsewhere = answer(3.5, 3.5, annotations=[{"result": []}])
    assert elsewhere["id"] != first["id"]
