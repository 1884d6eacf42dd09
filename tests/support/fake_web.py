"""Serve scripted answers on loopback."""

import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Web:
    """A server on 127.0.0.1. Routes are functions of the request; `seen` records method, path and token.

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
