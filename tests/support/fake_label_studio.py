"""Serve a fake Label Studio that is fast and fails on demand."""

import json
import math
import socketserver
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from backend.labelstudio_api import client
from backend.prelabel import project_import
from tests.support.images import data_url
from tests.support.labeling_configs import CONFIG


class Studio:
    """A project of tasks 1 to 6 and their predictions; `answers` are statuses to give first."""

    def __init__(self) -> None:
        self.data: dict[int, dict[str, Any]] = {n: {"image": data_url(shade=n)} for n in range(1, 7)}
        self.predictions: list[dict[str, Any]] = []
        self.answers: list[int] = []
        self.gone: set[int] = set()
        self.files: dict[str, bytes] = {}  # by address; asked for with the token alone
        self.project: dict[str, Any] = {"id": 7, "label_config": CONFIG, "model_version": ""}
        self.backends: list[dict[str, Any]] = []
        self.may_change = 200  # the status for a change of the project
        self.imports = 0
        self.ids = count(1)
        self.annotations: dict[int, list[dict[str, Any]]] = {}  # of tasks, as their skipped ones
        self.drafts: dict[int, list[dict[str, Any]]] = {}
        self.updated: Counter[int] = Counter()  # how often each task was
        self.asked: list[str] = []  # paths
        self.down_after = math.inf  # so many requests are answered

    def tell(self, path: str, query: dict[str, list[str]]) -> tuple[int, Any]:
        """Return the status and the answer to a GET."""
        self.asked.append(path)
        if len(self.asked) > self.down_after:
            return 503, {"detail": "down"}
        match path.strip("/").split("/"):
            case ["api", "projects", number] if int(number) != self.project["id"]:
                return 404, {"detail": "No Project matches the given query."}
            case ["api", "tasks", number, kind]:
                if int(number) in self.gone:
                    return 404, {"detail": "No Task matches the given query."}
                given = {"annotations": self.annotations, "drafts": self.drafts}[kind].get(int(number), [])
                return 200, [each for each in given if not each.get("was_cancelled")]
        return 200, self.get(path, query)

    def get(self, path: str, query: dict[str, list[str]]) -> Any:
        if path == "/api/tasks/":
            asked = json.loads(query["query"][0])
            have: set[int] = set()
            for rule in asked.get("filters", {}).get("items", []):
                have = {p["task"] for p in self.predictions if p["model_version"] in rule["value"]}
            page, size = int(query["page"][0]), int(query["page_size"][0])
            left = [self._task(n, data) for n, data in self.data.items() if n not in have]
            return {"tasks": left[(page - 1) * size : page * size], "total": len(left)}
        if path == "/api/predictions/":
            return [p for p in self.predictions if p["task"] == int(query["task"][0])]
        return self.backends if path == "/api/ml/" else {**self.project, "task_number": len(self.data)}

    def _task(self, number: int, data: dict[str, Any]) -> dict[str, Any]:
        given = self.annotations.get(number, [])
        return {
            "id": number,
            "data": data,
            "updated_at": f"2026-01-01T00:00:{self.updated[number]:02}Z",
            "total_annotations": sum(1 for each in given if not each.get("was_cancelled")),
            "cancelled_annotations": sum(1 for each in given if each.get("was_cancelled")),
            "total_predictions": sum(1 for each in self.predictions if each["task"] == number),
        }

    def change(self, fields: dict[str, Any]) -> tuple[int, Any]:
        """Change fields of the project, as measured with Label Studio 1.23.2."""
        if self.may_change != 200:
            return self.may_change, {"detail": "You do not have permission to perform this action."}
        versions = {p["model_version"] for p in self.predictions} | {b["title"] for b in self.backends}
        if fields.get("model_version", "") not in {"", self.project["model_version"], *versions}:
            said = "Model version doesn't exist either as live model or as static predictions."
            return 400, {"detail": "Validation error", "validation_errors": {"model_version": [said]}}
        self.project.update(fields)
        return 200, self.project

    def take(self, predictions: list[dict[str, Any]]) -> int:
        """Import predictions and return the status."""
        self.imports += 1
        if self.gone & {p["task"] for p in predictions}:
            return 400
        status = self.answers.pop(0) if self.answers else 201
        if status in (201, 504):  # 504: taken, but a proxy did not wait for the answer
            for each in predictions:
                self.predictions.append({"id": next(self.ids), "project": 7, **each})
        return status


@contextmanager
def running(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Studio]:
    """Serve a fake Label Studio and set the environment so that commands use it."""
    fake = Studio()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if self.path in fake.files:
                self._file(200 if self.headers["Authorization"] == f"Token {'a' * 40}" else 401)
            else:
                self._answer(*fake.tell(parts.path, parse_qs(parts.query)))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/api/projects/7/import/predictions"
            self._answer(fake.take(body), {"created": len(body)})

        def do_PATCH(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/api/projects/7/"
            self._answer(*fake.change(body))

        def do_DELETE(self) -> None:
            number = int(self.path.strip("/").rpartition("/")[2])
            fake.predictions = [p for p in fake.predictions if p["id"] != number]
            self._answer(204, None)

        def _file(self, status: int) -> None:
            self._send(status, fake.files[self.path] if status == 200 else b"", "image/png")

        def _answer(self, status: int, value: Any) -> None:
            self._send(status, b"" if status == 204 else json.dumps(value).encode(), "application/json")

        def _send(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("LABEL_STUDIO_URL", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", "a" * 40)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(client, "BATCH", replace(client.BATCH, pauses=(0.0, 0.0)))
        monkeypatch.setattr(client, "PAGE", 4)
        monkeypatch.setattr(project_import, "CHUNK", 2)
        yield fake
        server.shutdown()
