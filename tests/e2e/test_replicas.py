"""Two replicas behind HAProxy, as the compose file's: one is killed while somebody corrects a region."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from backend.demo.processes import Service
from backend.labelstudio.recommended_configs import label_config
from model.builtin.scenes import NAMES, draw_scene
from tests.support.editor_gestures import click_on_pixel, context, deepest, mask_of
from tests.support.haproxy import start_balancer
from tests.support.label_studio_user import Studio
from tests.support.studio_servers import OWNER, START_TIMEOUT_S, Servers, start_backend
from tests.support.waiting import wait_for

SIZE = (400, 300)


@pytest.fixture
def replicas(servers: Servers, tmp_path: Path) -> Iterator[list[Service]]:
    running: list[Service] = []
    try:
        for number in range(2):
            running.append(start_backend(servers.studio, OWNER.token, tmp_path / f"replica-{number}.log"))
        for service in running:
            service.wait_until_up(START_TIMEOUT_S)
        for service in running:  # else the balancer begins with one of them, and goes over to both
            wait_for(partial(ready, service), START_TIMEOUT_S)
        yield running
    finally:
        for service in running:
            service.stop()


@pytest.fixture
def balancer(replicas: list[Service], tmp_path: Path) -> Iterator[str]:
    places = (service.url.removeprefix("http://") for service in replicas)
    service = start_balancer(tmp_path / "haproxy.log", *places)
    try:
        service.wait_until_up(START_TIMEOUT_S)
        yield service.url
    finally:
        service.stop()


def ready(replica: Service) -> bool:
    return requests.get(f"{replica.url}/ready", timeout=30).ok


def encoded(replica: Service) -> int:
    """How many images it encoded."""
    lines = requests.get(f"{replica.url}/metrics", timeout=30).text.splitlines()
    (line,) = (line for line in lines if line.startswith("vlsam_embedding_misses_total "))
    return int(float(line.split()[1]))


def kill(replica: Service) -> None:
    """Returns when its port is closed: until then clicks are taken for it, and lost."""
    os.killpg(replica.process.pid, signal.SIGKILL)
    replica.process.wait()
    host, port = replica.url.removeprefix("http://").split(":")
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.01)
    raise AssertionError("the port of a killed replica stays open")


def test_a_replica_is_killed_in_mid_session_and_nothing_saved_is_lost(
    studio: Studio, replicas: list[Service], balancer: str, tmp_path: Path
) -> None:
    scene = draw_scene(
        np.random.default_rng(7), width=SIZE[0], height=SIZE[1], count=2, scale=(0.4, 0.5), degrade=False
    )
    thing, path = scene.objects[-1], tmp_path / "scene.png"
    Image.fromarray(scene.image).save(path)
    project = studio.create_project("Replicas", label_config(NAMES))
    studio.import_files(project, [path])
    backend = studio.connect_backend(project, balancer)
    (task,) = (int(task["id"]) for task in studio.tasks(project))

    def correct(x: int, y: int, *, positive: bool = True) -> dict[str, Any]:
        gesture = click_on_pixel(x, y, SIZE, thing.name, positive=positive)
        answer = studio.interactive(backend, task, context(gesture))
        assert not answer.get("errors"), answer
        region: dict[str, Any]
        region, *_ = answer["data"]["result"]
        return region

    # A region, and a correction of it: one replica gets both, for it has the image.
    x, y = deepest(thing.visible)
    region = correct(x, y)
    annotation = studio.submit(task, [region])
    rows, columns = np.nonzero(mask_of(region))
    farthest = int(np.hypot(columns - x, rows - y).argmax())
    again = correct(int(columns[farthest]), int(rows[farthest]))
    assert again["id"] == region["id"]
    assert sorted(map(encoded, replicas)) == [0, 1]
    killed, other = sorted(replicas, key=encoded, reverse=True)
    kill(killed)

    # The very next click goes to the other one, which knows nothing but what the request says.
    after = correct(int(columns[farthest]), int(rows[farthest]))
    assert encoded(other) == 1
    assert after["id"] == region["id"]
    assert len(after["meta"]["vlsam"]["points"]) == 2  # the first click, from the saved region, and this one
    assert mask_of(after)[y, x]
    assert (mask_of(after) == mask_of(again)).mean() > 0.99
    assert studio.annotation(annotation["id"])["result"][0]["meta"] == region["meta"]
    assert studio.backends(project)[0]["readable_state"] == "Connected"

    # So does one with 18 MB of drafts, as a task with a hundred large masks has.
    noise = {**region, "id": "noise"}
    noise["value"] = {"format": "rle", "rle": [255] * 3_600_000, "brushlabels": ["cup"]}
    shown = studio.task(task)
    body = {
        "tasks": [
            {
                "id": task,
                "data": shown["data"],
                "annotations": [],
                "drafts": [{"id": 1, "result": [noise, after]}],
            }
        ],
        "project": f"{project}.1",
        "label_config": label_config(NAMES),
        "params": {"context": context(click_on_pixel(x, y, SIZE, thing.name))},
    }
    answer = requests.post(f"{balancer}/predict", json=body, timeout=90)
    assert len(answer.request.body or "") > 18_000_000
    large, *_ = answer.json()["results"][0]["result"]
    assert large["id"] == region["id"]
    assert sorted(large["meta"]["vlsam"]["points"]) == sorted(after["meta"]["vlsam"]["points"])
