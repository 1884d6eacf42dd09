"""A Label Studio and a backend at one address, with answers as measured with 1.23.2."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from backend.doctor.checks import diagnose
from backend.doctor.finding import Finding
from backend.images.fetch import Fetcher
from backend.images.studio_urls import Server
from backend.labelstudio.recommended_configs import label_config
from backend.labelstudio_api.client import StudioClient
from backend.settings import Settings
from tests.support.images import data_url
from tests.support.processes import free_port
from tests.support.settings import settings_with

LEGACY = "e2e0" * 10


ACCESS = "h.eyJ0b2tlbl90eXBlIjoiYWNjZXNzIn0.s"  # {"token_type":"access"}


REFRESH = "h.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.s"


DISABLED = (
    "Authentication token no longer valid: "
    "legacy token authentication has been disabled for this organization"
)


PRIVATE = "URL resolves to a reserved network address (block: 127.0.0.0/8)"


GOOD = label_config(["Cat", "Dog"])


TRIED = {
    "result": [{"id": "a", "from_name": "mask"}, {"id": "b", "from_name": "mask"}],
    "seen": ["cat", "dog"], "unlabelled": [], "log": "/var/log/vlsam.log",
}  # fmt: skip


TRY = "POST /api/ml/7/interactive-annotating"


Answer = tuple[int, Any]


PETS = {"title": "Pets", "label_config": GOOD, "model_version": "v1", "show_collab_predictions": True}


def versions(**counts: int) -> Answer:
    """Of stored predictions, beside a connected backend."""
    static = [{"model_version": version, "count": count} for version, count in counts.items()]
    return 200, {"static": static, "live": [{"id": 7, "title": "VL-SAM"}]}


def one_task(**data: str) -> Answer:
    return 200, {"tasks": [{"id": 5, "data": data}]}


def allowed(url: str) -> Settings:
    """Whose default backend, at PORT, is not running."""
    return settings_with(label_studio_url=url, allowed_hosts=(("127.0.0.1", None),), port=free_port())


def images_at(url: str) -> Fetcher:
    settings = allowed(url)
    return Fetcher(settings.images, settings.label_studio)


@dataclass
class Studio:
    """A Label Studio, and a backend, at one address: `answers` by method and path, else 404."""

    url: str = ""
    answers: dict[str, Answer] = field(default_factory=dict)
    makers: dict[str, Callable[[], Answer]] = field(default_factory=dict)  # of answers that differ
    asked: list[str] = field(default_factory=list)
    sent: list[Any] = field(default_factory=list)
    wait: threading.Event | None = None

    def find(self, check: str, *, key: str | None = LEGACY, status: str | None = None) -> Finding:
        """Return the first finding of a check, with this status if one is given."""
        return next(f for f in self.findings(key) if f.check == check and status in (None, f.status))

    def findings(self, key: str | None = LEGACY) -> list[Finding]:
        settings = allowed(self.url)
        images = Fetcher(settings.images, settings.label_studio)
        return list(diagnose(StudioClient(Server(self.url, key), images), 3, settings, None, 5))


@contextmanager
def running() -> Iterator[Studio]:
    """Serve a Label Studio in which each check passes."""
    studio = Studio()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            path = self.path.partition("?")[0]
            if f"{self.command} {path}" not in {**studio.answers, **studio.makers}:
                path = path.rstrip("/")
            call = f"{self.command} {path}"
            studio.asked.append(call)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            studio.sent.append(json.loads(body) if body else None)
            if studio.wait is not None:
                assert studio.wait.wait(10)
            made = studio.makers.get(call)
            missing = (404, {"detail": "Not found."})
            said_of_call = studio.answers.get(call, missing)
            status, said = made() if made else studio.answers.get(f"{self.command} {self.path}", said_of_call)
            data = said.encode() if isinstance(said, str) else json.dumps(said).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", said)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = answer

        def log_message(self, format: str, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        studio.url = f"http://127.0.0.1:{server.server_port}"
        backend = {
            "id": 7, "url": studio.url, "state": "CO", "readable_state": "Connected", "error_message": None,
            "is_interactive": True, "model_version": "v1",
        }  # fmt: skip
        studio.answers = {
            "GET /api/version/": (200, {"release": "1.23.2"}),
            "GET /api/current-user/whoami": (200, {"id": 1, "email": "ann@example.com"}),
            "GET /api/projects/3": (200, PETS),
            "GET /api/projects/3/model-versions/": versions(v1=4),
            "GET /api/tasks": (200, {"total": 1, "tasks": [{"id": 5, "data": {"image": data_url()}}]}),
            "GET /api/ml": (200, [backend]),
            "POST /api/ml": (400, {"detail": "Validation error"}),
            "GET /health": (200, {"status": "UP", "model_version": "v1", "model": "ready"}),
            TRY: (200, {"data": TRIED}),
            "POST /api/ml/7/predict/test": (200, {"task": {"id": 5}, "response": [{"result": [{}, {}]}]}),
        }
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield studio
        server.shutdown()


def change_backend(studio: Studio, **changes: Any) -> None:
    status, (backend,) = studio.answers["GET /api/ml"]
    studio.answers["GET /api/ml"] = (status, [{**backend, **changes}])


def many_tasks(studio: Studio, total: int) -> None:
    """Return tasks whose ids are ten times their positions."""
    data = {"image": data_url()}
    for page in range(1, total + 1):
        studio.answers[f"GET /api/tasks?project=3&page_size=1&page={page}&fields=all"] = (
            200, {"total": total, "tasks": [{"id": 10 * page, "data": data}]},
        )  # fmt: skip
