"""Another VLM lists: through the command line, and on a server whose clicks do not wait for it."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image as Pillow

from backend.answers.resources import Resources
from backend.commands.cli import main
from backend.settings import Settings
from backend.web.app import create_app
from model.builtin.scenes import draw_scene
from tests.support import vlm_endpoint
from tests.support.images import data_url
from tests.support.stand_in import StandIn
from tests.support.vlm_endpoint import Lister
from tests.support.waiting import wait_for


@pytest.fixture
def lister() -> Iterator[Lister]:
    with vlm_endpoint.listing() as running:
        yield running


@pytest.fixture
def environment(lister: Lister, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in lister.environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
@pytest.mark.usefixtures("environment")
def test_annotate_masks_what_the_endpoint_lists(
    lister: Lister, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = draw_scene(np.random.default_rng(7), width=400, height=300, count=2, scale=(0.4, 0.5))
    Pillow.fromarray(scene.image).save(tmp_path / "scene.png")
    lister.text = scene.objects[0].name
    assert main(["annotate", str(tmp_path / "scene.png"), "--json"]) == 0
    (item,) = json.loads(capsys.readouterr().out)
    assert {found["term"] for found in item["detections"]} == {lister.text}
    versions = {found["evidence"]["model_version"] for found in item["detections"]}

    lister.status = 401
    assert main(["annotate", str(tmp_path / "scene.png"), "--json"]) == 1
    out, err = capsys.readouterr()
    (item,) = json.loads(out)
    assert item["detections"] == []
    assert "refuses the key (401)" in item["error"]
    assert lister.key not in out + err

    for name in lister.environment:
        monkeypatch.delenv(name)
    assert main(["annotate", str(tmp_path / "scene.png"), "--json"]) == 0
    (item,) = json.loads(capsys.readouterr().out)
    assert versions.isdisjoint(found["evidence"]["model_version"] for found in item["detections"])


@pytest.fixture
def served(make_resources: Callable[..., Resources], lister: Lister) -> FlaskClient:
    where = {"listing_url": lister.url, "listing_model": lister.model, "listing_key": lister.key}
    return create_app(resources=make_resources(deadline=20.0, **where)).test_client()


def test_a_click_does_not_wait_for_the_endpoint(
    served: FlaskClient, lister: Lister, stand_in: StandIn, predict_body: Callable[..., Any]
) -> None:
    click = {
        "id": "p1", "from_name": "kp", "to_name": "image", "type": "keypointlabels", "is_positive": True,
        "value": {"x": 50, "y": 50, "keypointlabels": ["Cat"]},
    }  # fmt: skip
    lister.drip.set()
    with ThreadPoolExecutor() as pool:
        batch = pool.submit(served.post, "/predict", json=predict_body(data_url()))
        wait_for(lambda: bool(lister.asked))
        clicked = served.application.test_client().post(
            "/predict", json=predict_body(data_url(shade=9), context={"result": [click]})
        )
        assert len(clicked.get_json()["results"][0]["result"]) == 1
        assert not batch.done()
        lister.drip.clear()
        assert batch.result().get_json()["results"][0]["result"]
    assert stand_in.said == [[[("List all objects in the image.", lister.text)]]]


def test_a_task_whose_listing_fails_is_asked_for_again(
    served: FlaskClient,
    lister: Lister,
    stand_in: StandIn,
    predict_body: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    lister.status = 503
    body = predict_body(data_url())
    assert served.post("/predict", json=body).get_json()["results"] == [{}]  # Label Studio stores nothing
    assert "cannot answer now (503)" in caplog.text
    assert lister.key not in caplog.text
    assert stand_in.said == []  # nor is anything listed in its place
    lister.status = 200
    assert served.post("/predict", json=body).get_json()["results"][0]["result"]


def test_nobody_else_lists_by_default() -> None:
    assert Settings().detection.options.remote_vlm is None
