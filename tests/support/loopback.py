"""Serve files on loopback, in parts, and hang up on demand.

It also speaks as much of the hub's protocol as fetching a model needs.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from model.weights.sam_checkpoints import Checkpoint

COMMIT = "c" * 40


class Site(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}  # by path
        self.repositories: dict[str, dict[str, bytes]] = {}  # hub id -> files, at COMMIT, which is main
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}  # hub id and another commit -> files
        self.listing_refusal: tuple[int, dict[str, str]] | None = None  # and what is said about them
        self.refusal: tuple[int, dict[str, str]] | None = None  # what files of repositories are answered with
        self.asked: list[tuple[str, str, str]] = []  # path, Range and Authorization of each GET
        self.breaks: list[int] = []  # the next answers hang up after so many bytes
        self.breaking = ""  # if set, those to paths that end so
        self.moved = ""  # files of repositories are answered with a redirect to this address
        self.status = 0  # if set, what everything is answered with
        self.ranges = True
        self.stall = threading.Event()  # held back until set, after a break of no bytes at all
        self.stall.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def checkpoint(self, name: str, content: bytes) -> Checkpoint:
        """Serve `content` and return its description."""
        self.files[f"/{name}"] = content
        return Checkpoint(f"{self.url}/{name}", len(content), hashlib.sha256(content).hexdigest())


def stand_in_for_hub(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Have huggingface_hub take a server at `url` for the hub, as HF_ENDPOINT would have at its import."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@contextmanager
def running(site: Site | None = None) -> Iterator[Site]:
    site = site or Site()
    thread = threading.Thread(target=site.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield site
    finally:
        site.stall.set()
        site.shutdown()
        site.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    server: Site
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        asked = self.headers.get("Range", ""), self.headers.get("Authorization", "")
        self.server.asked.append((self.path, *asked))
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path, site = unquote(urlsplit(self.path).path), self.server
        of_model = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/(?:tree|revision)/(\w+))?", path)
        of_file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/(\w+)/(.+)", path)
        if site.status:
            self._send(site.status, b"")
        elif of_model and site.listing_refusal:
            self._send(site.listing_refusal[0], b"", site.listing_refusal[1])
        elif of_model and of_model[1] in site.repositories:
            commit = of_model[3] if (of_model[1], of_model[3]) in site.commits else COMMIT
            files = self._at(of_model[1], commit)
            tree = (of_model[2] or "").startswith("/tree")
            listed = _tree(files) if tree else _info(of_model[1], files, commit)
            if of_model[3] in (None, "main", commit):
                self._send(200, json.dumps(listed).encode(), kind="application/json")
            else:
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif of_file and of_file[3] in self._at(of_file[1], of_file[2]):
            if site.refusal:
                self._send(site.refusal[0], b"", site.refusal[1])
            elif site.moved:
                content = self._at(of_file[1], of_file[2])[of_file[3]]
                self._send(302, b"", {**_described(content), "Location": f"{site.moved}/{of_file[3]}"})
            else:
                self._file(self._at(of_file[1], of_file[2])[of_file[3]], body)
        elif path in site.files:
            self._file(site.files[path], body)
        else:
            self._send(404, b"")

    def _at(self, name: str, commit: str) -> dict[str, bytes]:
        return self.server.commits.get((name, commit), self.server.repositories.get(name, {}))

    def _file(self, content: bytes, body: bool) -> None:
        given = _described(content)
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and self.server.ranges:
            start = int(wanted[1])
            given["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send(206, content[start:], given, body=body)
        else:
            self._send(200, content, given, body=body)

    def _send(
        self,
        status: int,
        content: bytes,
        headers: dict[str, str] | None = None,
        *,
        kind: str = "application/octet-stream",
        body: bool = True,
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Type": kind}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not body:
            return
        if self.server.breaks and urlsplit(self.path).path.endswith(self.server.breaking):
            self.wfile.write(content[: self.server.breaks.pop(0)])
            self.wfile.flush()
            self.server.stall.wait()
            self.close_connection = True
        else:
            self.wfile.write(content)


def _described(content: bytes) -> dict[str, str]:
    """The headers of a file, as the hub's HEAD gives them."""
    headers = {"ETag": f'"{_git(content)}"', "X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(content))}
    if len(content) > 1000:
        headers["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
    return headers


def _git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _lfs(content: bytes) -> dict[str, object]:
    """Return the LFS entry of a file of more than 1000 bytes, else nothing."""
    if len(content) <= 1000:
        return {}
    digest = hashlib.sha256(content).hexdigest()
    return {"lfs": {"oid": digest, "sha256": digest, "size": len(content), "pointerSize": 130}}


def _info(name: str, files: dict[str, bytes], commit: str) -> dict[str, object]:
    siblings = [
        {"rfilename": file, "size": len(content), "blobId": _git(content), **_lfs(content)}
        for file, content in files.items()
    ]
    return {"id": name, "sha": commit, "siblings": siblings}


def _tree(files: dict[str, bytes]) -> list[dict[str, object]]:
    return [
        {"type": "file", "path": file, "size": len(content), "oid": _git(content), **_lfs(content)}
        for file, content in files.items()
    ]
