"""The client of Label Studio's API: what is tried again, what is reported, and with which words."""

import json
from dataclasses import replace
from http.server import BaseHTTPRequestHandler

import pytest

from backend.images.studio_urls import Server
from backend.labelstudio_api import client as module
from backend.labelstudio_api.client import (
    BATCH,
    ONE_TRY,
    RequestLimits,
    StudioClient,
    StudioError,
    check_token,
    project_number,
)
from tests.support.fake_web import Web
from tests.support.fetching import LOOPBACK, fetcher_with, jwt

PROJECT = {"id": 7, "title": "Pets", "label_config": "<View/>", "task_number": 3}
QUICK = replace(BATCH, pauses=(0.0, 0.0))


def client(web: Web, limits: RequestLimits = QUICK, token: str = "sesame") -> StudioClient:
    return StudioClient(Server(web.url, token), fetcher_with(allowed_hosts=LOOPBACK), limits)


def statuses(web: Web, path: str, *answers: int, body: object = PROJECT) -> None:
    """Answer with these statuses, one request each, and the last for ever."""
    left = list(answers)

    def route(handler: BaseHTTPRequestHandler) -> None:
        status = left.pop(0) if len(left) > 1 else left[0]
        web.answer(handler, json.dumps(body if status == 200 else {"detail": "down"}).encode(), status=status)

    web.routes[path] = route


def test_a_project_of_label_studio(web: Web) -> None:
    statuses(web, "/api/projects/7/", 200)
    assert client(web).project(7)["title"] == "Pets"
    assert client(web).label_config(7) == "<View/>"
    assert web.seen[0] == ("GET", "/api/projects/7/", "Token sesame")


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_batch_command_tries_again_while_label_studio_fails(web: Web, status: int) -> None:
    statuses(web, "/api/projects/7/", status, status, 200)
    assert client(web).project(7)["title"] == "Pets"
    assert len(web.seen) == 3
    statuses(web, "/api/projects/7/", status, 200)
    with pytest.raises(StudioError, match=f"HTTP {status}"):
        client(web, ONE_TRY).project(7)


def test_it_gives_up_after_the_last_pause_and_says_how_to_go_on(web: Web) -> None:
    statuses(web, "/api/projects/7/", 503)
    with pytest.raises(StudioError) as caught:
        client(web).project(7)
    assert str(caught.value) == (
        'Label Studio answered HTTP 503 to GET /api/projects/7/: {"detail": "down"}; '
        "the same command goes on from here"
    )
    assert len(web.seen) == 3


@pytest.mark.parametrize("status", [400, 403, 404, 405])
def test_what_label_studio_refuses_is_not_tried_again(web: Web, status: int) -> None:
    statuses(web, "/api/projects/7/", status, 200)
    with pytest.raises(StudioError) as caught:
        client(web).project(7)
    assert (caught.value.status, len(web.seen)) == (status, 1)
    assert f"HTTP {status}" in caught.value.problem


def test_a_wrong_address_is_reported_at_once_with_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.labelstudio_api.client.time.sleep", lambda _: pytest.fail("waited"))
    asking = StudioClient(Server("http://127.0.0.1:9", "sesame"), fetcher_with(allowed_hosts=LOOPBACK), BATCH)
    with pytest.raises(
        StudioError, match=r"http://127\.0\.0\.1:9/api/projects/7/ cannot be reached"
    ) as caught:
        asking.project(7)
    assert "correct LABEL_STUDIO_URL" in caught.value.cure


def test_once_label_studio_has_answered_a_connection_that_breaks_is_tried_again(web: Web) -> None:
    statuses(web, "/api/projects/7/", 200)
    asking = client(web)
    asking.project(7)

    def breaks(handler: BaseHTTPRequestHandler) -> None:
        statuses(web, "/api/projects/7/", 200)
        handler.connection.close()

    web.routes["/api/projects/7/"] = breaks
    assert asking.project(7)["title"] == "Pets"


@pytest.mark.parametrize(
    ("limits", "problem", "cure"),
    [
        (
            replace(QUICK, max_bytes=20),
            "has more than 20 bytes.",
            "give the tasks addresses instead of images",
        ),
        (ONE_TRY, "has more than 30 bytes (VLSAM_MAX_IMAGE_BYTES).", ""),
    ],
    ids=["limit of the client", "limit of the settings"],
)
def test_an_answer_that_is_too_large_names_the_remedy(
    web: Web, limits: RequestLimits, problem: str, cure: str
) -> None:
    statuses(web, "/api/projects/7/", 200)
    fetcher = fetcher_with(allowed_hosts=LOOPBACK, max_image_bytes=30)
    with pytest.raises(StudioError) as caught:
        StudioClient(Server(web.url, "sesame"), fetcher, limits).project(7)
    assert caught.value.problem == f"{web.url}/api/projects/7/ {problem}"
    assert caught.value.cure.partition(",")[0] == cure
    assert len(web.seen) == 1


def test_a_redirect_is_an_address_to_correct(web: Web) -> None:
    web.redirect("/api/projects/7/", to="https://studio.example/ls/api/projects/7/?token=secret")
    with pytest.raises(StudioError) as caught:
        client(web).project(7)
    assert caught.value.problem == f"{web.url} redirects to https://studio.example/ls."
    assert caught.value.cure == "give that address as LABEL_STUDIO_URL"
    assert len(web.seen) == 1


def test_a_proxy_that_is_busy_while_a_token_is_exchanged_is_tried_again(web: Web) -> None:
    statuses(web, "/api/token/refresh/", 503, 200, body={"access": jwt("access")})
    statuses(web, "/api/projects/7/", 200)
    assert client(web, token=jwt("refresh")).project(7)["title"] == "Pets"


@pytest.mark.parametrize(
    "body", [b"<html>", b"[]", b'{"tasks": []}', b'{"total": 1, "tasks": [{"data": {}}]}']
)
def test_a_list_of_tasks_that_is_none(web: Web, body: bytes) -> None:
    web.routes["/api/tasks/"] = lambda handler: web.answer(handler, body)
    with pytest.raises(StudioError, match="is no Label Studio"):
        list(client(web).tasks(7))


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"[" * 90_000])
def test_what_is_no_label_studio(web: Web, body: bytes) -> None:
    web.serve("/api/projects/7/", body)
    with pytest.raises(StudioError, match="is no Label Studio"):
        client(web).project(7)


def test_tasks_come_page_by_page_each_tried_again(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 5)  # Label Studio may have smaller pages
    pages = {1: [{"id": 1}, {"id": 2}], 2: [{"id": 2}, {"id": 3}], 3: [{"id": 4}]}
    failures = [503]

    def route(handler: BaseHTTPRequestHandler) -> None:
        page = int(handler.path.partition("&page=")[2].partition("&")[0])
        if page == 2 and failures:
            return web.answer(handler, b"", status=failures.pop())
        return web.answer(handler, json.dumps({"tasks": pages[page], "total": 4}).encode())

    web.routes["/api/tasks/"] = route
    assert [task["id"] for task in client(web).tasks(7)] == [1, 2, 3, 4]


@pytest.mark.parametrize(("status", "tasks"), [(404, []), (200, []), (200, [{"id": 1}])])
def test_tasks_end_behind_the_last_page_though_some_were_deleted(
    web: Web, status: int, tasks: list[object]
) -> None:
    first = {"tasks": [{"id": 1}], "total": 9}
    left = [(200, first), (status, {"tasks": tasks, "total": 9})]

    def route(handler: BaseHTTPRequestHandler) -> None:
        status, body = left.pop(0)
        web.answer(handler, json.dumps(body).encode(), status=status)

    web.routes["/api/tasks/"] = route
    assert [task["id"] for task in client(web).tasks(7)] == [1]
    assert not left


def test_an_import_is_sent_once_though_its_answer_is_lost(web: Web) -> None:
    """Whoever imports asks what was taken before it tries again."""
    statuses(web, "/api/projects/7/import/predictions", 504, 200)
    with pytest.raises(StudioError, match="HTTP 504"):
        client(web).import_predictions(7, [{"task": 1, "result": []}])
    assert len(web.seen) == 1


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("e2e1" * 10, "does not know this legacy token"),
        (jwt("access"), "refuses the personal access token"),
        ("short.part", "may be a part of a personal access token"),
    ],
)
def test_a_token_that_is_refused_is_told_by_its_kind(web: Web, token: str, said: str) -> None:
    statuses(web, "/api/projects/7/", 401)
    with pytest.raises(StudioError, match=said) as caught:
        client(web, token=token).project(7)
    assert token not in str(caught.value)
    assert "LABEL_STUDIO_API_KEY" in caught.value.cure


def test_an_access_token_that_was_refused_is_exchanged_anew(web: Web) -> None:
    web.serve("/api/token/refresh/", json.dumps({"access": jwt("access")}).encode())
    statuses(web, "/api/projects/7/", 401, 200)
    client(web, token=jwt("refresh")).project(7)
    assert [method for method, *_ in web.seen] == ["POST", "GET", "POST", "GET"]


@pytest.mark.parametrize(
    ("token", "said"), [("eyJh.eyJi.", "without its signature"), ("Bearer eyJh", "quotes, spaces or other")]
)
def test_what_can_be_no_token_is_told_before_it_is_sent(token: str, said: str) -> None:
    with pytest.raises(StudioError, match=said):
        check_token(token)


def test_a_projects_address_has_its_number() -> None:
    assert project_number("labelstudio://7") == project_number("labelstudio://7/") == 7
    assert project_number("photos/") is None
    for address in ("labelstudio://", "labelstudio://pets", "labelstudio://7/8"):
        with pytest.raises(ValueError, match=r"by its number, as in labelstudio://7"):
            project_number(address)
