"""Serve the part of the OpenAI protocol that a remote VLM needs, as vLLM does, on loopback."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image as Pillow


class Lister(ThreadingHTTPServer):
    """Answers `text` to every image."""

    daemon_threads = True
    model, key = "big-vlm", "sesame"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.text: Any = "dog, bus."
        self.ended = "stop"  # its finish_reason: "length" where the answer was cut
        self.raw: bytes | None = None  # in place of a chat completion
        self.status = 200
        self.drip = threading.Event()  # if set, bytes come one by one, without end
        self.asked: list[tuple[str, tuple[int, int]]] = []  # question and image size of each request
        self.tokens: list[str | None] = []  # the Authorization of each

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def environment(self) -> dict[str, str]:
        """Return the settings that make it the remote VLM."""
        return {
            "VLSAM_LISTING_URL": self.url,
            "VLSAM_LISTING_MODEL": self.model,
            "VLSAM_LISTING_KEY": self.key,
        }


@contextmanager
def listing() -> Iterator[Lister]:
    lister = Lister()
    thread = threading.Thread(target=lister.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield lister
    finally:
        lister.drip.clear()
        lister.shutdown()
        lister.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Lister

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        lister = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        lister.tokens.append(self.headers["Authorization"])
        if lister.status != 200:
            self._answer(lister.status, b'{"error": {"message": "no such key: sesame"}}')
        elif self.headers["Authorization"] != f"Bearer {lister.key}":
            self._answer(401, b"{}")
        elif self.path != "/v1/chat/completions" or body["model"] != lister.model:
            self._answer(404, b'{"error": {"message": "The model does not exist."}}')
        elif lister.raw is not None:
            self._answer(200, lister.raw)
        else:
            ((picture, text),) = (message["content"] for message in body["messages"])
            head, _, data = picture["image_url"]["url"].partition(",")
            assert head == "data:image/jpeg;base64"
            assert (body["temperature"], body["max_tokens"]) == (0, 256)
            with Pillow.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
                lister.asked.append((text["text"], image.size))
            said = {"role": "assistant", "content": lister.text}
            choice = {"index": 0, "message": said, "finish_reason": lister.ended}
            answer = {"id": "c1", "object": "chat.completion", "model": lister.model, "choices": [choice]}
            self._answer(200, json.dumps(answer).encode())

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Location", "http://127.0.0.1:9/")  # heeded with 3xx alone
        if not self.server.drip.is_set():
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        try:
            self.wfile.write(content)
            while self.server.drip.wait(0.01) and self.server.drip.is_set():
                threading.Event().wait(0.05)
                self.wfile.write(b" ")
                self.wfile.flush()
        except OSError:
            pass  # whoever asked has gone
