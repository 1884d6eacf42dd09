"""The ways to start the server, each as a process of its own, and label-studio-ml 1.0.9 around our class."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from label_studio_ml import api

from backend import _wsgi
from backend.answers.ml_backend import VLSAMBackend
from backend.answers.resources import Resources
from backend.settings import Settings
from model.types import ModelLoadError
from tests.support.images import data_url
from tests.support.labeling_configs import CONFIG
from tests.support.paths import BIN, ROOT
from tests.support.processes import call, free_port
from tests.support.settings import settings_with
from tests.support.waiting import wait_for


def test_as_a_script(start: Callable[..., str], tmp_path: Path) -> None:
    port = free_port()
    script = str(ROOT / "backend" / "_wsgi.py")
    url = start([sys.executable, script, "--host", "127.0.0.1", "--port", str(port)], port, tmp_path)
    version = call(url + "/setup", {"project": "1.1", "schema": CONFIG})["model_version"]
    body = {"tasks": [{"data": {"image": data_url()}}], "label_config": CONFIG, "project": "1.1"}
    (prediction,) = call(url + "/predict", body)["results"]
    assert prediction["model_version"] == version
    log = (tmp_path / "log").read_text("utf-8")
    assert "demo weights that know 40 drawn objects only" in log
    assert "VLSAM_PROFILE=gpu-8g" in log


def test_f7_a_full_queue_holds_up_nothing_but_predictions(start: Callable[..., str]) -> None:
    port, few = free_port(), {"THREADS": "4", "VLSAM_DEADLINE": "5"}
    command = [sys.executable, "-m", "backend._wsgi", "--host", "127.0.0.1", "--port", str(port)]
    url = start(command, port, **few)
    ready(url)
    long = {"tasks": [{"data": {"image": data_url()}}] * 1000, "label_config": CONFIG}
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(call, url + "/predict", long) for _ in range(5)]
        refused = list(islice(as_completed(asked), 2))
        for future in refused:  # one thread of four is never lent to predictions
            with pytest.raises(urllib.error.HTTPError) as caught:
                future.result()
            with caught.value as answer:
                assert (answer.code, "waiting already" in json.load(answer)["error"]) == (503, True)
        for _ in range(10):  # within the seconds that Label Studio 1.23.2 gives them
            assert call(url + "/health", timeout=1)["model"] == "ready"
            assert call(url + "/setup", {"project": "1.1", "schema": CONFIG}, timeout=3)["model_version"]
        inside = [future for future in asked if future not in refused]
        assert not any(future.done() for future in inside)
        for future in inside:  # at the deadline, with what is done by then
            predictions = future.result()["results"]
            assert len(predictions) == 1000
            assert predictions[-1] == {}


def test_under_gunicorn_from_the_backend_folder(start: Callable[..., str]) -> None:
    port = free_port()
    command = [str(BIN / "gunicorn"), "--bind", f"127.0.0.1:{port}", "--threads", "4", "_wsgi:app"]
    assert call(start(command, port, ROOT / "backend") + "/versions")["versions"]


def test_by_label_studio_ml_start(start: Callable[..., str]) -> None:
    port = free_port()
    command = [str(BIN / "label-studio-ml"), "start", "backend", "--port", str(port), "--host", "127.0.0.1"]
    assert call(start(command, port) + "/versions")["versions"]


def test_label_studio_ml_instantiates_our_class(
    make_resources: Callable[..., Resources], monkeypatch: pytest.MonkeyPatch
) -> None:
    resources = make_resources()
    app = api.init_app(VLSAMBackend, model_dir=None, resources=resources)
    monkeypatch.setenv("LABEL_STUDIO_ML_BACKEND_V2", "1")
    monkeypatch.setattr(api._manager, "get_job_manager", lambda: NoJobs())
    client = app.test_client()
    setup = client.post("/setup", json={"project": "1.1", "schema": CONFIG, "hostname": "http://studio"})
    assert setup.status_code == 200
    body = {"tasks": [{"data": {"image": data_url()}}], "label_config": CONFIG, "project": "1.1"}
    params = {"login": None, "password": None, "context": None}
    answer = client.post("/predict", json={**body, "params": params})
    (prediction,) = answer.json["results"]
    assert len(prediction["result"]) == 4
    assert prediction["model_version"] == "v1"


class NoJobs:
    def get_result(self, model_version: str | None) -> dict[str, Any]:
        return {}


def test_f26_a_server_that_forked_after_loading_says_so(start: Callable[..., str]) -> None:
    port = free_port()
    command = [str(BIN / "gunicorn"), "--preload", "--bind", f"127.0.0.1:{port}", "--threads", "4"]
    url = start([*command, "backend._wsgi:app"], port)
    assert call(url + "/health")["model"] == "failed"
    for path, body in (("/predict", {"tasks": [], "label_config": CONFIG}), ("/ready", None)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            call(url + path, body)
        with caught.value as answer:
            assert answer.code == 503
            assert ("start gunicorn without --preload" in answer.read().decode()) == (path == "/predict")


LONG = {"tasks": [{"data": {"image": data_url()}}] * 5000, "label_config": CONFIG}


def ready(url: str) -> None:
    wait_for(lambda: call(url + "/health")["model"] == "ready", 120)


def test_f27_sigterm_in_the_midst_of_a_batch_answers_with_what_is_done(
    start: Callable[..., str], started: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    port = free_port()
    url = start([sys.executable, "-m", "backend._wsgi", "--host", "127.0.0.1", "--port", str(port)], port)
    ready(url)
    process = started[-1]
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(call, url + "/predict", LONG)
        wait_for(lambda: figure(url, ANNOTATED) >= 1, 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(_wsgi.GRACE_SECONDS + 10) == 0
        predictions = asked.result()["results"]
    assert len(predictions) == 5000
    assert predictions[0]
    assert predictions[-1] == {}
    assert "Traceback" not in (tmp_path / "log").read_text("utf-8")


def figure(url: str, name: str) -> float:
    """One of /metrics; 0 for one that is not there yet."""
    with urllib.request.urlopen(url + "/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)


ANNOTATED = 'vlsam_stage_seconds_count{stage="results"}'
INSIDE = "vlsam_predictions_inside"


def test_f27_for_a_client_that_is_gone_no_more_images_are_annotated(
    start: Callable[..., str], tmp_path: Path
) -> None:
    port = free_port()
    url = start([sys.executable, "-m", "backend._wsgi", "--host", "127.0.0.1", "--port", str(port)], port)
    ready(url)
    body = json.dumps(LONG).encode()
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + b"\r\n" + body)
        wait_for(lambda: figure(url, INSIDE) == 1, 60)
    wait_for(lambda: figure(url, INSIDE) == 0, 60)
    log = (tmp_path / "log").read_text("utf-8")
    assert "The client hung up" in log
    (prediction,) = call(url + "/predict", {**LONG, "tasks": LONG["tasks"][:1]})["results"]
    assert prediction


def test_a_killed_server_serves_at_once_when_it_is_started_again(
    start: Callable[..., str], started: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """And has the embeddings that the one before had written."""
    cache = tmp_path / "cache"
    for hits in (0, 1):
        port = free_port()
        command = [sys.executable, "-m", "backend._wsgi", "--host", "127.0.0.1", "--port", str(port)]
        url = start(command, port, VLSAM_CACHE_DIR=str(cache))
        click = {"id": "a", "type": "keypointlabels", "value": {"x": 25, "y": 50, "keypointlabels": ["Cat"]}}
        task = {"id": 1, "data": {"image": data_url()}}
        body = {"tasks": [task], "label_config": CONFIG, "project": "1.1"}
        call(url + "/predict", {**body, "params": {"context": {"result": [click]}}})
        assert figure(url, 'vlsam_embedding_hits_total{tier="disk"}') == hits
        wait_for(lambda: any(cache.glob("*.embedding")), 60)
        process = started[-1]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


# Whatever is mounted goes with the process.
READ_ONLY = """
mount --make-rprivate / && mount --bind / "$1" && mount -o remount,ro,bind "$1" &&
mount -t tmpfs tmpfs "$1/mnt" && mount --bind /proc "$1/proc" && mount --bind /dev "$1/dev" &&
shift && exec chroot "$@"
"""


def test_it_serves_where_all_but_a_temporary_folder_is_read_only(
    start: Callable[..., str], tmp_path: Path
) -> None:
    """As in its container, whose folder is /tmp; here a checkout may lie below that."""
    (tmp_path / "root").mkdir()
    alone = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        READ_ONLY,
        "sh",
        str(tmp_path / "root"),
        str(tmp_path / "root"),
    ]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount")
    assert subprocess.run([*alone, "touch", str(ROOT / "x")], capture_output=True).returncode
    port = free_port()
    serve = f"cd {ROOT} && exec {sys.executable} -m backend._wsgi --host 127.0.0.1 --port {port}"
    url = start(
        [*alone, "sh", "-c", serve], port, HOME="/nonexistent", TMPDIR="/mnt", VLSAM_CACHE_DIR="/mnt/cache"
    )
    ready(url)
    body = {"tasks": [{"data": {"image": data_url()}}], "label_config": CONFIG}
    assert call(url + "/predict", body)["results"][0]["model_version"]
    assert call(url + "/ready")["ready"]


# What is said at the start


def test_demo_weights_say_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        _wsgi.announce(Settings())
    assert "demo weights that know 40 drawn objects only" in caplog.text
    caplog.clear()
    _wsgi.announce(settings_with(profile="gpu-8g"))
    assert "demo weights" not in caplog.text


def test_f26_settings_that_deserve_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    _wsgi.announce(settings_with(workers=2, label_studio_api_key="sesame"))
    assert "each worker loads the models again" in caplog.text
    assert "LABEL_STUDIO_API_KEY is not used without LABEL_STUDIO_URL" in caplog.text
    assert "sesame" not in caplog.text


def test_an_unknown_profile_ends_the_start_with_a_sentence() -> None:
    with pytest.raises(ModelLoadError, match="gpu-9000"):
        _wsgi.serve("127.0.0.1", 9090, settings_with(profile="gpu-9000"))


def test_the_script_explains_invalid_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORT", "many")
    monkeypatch.setattr(sys, "argv", ["_wsgi.py"])
    assert _wsgi.main() == 2
    assert capsys.readouterr().err.startswith("vlsam: PORT is 'many'")
