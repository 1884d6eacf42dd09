import base64
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from backend.answers.resources import Resources
from backend.images.studio_urls import Server
from backend.runtime.job_queue import BATCH
from backend.web.app import MAX_PROJECTS, Projects, create_app
from model.types import ModelLoadError
from tests.support.clock import Clock
from tests.support.detections import detection, disc
from tests.support.fake_web import Web
from tests.support.images import data_url
from tests.support.labeling_configs import CONFIG
from tests.support.paths import ROOT
from tests.support.stand_in import StandIn
from tests.support.waiting import soon, wait_for

Make = Callable[..., Resources]
Body = Callable[..., dict[str, Any]]


def said(answer: TestResponse) -> Any:
    return answer.get_json()


OTHER = CONFIG.replace('"image"', '"other"')
CLICK = {
    "result": [{"type": "keypointlabels", "value": {"x": 25, "y": 50, "keypointlabels": ["Cat"]}, "id": "a"}]
}


# Health, setup, versions, webhook: always, and at once


@pytest.mark.parametrize("path", ["/health", "/"])
def test_health(client: FlaskClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert said(answer)["status"] == "UP"
    assert said(answer)["model_class"] == "VLSAMBackend"


def test_one_model_version_everywhere(
    client: FlaskClient, capture: Callable[..., Any], predict_body: Body
) -> None:
    setup = client.post("/setup", json=capture("server_setup")).json
    predicted = client.post("/predict", json=predict_body(data_url()))
    assert setup == {"model_version": "v1"}
    assert client.get("/versions").json == {"versions": ["v1"]}
    assert said(predicted)["results"][0]["model_version"] == "v1"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"project": None, "schema": None, "hostname": None, "access_token": None, "extra_params": None},
        {"project": "1.1", "schema": "", "extra_params": '{"conf": 0.3}'},
        {"project": 1, "schema": 3, "hostname": [], "extra_params": {"conf": 0.3}},
    ],
)
def test_setup_takes_what_it_gets(client: FlaskClient, body: Any) -> None:
    answer = client.post("/setup", json=body)
    assert (answer.status_code, answer.json) == (200, {"model_version": "v1"})


def test_f19_setup_says_in_one_sentence_what_is_wrong_with_a_config(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    answer = client.post(
        "/setup", json={"project": "7.1", "schema": "<View><Text name='t' value='$t'/></View>"}
    )
    assert answer.status_code == 200
    assert "Project 7.1 cannot be annotated: The labeling config has no <Image>" in caplog.text


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"action": null}', b"\xff\xfe", b"null"])
def test_webhooks_take_any_body(client: FlaskClient, data: bytes) -> None:
    assert client.post("/webhook", data=data).status_code == 201


def test_a_recorded_webhook(client: FlaskClient, capture: Callable[..., Any]) -> None:
    assert client.post("/webhook", json=capture("server_webhook_annotation_created")).status_code == 201


def test_the_model_holds_up_nothing_but_predictions(
    make_resources: Make, stand_in: StandIn, predict_body: Body
) -> None:
    stand_in.hold = threading.Event()
    app = create_app(resources=make_resources())
    busy = threading.Thread(target=lambda: app.test_client().post("/predict", json=predict_body(data_url())))
    busy.start()
    wait_for(lambda: bool(stand_in.order))
    client = app.test_client()
    assert client.get("/health").status_code == 200
    assert client.post("/setup", json={"schema": CONFIG}).status_code == 200
    assert client.get("/versions").status_code == 200
    assert client.post("/webhook").status_code == 201
    assert busy.is_alive()  # so all were answered while the model was busy
    stand_in.hold.set()
    busy.join()


def test_the_figures_of_one_server(make_resources: Make, predict_body: Body) -> None:
    busy, idle = (create_app(resources=make_resources()).test_client() for _ in range(2))
    for _ in range(3):
        busy.post("/predict", json=predict_body(data_url(), context=CLICK))
    answers = [client.get("/metrics") for client in (busy, idle)]
    assert answers[0].content_type.startswith("text/plain; version=")
    assert "vlsam_embedding_misses_total 1.0" in answers[0].text
    assert 'vlsam_embedding_hits_total{tier="host"} 2.0' in answers[0].text
    assert 'vlsam_embedding_bytes{tier="host"} 14400.0' in answers[0].text
    assert "vlsam_embedding_misses_total 0.0" in answers[1].text


# Readiness, names of requests, figures


def test_f5_ready_says_what_is_missing_while_health_is_alive(make_resources: Make, stand_in: StandIn) -> None:
    go = threading.Event()

    def load() -> StandIn:
        go.wait(5)
        return stand_in

    resources = make_resources(load)
    client = create_app(resources=resources).test_client()
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert said(answer) == {
        "ready": False,
        "checks": {"models": "loading", "device": "The models are loading.", "disk": "ok"},
    }
    assert client.get("/health").status_code == 200
    go.set()
    wait_for(lambda: resources.queue.state == "ready")
    answer = client.get("/ready")
    assert (answer.status_code, said(answer)["ready"]) == (200, True)


def test_f5_ready_where_loading_failed(make_resources: Make) -> None:
    def load() -> StandIn:
        raise ModelLoadError("The weights of the VLM are missing in /srv/private.")

    resources = make_resources(load)
    wait_for(lambda: resources.queue.state == "failed")
    answer = create_app(resources=resources).test_client().get("/ready")
    assert (answer.status_code, said(answer)["checks"]["models"]) == (503, "failed")
    assert "private" not in answer.text  # it needs no password


def test_ready_where_the_device_fails(make_resources: Make, stand_in: StandIn) -> None:
    resources = make_resources()
    wait_for(lambda: resources.queue.state == "ready")
    client = create_app(resources=resources).test_client()
    stand_in.device = torch.device("cuda")  # which this machine has not
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, which answers")
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert said(answer)["checks"]["device"] == "The device fails; see the server's log."


def test_ready_while_the_device_is_at_work_and_until_that_takes_too_long(
    make_resources: Make, stand_in: StandIn
) -> None:
    stand_in.hold = threading.Event()
    clock = Clock()
    resources = make_resources(clock=clock)
    wait_for(lambda: resources.queue.state == "ready")
    client = create_app(resources=resources).test_client()
    with ThreadPoolExecutor() as pool:
        job = pool.submit(
            resources.queue.run,
            lambda model: model.model.annotate(np.zeros((4, 4, 3), np.uint8)),
            priority=BATCH,
            deadline=soon(),
        )
        wait_for(lambda: "batch" in stand_in.order)
        assert client.get("/ready").status_code == 200
        clock.now += 91
        answer = client.get("/ready")
        assert answer.status_code == 503
        assert "has been at one image for" in said(answer)["checks"]["device"]
        stand_in.hold.set()
        job.result()


def test_f28_ready_where_the_disk_cannot_be_written(
    make_resources: Make, predict_body: Body, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    resources = make_resources(cache_dir=tmp_path / "file" / "cache")
    wait_for(lambda: resources.queue.state == "ready")
    client = create_app(resources=resources).test_client()
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert said(answer)["checks"]["disk"].startswith("VLSAM_CACHE_DIR cannot be written: ")
    assert said(client.post("/predict", json=predict_body(data_url())))["results"][0]["result"]
    writable = make_resources(cache_dir=tmp_path / "cache")
    wait_for(lambda: writable.queue.state == "ready")
    assert create_app(resources=writable).test_client().get("/ready").status_code == 200
    assert list((tmp_path / "cache").iterdir()) == []


def test_every_answer_names_its_request(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    for path in ("/health", "/nowhere", "/predict"):
        names = {client.get(path).headers["X-Request-ID"] for _ in range(3)}
        assert len(names) == 3
    assert client.get("/health", headers={"X-Request-ID": "mine-1"}).headers["X-Request-ID"] == "mine-1"
    assert client.get("/health", headers={"X-Request-ID": "<b>"}).headers["X-Request-ID"] != "<b>"
    unknown = client.post("/predict", data=b"{", content_type="application/json")
    assert unknown.headers["X-Request-ID"]


def test_metrics_tell_stages_requests_the_queue_terms_and_errors(
    client: FlaskClient, stand_in: StandIn, predict_body: Body
) -> None:
    stand_in.found.append(detection("unicorn", disc(40, 30, 5)))
    client.post("/predict", json=predict_body(data_url(), "data:,"))
    client.post("/predict", json=predict_body(data_url(), context=CLICK))
    client.post("/predict", json={})
    client.get("/nowhere")
    text = client.get("/metrics").text
    for line in (
        *(f'vlsam_stage_seconds_count{{stage="{stage}"}} 1.0' for stage in ("annotate", "encode", "refine")),
        'vlsam_stage_seconds_count{stage="image"} 2.0',
        'vlsam_stage_seconds_count{stage="results"} 2.0',
        'vlsam_stage_seconds_count{stage="wait"} 2.0',
        'vlsam_request_seconds_count{route="predict",status="200"} 2.0',
        'vlsam_request_seconds_count{route="predict",status="400"} 1.0',
        'vlsam_request_seconds_count{route="none",status="404"} 1.0',
        *(f'vlsam_queue_depth{{kind="{kind}"}} 0.0' for kind in ("click", "batch", "ahead")),
        "vlsam_predictions_inside 0.0",
        'vlsam_terms_total{fate="labelled"} 2.0',
        'vlsam_terms_total{fate="dropped"} 1.0',
        'vlsam_errors_total{kind="BadRequest"} 1.0',
        'vlsam_errors_total{kind="Refused"} 1.0',
    ):
        assert line in text.splitlines()


# The secret of webhooks


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/webhook/open-sesame", {}, 201),
        ("/webhook", {"X-Webhook-Secret": "open-sesame"}, 201),
        ("/webhook", {"X-Webhook-Secret": "open-sesamf"}, 401),
        ("/webhook", {"X-Webhook-Secret": "\xff"}, 401),
        ("/webhook", {"Authorization": "Bearer open-sesame"}, 401),
        ("/webhook", {}, 401),
        ("/webhook/open", {}, 401),
        ("/webhook/%FF%00", {}, 401),
        ("/webhook/open-sesame/b", {}, 404),
    ],
)
def test_f17_webhooks_bring_their_secret(
    make_resources: Make, path: str, headers: dict[str, str], status: int
) -> None:
    client = create_app(resources=make_resources(webhook_secret="open-sesame")).test_client()
    assert client.post(path, json={}, headers=headers).status_code == status


# Predictions


def test_a_recorded_batch_without_its_label_studio(
    client: FlaskClient, capture: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    answer = client.post("/predict", json=capture("server_predict_batch"))
    assert (answer.status_code, answer.json) == (200, {"results": [{}, {}]})
    assert "set LABEL_STUDIO_URL" in caplog.text


def test_f8_a_batch(client: FlaskClient, predict_body: Body) -> None:
    answer = client.post("/predict", json=predict_body(data_url(), "data:,", data_url(shade=3)))
    assert answer.status_code == 200
    first, bad, last = said(answer)["results"]
    assert bad == {}
    assert len(first["result"]) == len(last["result"]) == 4


def test_a_batch_of_nothing(client: FlaskClient, predict_body: Body) -> None:
    assert client.post("/predict", json=predict_body()).json == {"results": []}


def test_a_click_has_exactly_one_answer(client: FlaskClient, predict_body: Body) -> None:
    answer = client.post("/predict", json=predict_body(data_url(), context=CLICK))
    (prediction,) = said(answer)["results"]
    assert len(prediction["result"]) == 1
    assert prediction["model_version"] == "v1"


@pytest.mark.parametrize("context", [{}, {"result": None}, {"event": "prewarm"}, {"event": 3}])
def test_a_context_without_a_click_has_an_empty_answer(
    client: FlaskClient, predict_body: Body, context: dict[str, Any]
) -> None:
    answer = client.post("/predict", json=predict_body(data_url(), context=context))
    (only,) = said(answer)["results"]
    assert only.pop("reason")
    assert only == {"result": [], "score": 0.0, "model_version": "v1"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tasks": None}, "tasks"),
        ({"tasks": {"id": 1}}, "tasks"),
        ({"label_config": None}, "label_config"),
        ({"label_config": 3}, "label_config"),
        ({"label_config": ""}, "labeling config is empty"),
        ({"label_config": "<View"}, "labeling config is not well-formed"),
        (
            {"label_config": "<View><Image name='i' value='$i'/></View>"},
            "labeling config has no <BrushLabels>",
        ),
        ({"label_config": CONFIG.replace('value="$image"', 'valueList="$all"')}, "has valueList='$all'"),
        ({"label_config": f"<Repeater on='$all'>{CONFIG}</Repeater>"}, "<Repeater on='$all'> repeats <Image"),
        (
            {"label_config": f"<View>{CONFIG}{OTHER}</View>"},
            "labels for several images, as <Image name='image'> and",
        ),
        ({"params": None}, "params"),
        ({"params": []}, "params"),
        ({"params": {"context": []}}, "params.context"),
        ({"params": {"context": "click"}}, "params.context"),
        ({"params": {"context": {}}, "tasks": []}, "tasks"),
    ],
)
def test_f18_a_bad_field_is_named(
    client: FlaskClient, predict_body: Body, change: dict[str, Any], field: str
) -> None:
    for context in (None, CLICK):
        answer = client.post("/predict", json={**predict_body(data_url(), context=context), **change})
        assert answer.status_code == 400
        assert field in said(answer)["error"]
    assert client.post("/predict", json=predict_body(data_url())).status_code == 200


def test_names_and_ids_may_be_of_any_type(
    client: FlaskClient, predict_body: Body, caplog: pytest.LogCaptureFixture
) -> None:
    odd = {"from_name": [], "to_name": {}, "type": "rectanglelabels", "id": ["a"], "value": {"x": 1, "y": 1}}
    task = {"id": {}, "data": {"image": data_url()}, "drafts": [{"id": [], "result": [odd]}]}
    answer = client.post("/predict", json=predict_body(task, context=CLICK))
    assert len(said(answer)["results"][0]["result"]) == 1
    assert "Traceback" not in caplog.text


def test_fields_that_are_not_needed_may_be_missing(client: FlaskClient) -> None:
    body = {"tasks": [{"data": {"image": data_url()}}], "label_config": CONFIG}
    assert len(said(client.post("/predict", json=body))["results"][0]["result"]) == 4


@pytest.mark.parametrize("path", ["/predict", "/setup"])
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"3", b"\xff\xfe", b"[" * 100_000])
def test_f18_malformed_json(client: FlaskClient, path: str, data: bytes) -> None:
    answer = client.post(path, data=data, content_type="application/json")
    assert answer.status_code == 400
    assert "JSON" in said(answer)["error"]


def test_f18_other_errors_are_json_sentences(make_resources: Make, predict_body: Body) -> None:
    client = create_app(resources=make_resources(max_body_bytes=100)).test_client()
    assert client.get("/nowhere").status_code == 404
    assert client.get("/predict").status_code == 405
    assert client.get("/predict").headers["Allow"] == "OPTIONS, POST"
    assert client.post("/predict", data=b"{}", content_type="text/plain").status_code == 415
    assert client.post("/predict", json=predict_body(data_url())).status_code == 413
    chunks = client.post(  # without a Content-Length, as gunicorn hands them on
        "/predict",
        input_stream=BytesIO(b"x" * 101),
        content_type="application/json",
        environ_base={"wsgi.input_terminated": True},
    )
    assert chunks.status_code == 413
    for answer in (client.get("/nowhere"), client.get("/predict"), client.post("/setup", data=b"x" * 101)):
        assert isinstance(said(answer)["error"], str)


def test_f29_an_error_of_ours_shows_no_traceback(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def boom(*_: Any) -> None:
        raise RuntimeError("/srv/private")

    monkeypatch.setattr(Projects, "remember", boom)
    answer = client.post("/setup", json={})
    assert answer.status_code == 500
    assert "private" not in answer.text
    assert "Traceback" not in answer.text


def test_f5_failed_loading_is_a_503_with_its_reason(make_resources: Make, predict_body: Body) -> None:
    def load() -> StandIn:
        raise ModelLoadError("The weights of the segmenter are corrupt.")

    client = create_app(resources=make_resources(load)).test_client()
    answer = client.post("/predict", json=predict_body(data_url()))
    assert (answer.status_code, answer.json) == (503, {"error": "The weights of the segmenter are corrupt."})
    health = client.get("/health")
    assert (health.status_code, said(health)["model"]) == (200, "failed")
    assert client.post("/setup", json={}).json == {"model_version": "v1"}


def test_f5_a_prediction_waits_for_the_weights(
    make_resources: Make, stand_in: StandIn, predict_body: Body
) -> None:
    loaded = threading.Event()

    def load() -> StandIn:
        assert loaded.wait(10)
        return stand_in

    resources = make_resources(load)
    client = create_app(resources=resources).test_client()
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(client.post, "/predict", json=predict_body(data_url()))
        wait_for(lambda: resources.queue.admitted_requests == 1)
        loaded.set()
        assert len(said(answer.result())["results"][0]["result"]) == 4


def test_f7_a_full_queue_is_a_503(make_resources: Make, predict_body: Body) -> None:
    resources = make_resources(queue=1)
    client = create_app(resources=resources).test_client()
    with resources.queue.admitted():
        answer = client.post("/predict", json=predict_body(data_url()))
    assert answer.status_code == 503
    assert "waiting already" in said(answer)["error"]
    assert client.post("/predict", json=predict_body(data_url())).status_code == 200


# Projects


def test_address_and_token_of_projects_are_never_mixed() -> None:
    projects = Projects()
    projects.remember("1.1", Server("http://one", "token one"))
    projects.remember("2.2", Server("http://two", ""))
    assert projects.server("1.1") == Server("http://one", "token one")
    assert projects.server("2.2") == Server("http://two", "")
    projects.remember("1.1", Server("http://three", ""))
    assert projects.server("1.1") == Server("http://three", "")
    assert projects.server("9.9") is None
    assert Projects(Server("http://ours")).server("9.9") == Server("http://ours")


def test_only_so_many_projects_are_remembered() -> None:
    projects = Projects()
    for number in range(MAX_PROJECTS + 5):
        projects.remember(str(number), Server(f"http://{number}"))
    assert projects.server("4") is None
    assert projects.server("5") == Server("http://5")


def test_f29_secrets_are_not_logged(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        client.post("/setup", json={"project": "1.1", "access_token": "sesame", "schema": "<View"})
    assert "sesame" not in caplog.text
    assert "sesame" not in repr(Server("http://one", "sesame"))


@pytest.mark.parametrize(
    ("headers", "fetched"), [({}, 1), ({"X-Forwarded-For": "8.8.8.8"}, 0), ({"Via": "1.1 proxy"}, 0)]
)
def test_f14_whose_machine_setup_may_name(
    client: FlaskClient,
    predict_body: Callable[..., dict[str, Any]],
    web: Web,
    headers: dict[str, str],
    fetched: int,
) -> None:
    """Its own, which is unknown behind a proxy; this test calls from 127.0.0.1, where `web` is."""
    web.serve("/data/upload/1/dog.png", base64.b64decode(data_url().partition(",")[2]))
    setup = {"project": "1.1", "hostname": web.url, "access_token": "theirs"}
    client.post("/setup", json=setup, headers=headers)
    answer = client.post("/predict", json=predict_body("/data/upload/1/dog.png"))
    assert [bool(item) for item in answer.json["results"]] == [bool(fetched)]  # type: ignore[index]
    files = [call for call in web.seen if call[1].startswith("/data/")]  # beside what /setup looks at
    assert files == [("GET", "/data/upload/1/dog.png", "Token theirs")] * fetched


def test_files_below_the_name_from_setup_are_asked_at_label_studio_url(
    make_resources: Make, predict_body: Body, web: Web
) -> None:
    web.serve("/data/upload/1/dog.png", base64.b64decode(data_url().partition(",")[2]))
    client = create_app(
        resources=make_resources(label_studio_url=web.url, label_studio_api_key="ours")
    ).test_client()
    client.post("/setup", json={"project": "1.1", "hostname": "https://label.example.com/ls/"})
    body = predict_body("https://label.example.com/ls/data/upload/1/dog.png")
    (item,) = said(client.post("/predict", json=body))["results"]
    assert item["result"]
    assert ("GET", "/data/upload/1/dog.png", "Token ours") in web.seen


# Basic auth


@pytest.fixture
def guarded(make_resources: Make) -> FlaskClient:
    resources = make_resources(basic_auth_user="jürgen", basic_auth_pass="pässword:1")
    return create_app(resources=resources).test_client()


def basic(text: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


def test_f17_the_right_password_enters(guarded: FlaskClient) -> None:
    headers = basic("jürgen:pässword:1")
    assert guarded.get("/versions", headers=headers).status_code == 200
    assert guarded.get("/metrics", headers=headers).status_code == 200
    assert guarded.post("/setup", json={}, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        basic("jürgen:wrong"),
        basic("somebody:pässword:1"),
        basic("jürgen"),
        basic(""),
        {"Authorization": "Bearer abc"},
        {"Authorization": "Basic"},
        {"Authorization": "Basic !!!"},
        {"Authorization": "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode()},
        {"Authorization": 'Digest username="x"'},
    ],
)
def test_f17_anything_else_is_401(guarded: FlaskClient, headers: dict[str, str]) -> None:
    for path in ("/", "/setup", "/predict", "/versions", "/metrics", "/terms", "/nowhere"):
        answer = guarded.open(
            path, method="POST" if path in ("/setup", "/predict") else "GET", headers=headers
        )
        assert answer.status_code == 401
        assert "BASIC_AUTH_USER" in said(answer)["error"]
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    assert guarded.get("/health", headers=headers).status_code == 200
    assert guarded.post("/webhook", json={}, headers=headers).status_code == 201


# Terms without a label


def test_terms_that_a_project_has_no_label_for(
    client: FlaskClient, stand_in: StandIn, predict_body: Body
) -> None:
    stand_in.found.append(detection("<b>unicorn</b>", disc(40, 30, 5)))
    for shade in (1, 2, 2):
        client.post("/predict", json=predict_body(data_url(shade=shade), project="7.1"))
    answer = client.get("/terms?project=7")
    assert answer.json == {"project": "7.1", "terms": [{"term": "<b>unicorn</b>", "images": 2}]}
    assert answer.content_type == "application/json"  # so no browser reads it as HTML
    for other in ("8", "7.2", "", "7.1%00", "<i>"):
        client.post("/predict", json=predict_body(data_url(), project="9.1"))
        refused = client.get("/terms", query_string={"project": other})
        assert (refused.status_code, refused.content_type) == (404, "application/json")
        assert "unicorn" not in said(refused)["error"]
    renamed = CONFIG.replace("Dog", "b unicorn b")
    client.post("/setup", json={"project": "7.1", "schema": CONFIG})
    assert said(client.get("/terms?project=7"))["terms"]
    client.post(
        "/setup", json={"project": "7.1", "schema": renamed.replace("b unicorn b", "&lt;b>unicorn&lt;/b>")}
    )
    assert said(client.get("/terms?project=7"))["terms"] == []


def test_setup_says_where_other_has_no_label(make_resources: Make, caplog: pytest.LogCaptureFixture) -> None:
    client = create_app(resources=make_resources(leftover="other:Thing")).test_client()
    client.post("/setup", json={"project": "7.1", "schema": CONFIG.replace("Dog", "thing")})
    assert "Thing" not in caplog.text
    client.post("/setup", json={"project": "7.1", "schema": CONFIG})
    assert "Project 7.1 has no label 'Thing' for VLSAM_LEFTOVER" in caplog.text


WITHOUT_LABEL_STUDIO_ML = """
import json, sys
sys.modules["label_studio_ml"] = None  # an import of it raises ImportError
from backend.answers.resources import Resources
from backend.settings import Settings
from backend.web.app import create_app
from tests.support.detections import detection, disc
from tests.support.stand_in import StandIn
stand_in = StandIn([detection("cat", disc(20, 30, 12))])
resources = Resources(lambda: stand_in, Settings(), version="v1")
client = create_app(resources=resources).test_client()
assert client.get("/health").json["model_class"] == "VLSAMBackend"
(item,) = client.post("/predict", json=json.load(sys.stdin)).json["results"]
print(item["result"][0]["value"]["brushlabels"])
"""


@pytest.mark.slow
def test_the_server_runs_without_label_studio_ml(predict_body: Body) -> None:
    command = [sys.executable, "-c", WITHOUT_LABEL_STUDIO_ML]
    body = json.dumps(predict_body(data_url()))
    done = subprocess.run(command, cwd=ROOT, input=body, capture_output=True, text=True)
    assert done.stdout.strip() == "['Cat']", done.stderr
