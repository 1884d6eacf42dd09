"""Label Studio's next protocol, as its development branch speaks it."""

import base64
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from model.types import Mask
from tests.support.detections import disc
from tests.support.images import data_url
from tests.support.stand_in import StandIn

Body = Callable[..., dict[str, Any]]


def ask(client: FlaskClient, body: dict[str, Any]) -> dict[str, Any]:
    answer = client.post("/predict", json=body)
    assert answer.status_code == 200
    assert answer.json is not None
    (prediction,) = answer.json["results"]
    return dict(prediction)


@pytest.mark.parametrize("tasks", [(data_url(),), ()])
@pytest.mark.parametrize("config", ["", "<View><VideoRectangle/></View>"])
def test_what_we_can_do(client: FlaskClient, predict_body: Body, tasks: Any, config: str) -> None:
    """The browser takes value.prompts and value.targets; the task is a carrier, the config is not asked."""
    body = predict_body(*tasks, context={"event": "capabilities"}, config=config)
    (answer,) = ask(client, body)["result"]
    assert answer["value"]["prompts"] == ["point", "box"]
    assert {"tag": "BitmaskLabels", "output": "mask"} in answer["value"]["targets"]
    assert {target["output"] for target in answer["value"]["targets"]} == {"mask", "bbox", "polygon"}
    assert answer["value"]["model_info"] == {"name": "VL-SAM", "version": "v1"}


def test_leaving_a_task(client: FlaskClient, predict_body: Body) -> None:
    answer = ask(client, predict_body(data_url(), context={"event": "release"}))
    assert answer["result"] == []
    assert "reason" not in answer


@pytest.mark.parametrize("event", ["track", "prewarm", 3, ["capabilities"], "x\n" * 500])
def test_other_events_are_refused_with_a_reason(client: FlaskClient, predict_body: Body, event: Any) -> None:
    answer = ask(client, predict_body(data_url(), context={"event": event}))
    assert answer["result"] == []
    assert "no answer to the event" in answer["reason"]
    assert len(answer["reason"]) < 200


def seen_by_the_browser(answer: dict[str, Any]) -> Mask:
    """It draws the PNG on an empty canvas, and takes for mask what is red there."""
    file = BytesIO(base64.b64decode(answer["value"]["imageDataURL"].partition(",")[2]))
    canvas = Image.new("RGBA", (80, 60))
    canvas.alpha_composite(Image.open(file).convert("RGBA"))
    return np.asarray(np.asarray(canvas)[..., 0] > 127)


def test_points_without_id_and_label_give_a_mask(
    client: FlaskClient, predict_body: Body, stand_in: StandIn
) -> None:
    points = [
        {"type": "keypointlabels", "value": {"x": 25, "y": 50, "positive": True}},
        {"type": "keypointlabels", "value": {"x": 75, "y": 50, "positive": False}},
    ]
    (answer,) = ask(client, predict_body(data_url(), context={"result": points}))["result"]
    assert stand_in.prompts[-1].labels.tolist() == [1, 0]
    assert (seen_by_the_browser(answer) == disc(20, 30, 5)).all()


def test_a_box_without_id_and_label_gives_a_mask(client: FlaskClient, predict_body: Body) -> None:
    box = {"type": "rectanglelabels", "value": {"x": 25, "y": 50, "width": 25, "height": 25}}
    (answer,) = ask(client, predict_body(data_url(), context={"result": [box]}))["result"]
    mask = seen_by_the_browser(answer)
    assert mask[30:45, 20:40].all()
    assert mask.sum() == 15 * 20


def test_negative_points_alone_are_refused_with_a_reason(client: FlaskClient, predict_body: Body) -> None:
    point = {"type": "keypointlabels", "value": {"x": 25, "y": 50, "positive": False}}
    answer = ask(client, predict_body(data_url(), context={"result": [point]}))
    assert answer["result"] == []
    assert "negative clicks only" in answer["reason"]
