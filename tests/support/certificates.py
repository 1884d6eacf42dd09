"""A certificate authority with a certificate that it signed, and a proxy that records its requests."""

import select
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Authority:
    """An authority, and a certificate of it for localhost, 127.0.0.1 and studio.example."""

    bundle: Path
    certificate: Path
    key: Path

    @classmethod
    def make(cls, folder: Path) -> "Authority":
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
        names = "subjectAltName=DNS:localhost,IP:127.0.0.1,DNS:studio.example"

        def openssl(*arguments: str) -> None:
            subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

        openssl("req", "-x509", *key, "-subj", "/CN=Our authority", "-keyout", "ca.key", "-out", "ca.pem")
        openssl("req", *key, "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "request.pem")
        (folder / "names").write_text(names)
        openssl(
            "x509", "-req", "-in", "request.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", "names", "-out", "cert.pem",
        )  # fmt: skip
        return cls(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def serve(self, server: ThreadingHTTPServer) -> None:
        """Let a server that has not started speak https."""
        server.socket = self.context().wrap_socket(server.socket, server_side=True)


@dataclass
class Proxy:
    """A proxy that forwards requests and tunnels to one port of this machine, for any host."""

    port: int = 0
    to: int = 0
    seen: list[str] = field(default_factory=list)  # "CONNECT host:port" or "GET http://..."
    logins: list[str | None] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def proxy() -> Iterator[Proxy]:
    shown = Proxy()

    class Handler(BaseHTTPRequestHandler):
        def note(self) -> None:
            shown.seen.append(f"{self.command} {self.path}")
            shown.logins.append(self.headers.get("Proxy-Authorization"))

        def do_CONNECT(self) -> None:
            self.note()
            with socket.create_connection(("127.0.0.1", shown.to), timeout=10) as there:
                self.send_response(200)
                self.end_headers()
                pair = (self.connection, there)
                while True:
                    for line in select.select(pair, (), (), 10)[0]:
                        data = line.recv(1 << 16)
                        if not data:
                            return
                        pair[pair.index(line) - 1].sendall(data)

        def forward(self) -> None:
            self.note()
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            there = HTTPConnection("127.0.0.1", shown.to, timeout=10)
            path = parts.path + (f"?{parts.query}" if parts.query else "")
            there.request(self.command, path, body, dict(self.headers.items()))
            answer = there.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            there.close()

        do_GET = do_POST = do_HEAD = do_PATCH = forward

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    shown.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield shown
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
