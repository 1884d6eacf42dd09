"""backend/web/haproxy.cfg in a real HAProxy: which replica gets which request. Replicas here only note it.

That replicas can stand in for each other is shown with real ones in tests/e2e/test_replicas.py.
"""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.haproxy import start_balancer
from tests.support.waiting import wait_for

TASKS = range(40)


class Noted(ThreadingHTTPServer):
    """A replica that answers with its number; it notes each body's length and whom it is said to be from."""

    daemon_threads = True

    def __init__(self, number: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.number = number
        self.seen: list[tuple[int, str | None]] = []
        self.ends = False  # with the next request, without an answer
        self.models = "ready"
        self.checks = 0  # how often HAProxy asked whether it is ready
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Noted

    def do_GET(self) -> None:
        if self.path == "/ready":  # as tests/backend/web/test_app.py has it from a real one
            self.server.checks += 1
            models = self.server.models
            ready = {"checks": {"device": "ok", "disk": "ok", "models": models}, "ready": models == "ready"}
            self._answer(ready, 200 if models == "ready" else 503)
        else:
            self._answer(self.server.number)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((len(body), self.headers["X-Forwarded-For"]))
        if not self.server.ends:
            self._answer(self.server.number)

    def _answer(self, told: Any, status: int = 200) -> None:
        content = json.dumps(told, separators=(",", ":")).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def replicas() -> Iterator[list[Noted]]:
    running = [Noted(number) for number in range(2)]
    yield running
    for replica in running:
        replica.close()


@pytest.fixture
def balancer(replicas: list[Noted], tmp_path: Path) -> Iterator[str]:
    service = start_balancer(tmp_path / "log", *(replica.place for replica in replicas))
    try:
        service.wait_until_up(60)
        yield service.url
    finally:
        service.stop()


def body(task: int, size: int = 0) -> bytes:
    """As Label Studio sends it, with drafts of about `size` bytes."""
    drafts = [{"result": [{"value": {"format": "rle", "rle": [255] * (size // 5)}}]}]
    return json.dumps({"tasks": [{"id": task, "drafts": drafts}], "project": "1.1"}).encode()


def ask(balancer: str, content: bytes, path: str = "predict") -> int:
    answer = requests.post(f"{balancer}/{path}", content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    return int(answer.json())


def test_a_task_stays_with_its_replica_however_large_its_drafts_are(
    balancer: str, replicas: list[Noted]
) -> None:
    places = {task: ask(balancer, body(task)) for task in TASKS}
    assert set(places.values()) == {0, 1}
    assert {task: ask(balancer, body(task, 20_000)) for task in TASKS} == places
    for task in (0, 1, 2):
        large = body(task, 18_000_000)
        assert ask(balancer, large) == places[task]
        assert replicas[places[task]].seen[-1] == (len(large), "127.0.0.1")


def test_a_body_that_comes_in_pieces_goes_where_it_belongs(balancer: str) -> None:
    host, port = balancer.removeprefix("http://").split(":")
    for task in range(1000, 1008):
        content = body(task, 3000)
        head = (
            "POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in (head.encode(), content[:12], content[12:20], content[20:]):
                connection.sendall(piece)
                threading.Event().wait(0.02)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert int(answer.rpartition(b"\r\n\r\n")[2]) == ask(balancer, content)


@pytest.mark.parametrize(
    "name",
    [
        "server_predict_batch",
        "ui_01_first_positive_click",
        "ui_10_click_with_predicted_region_selected",
        "ui_60_text_prompt",
    ],
)
def test_what_label_studio_sends_goes_by_its_first_task(
    balancer: str, capture: Callable[..., Any], name: str
) -> None:
    recorded = capture(name)
    first = recorded["tasks"][0]["id"]
    for task in range(first, first + 8):  # one alone may be right by chance
        recorded["tasks"][0]["id"] = task
        assert ask(balancer, json.dumps(recorded).encode()) == ask(balancer, body(task))


def test_requests_without_tasks_take_turns(balancer: str) -> None:
    assert {ask(balancer, b'{"project": "1.1"}', "setup") for _ in range(8)} == {0, 1}
    assert {ask(balancer, content) for content in (b"", b"no JSON", b"[]") for _ in range(4)} == {0, 1}


def test_only_the_tasks_of_a_replica_that_is_gone_move(balancer: str, replicas: list[Noted]) -> None:
    places = {task: ask(balancer, body(task)) for task in TASKS}
    replicas[0].close()
    assert {task: ask(balancer, body(task)) for task in TASKS} == dict.fromkeys(TASKS, 1)
    assert 0 in places.values()


def test_while_a_replica_loads_its_models_the_other_has_its_tasks(
    balancer: str, replicas: list[Noted]
) -> None:
    def places() -> set[int]:
        return {ask(balancer, body(task)) for task in TASKS}

    replicas[0].models = "loading"
    wait_for(lambda: places() == {1}, 60)  # HAProxy's checks are seconds apart
    replicas[0].models = "failed"  # it says so itself
    wait_for(lambda: places() == {0, 1}, 60)
    for replica in replicas:
        replica.models = "loading"
    seen = [replica.checks for replica in replicas]
    wait_for(lambda: all(r.checks > before + 3 for r, before in zip(replicas, seen, strict=True)), 60)
    assert places() == {0, 1}  # where clicks wait, and /setup is answered


def test_a_request_that_ends_a_replica_is_not_given_to_the_next(balancer: str, replicas: list[Noted]) -> None:
    task = next(task for task in TASKS if ask(balancer, body(task)) == 0)
    before = len(replicas[1].seen)
    replicas[0].ends = True
    assert requests.post(f"{balancer}/predict", body(task)).status_code == 502
    assert len(replicas[1].seen) == before
