"""Start server processes and call them."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.paths import BIN

Process = subprocess.Popen[bytes]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def call(url: str, body: Any = None, *, timeout: float = 90) -> Any:
    """GET, or POST a JSON body; return the JSON of the answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


def start_server(
    command: Sequence[str], port: int, folder: Path, log: Path, settings: Mapping[str, str]
) -> Process:
    """Start a command on the CPU with PORT set, in a process group of its own.

    The group is needed because label-studio-ml starts its server through a shell.
    """
    env = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PORT": str(port),
        "VLSAM_DEVICE": "cpu",
        **settings,
    }
    with log.open("wb") as file:
        return subprocess.Popen(
            command, cwd=folder, env=env, stdout=file, stderr=file, start_new_session=True
        )


def wait_until_up(process: Process, port: int, log: Path) -> str:
    """Return the server's address once /health answers. Fail with its log if it ends or takes minutes."""
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        try:
            assert call(url + "/health")["status"] == "UP"
            return url
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError(log.read_text("utf-8"))


def stop(processes: Sequence[Process]) -> None:
    """Terminate the groups of these processes; kill those that still run after 30 s."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
