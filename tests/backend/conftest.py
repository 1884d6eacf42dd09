import base64
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flask.testing import FlaskClient
from numpy.typing import NDArray
from PIL import Image as Pillow

from backend.runtime.engine import PROCESS, Engine
from backend.web.app import create_app
from model.segmentation.embedding import Embedding
from model.types import Detection, Evidence, Image, Level, Mask, Prompt
from model.vlm_stage import RemoteAnswer
from tests.support.settings import settings_with

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="Cat"/><Label value="Dog"/></BrushLabels>
  <KeyPointLabels name="kp" toName="image" smart="true">
    <Label value="Cat"/><Label value="Dog"/>
  </KeyPointLabels>
  <RectangleLabels name="rect" toName="image" smart="true">
    <Label value="Cat"/><Label value="Dog"/>
  </RectangleLabels>
  <PolygonLabels name="poly" toName="image"><Label value="Cat"/><Label value="Dog"/></PolygonLabels>
</View>
"""


def disc(x: float, y: float, radius: float, *, width: int = 80, height: int = 60) -> Mask:
    rows, columns = np.mgrid[:height, :width]
    return np.asarray((columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= radius**2)


def detection(term: str, mask: Mask, prompt: Prompt | None = None, *, score: float = 0.8) -> Detection:
    if prompt is None:
        rows, columns = np.nonzero(mask)
        middle = len(rows) // 2
        point = [[columns[middle] + 0.5, rows[middle] + 0.5]] if len(rows) else [[1, 1]]
        prompt = Prompt(np.array(point, np.float32), np.array([1]))
    view = (0.0, 0.0, float(mask.shape[1]), float(mask.shape[0]))
    return Detection(term, mask, score, Evidence("", view, prompt, {"predicted_iou": score}, "v1"))


def data_url(width: int = 80, height: int = 60, *, shade: int = 200) -> str:
    return image_url(np.full((height, width, 3), (shade, 10, 10), np.uint8))


def image_url(image: Image) -> str:
    file = BytesIO()
    Pillow.fromarray(image).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@dataclass
class StandIn:
    """In place of the models: finds what it is told to, slowly or not at all where a test wants that.

    A click gives a disc around its first positive point, joined with the mask that it starts from.
    """

    found: list[Detection] = field(default_factory=list)
    seconds: float = 0.0
    fail_on: set[int] = field(default_factory=set)  # numbers of annotate calls
    prompts: list[Prompt] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    hold: threading.Event | None = None
    vocabularies: list[tuple[str, ...]] = field(default_factory=list)
    said: list[Sequence[Sequence[RemoteAnswer]] | None] = field(default_factory=list)
    encoded: list[int] = field(default_factory=list)  # the first number of each encoded image
    fail_to_encode: int = 0  # so many times
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    def encode(self, image: Image) -> Embedding:
        self.encoded.append(int(image[0, 0, 0]))
        if self.fail_to_encode:
            self.fail_to_encode -= 1
            raise RuntimeError("made to fail to encode")
        height, width = image.shape[:2]
        return Embedding({"image": torch.tensor(image)}, (height, width), (height, width))

    def annotate(
        self,
        image: Image,
        *,
        encode: Callable[[Image], Embedding] | None = None,
        vocabulary: Sequence[str] = (),
        remote_answers: Sequence[Sequence[RemoteAnswer]] | None = None,
    ) -> list[Detection]:
        self.order.append("batch")
        self.said.append(remote_answers)
        self.vocabularies.append(tuple(vocabulary))
        self.images.append(image)
        self._wait()
        if len(self.images) - 1 in self.fail_on:
            raise RuntimeError("made to fail")
        (encode or self.encode)(image)
        return self.found

    def similarity(self, terms: Sequence[str], names: Sequence[str]) -> NDArray[np.float32]:
        """How much of the letters two names share."""
        shared = [[len({*t} & {*name}) / max(1, len({*t} | {*name})) for name in names] for t in terms]
        return np.array(shared, np.float32).reshape(len(terms), len(names))

    def find(
        self,
        image: Image,
        phrase: str,
        *,
        encode: Callable[[Image], Embedding] | None = None,
        level: Level = "auto",
    ) -> list[Detection]:
        """What it is told to find and the phrase speaks of."""
        self.order.append("phrase")
        self.levels.append(level)
        self._wait()
        (encode or self.encode)(image)
        return [detection for detection in self.found if detection.term in phrase]

    def refine(self, embedding: Embedding, prompt: Prompt, level: Level = "auto") -> Detection:
        self.order.append("click")
        self.levels.append(level)
        self.prompts.append(prompt)
        self._wait()
        height, width = embedding.size
        positive = prompt.points[prompt.labels == 1]
        mask = np.zeros((height, width), bool) if prompt.mask is None else prompt.mask
        for x, y in positive:
            mask = mask | disc(x, y, 5, width=width, height=height)
        if prompt.box:
            x0, y0, x1, y1 = (round(side) for side in prompt.box)
            mask = mask.copy()
            mask[y0:y1, x0:x1] = True
        return detection("", mask, prompt)

    def smaller(self) -> "StandIn":
        self.order.append("smaller")
        return self

    def _wait(self) -> None:
        if self.hold is not None:
            assert self.hold.wait(10)
        time.sleep(self.seconds)


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn([detection("cat", disc(20, 30, 12)), detection("dogs", disc(60, 30, 9), score=0.6)])


@pytest.fixture
def make_engine(stand_in: StandIn) -> Iterator[Callable[..., Engine]]:
    """An engine around the stand-in; keywords are settings, `load` replaces how models are loaded."""

    def make(load: Callable[[], Any] | None = None, **settings: Any) -> Engine:
        return Engine(settings_with(**settings), version="v1", load=load or (lambda: stand_in)).start()

    yield make
    PROCESS.install(None)


@pytest.fixture
def client(make_engine: Callable[..., Engine]) -> FlaskClient:
    return create_app(engine=make_engine()).test_client()


@pytest.fixture
def predict_body() -> Callable[..., dict[str, Any]]:
    """A /predict body as Label Studio sends it, for images that need no network."""

    def body(*tasks: Any, context: Any = None, config: str = CONFIG, project: str = "1.1") -> dict[str, Any]:
        full = [task if not isinstance(task, str) else {"id": 1, "data": {"image": task}} for task in tasks]
        params = {"login": None, "password": None, "context": context}
        return {"tasks": full, "project": project, "label_config": config, "params": params}

    return body


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def call(url: str, body: Any = None, *, timeout: float = 90) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes that `start` started; whatever of them still runs after the test is ended."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@pytest.fixture
def start(tmp_path: Path, started: list[subprocess.Popen[bytes]]) -> Callable[..., str]:
    """Starts a command in a folder and gives its address once /health answers."""

    def run(command: list[str], port: int, folder: Path = ROOT, **more: str) -> str:
        env = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PORT": str(port),
            "VLSAM_DEVICE": "cpu",
            **more,
        }
        # A group of its own, for label-studio-ml starts the server through a shell.
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
            )
        started.append(process)
        url = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 120
        while time.monotonic() < until and process.poll() is None:
            try:
                assert call(url + "/health")["status"] == "UP"
                return url
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        raise AssertionError((tmp_path / "log").read_text("utf-8"))

    return run


class Web:
    """A server on 127.0.0.1: routes are functions of the request, and it notes who came with which token.

    With a TLS `context` it speaks https.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.seen: list[tuple[str, str, str | None]] = []
        self.routes: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.seen.append((self.command, self.path, self.headers.get("Authorization")))
                route = web.routes.get(self.path.partition("?")[0])
                if "*/*" not in self.headers.get("Accept", ""):
                    # Label Studio 1.23.2 does so: its upload views offer JSON only.
                    web.answer(self, b"not acceptable", status=406)
                elif route is None:
                    web.answer(self, b"nothing here", status=404)
                else:
                    route(self)

            def do_POST(self) -> None:
                # Where some of it is not read, closing resets the connection, and the answer may be lost.
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        self.url = f"http{'s' if context else ''}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def answer(
        self, handler: BaseHTTPRequestHandler, body: bytes, *, status: int = 200, **headers: str
    ) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def serve(self, path: str, body: bytes, *, status: int = 200, **headers: str) -> str:
        self.routes[path] = lambda handler: self.answer(handler, body, status=status, **headers)
        return self.url + path

    def redirect(self, path: str, to: str) -> str:
        return self.serve(path, b"", status=302, Location=to)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def make_web() -> Iterator[Callable[..., Web]]:
    webs: list[Web] = []

    def make(context: ssl.SSLContext | None = None) -> Web:
        webs.append(Web(context))
        return webs[-1]

    yield make
    for web in webs:
        web.close()


@pytest.fixture
def web(make_web: Callable[..., Web]) -> Web:
    return make_web()
