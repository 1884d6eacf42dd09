"""The check after /setup."""

import logging
import threading
from collections.abc import Callable

import pytest

from backend.answers.resources import Resources
from backend.doctor.watch import Watch
from backend.images.studio_urls import Server
from backend.web.app import create_app
from tests.support.doctor_studio import (
    DISABLED,
    LEGACY,
    Studio,
    images_at,
)
from tests.support.labeling_configs import CONFIG
from tests.support.waiting import wait_for


def test_setup_answers_before_it_looks_and_the_log_says_what_was_found(
    studio: Studio, make_resources: Callable[..., Resources], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    studio.answers["GET /api/current-user/whoami"] = (401, {"detail": DISABLED})
    studio.wait = threading.Event()  # Label Studio does not answer before it has our answer
    client = create_app(resources=make_resources()).test_client()
    body = {"project": "3.1700000000", "schema": CONFIG, "hostname": studio.url, "access_token": LEGACY}
    assert client.post("/setup", json=body).json == {"model_version": "v1"}
    client.post("/setup", json=body)  # the next page load
    studio.wait.set()
    wait_for(lambda: "Legacy tokens are disabled" in caplog.text)
    assert "Project 3, token: Legacy tokens are disabled" in caplog.text
    assert "To do: create a Personal Access Token" in caplog.text
    assert studio.asked.count("GET /api/version/") == 1
    assert LEGACY not in caplog.text


def test_setup_cannot_make_us_ask_machines_of_our_own_network(
    studio: Studio, make_resources: Callable[..., Resources], caplog: pytest.LogCaptureFixture
) -> None:
    client = create_app(resources=make_resources()).test_client()
    body = {"project": "3.1", "schema": CONFIG, "hostname": studio.url, "access_token": LEGACY}
    assert client.post("/setup", json=body, environ_base={"REMOTE_ADDR": "203.0.113.5"}).status_code == 200
    wait_for(lambda: "is refused" in caplog.text)
    assert studio.asked == []


def test_a_project_is_looked_at_again_with_another_token_or_after_some_minutes(
    studio: Studio, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    now = [0.0]
    watch = Watch(images_at(studio.url), clock=lambda: now[0])

    def images() -> int:
        return caplog.text.count("The image of task 5 is here")

    watch.begin("3.1", Server(studio.url, LEGACY))
    wait_for(lambda: images() == 1)
    watch.begin("3.1", Server(studio.url, "other"))
    wait_for(lambda: images() == 2)
    watch.begin("3.1", Server(studio.url, "other"))
    watch.begin("no number", Server(studio.url, "other"))
    now[0] = 301.0
    watch.begin("3.1", Server(studio.url, "other"))
    wait_for(lambda: images() == 3)


def test_few_projects_are_looked_at_at_once(studio: Studio) -> None:
    studio.wait = threading.Event()
    watch = Watch(images_at(studio.url))
    for project in range(20):
        watch.begin(f"{project}.1", Server(studio.url, LEGACY))
    wait_for(lambda: len(studio.asked) == 4)
    studio.wait.set()
    wait_for(lambda: "watch" not in {thread.name for thread in threading.enumerate()})
    assert studio.asked.count("GET /api/version/") == 4
