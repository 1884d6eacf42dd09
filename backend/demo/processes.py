"""Start Label Studio and this backend as child processes, for the demo and the end-to-end tests."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import requests

from model import connections

LOOPBACK = "127.0.0.1"
VLSAM = Path(sys.executable).with_name("vlsam")
LOG_TAIL_LINES = 15
STOP_TIMEOUT_S = 10.0


class ServiceError(Exception):
    """The demo or one of its services cannot run. The message may end with the tail of a log."""


@dataclass(frozen=True)
class Account:
    email: str
    password: str
    token: str  # a legacy token, at most 40 characters


@dataclass(frozen=True)
class Service:
    """A child process in a process group of its own, so that Ctrl+C in the terminal does not reach it."""

    name: str
    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def check(self) -> None:
        if (code := self.process.poll()) is not None:
            raise ServiceError(f"{self.name} ended by itself (exit status {code}).\n{self.tail()}")

    def wait_until_up(self, timeout_s: float, say: Callable[[str], None] = lambda message: None) -> None:
        """Wait until GET /health answers 200. Call `say` about every 5 s. Raises ServiceError."""
        start = time.monotonic()
        for tries in itertools.count(1):
            self.check()
            if answers(f"{self.url}/health"):
                break
            if time.monotonic() - start > timeout_s:
                raise ServiceError(f"{self.name} did not answer within {timeout_s:.0f} s.\n{self.tail()}")
            if tries % 10 == 0:
                say(f"{self.name} is still starting")
            time.sleep(0.5)
        say(f"{self.name} is up at {self.url}")

    def tail(self) -> str:
        lines = self.log.read_text("utf-8", "replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n".join([f"The end of {self.log}:", *(f"  | {line}" for line in lines)])

    def stop(self) -> None:
        try:
            self._signal_group(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S)
        finally:
            # Processes of the group may outlive its leader.
            self._signal_group(signal.SIGKILL)
            self.process.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def start(name: str, command: Sequence[str], url: str, log: Path, environment: Mapping[str, str]) -> Service:
    """Start `command` with its output in `log`. Raises ServiceError.

    The process gets `environment`, and our environment except LABEL_STUDIO_* and HEARTEX_*.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN_SETTINGS)}
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**inherited, **environment},
                start_new_session=True,
            )
        except OSError as error:
            raise ServiceError(f"{name} cannot be started: {error}.") from error
    return Service(name, url, log, process)


# Settings of another Label Studio in this shell must not change the one that is started.
_FOREIGN_SETTINGS = ("LABEL_STUDIO_", "HEARTEX_")


def start_label_studio(
    executable: Path,
    data_dir: Path,
    port: int,
    account: Account,
    log: Path,
    settings: Mapping[str, str] | None = None,
) -> Service:
    """Start Label Studio 1.23.2 on loopback with SQLite, without telemetry.

    The first start creates the account, and is the only one to read `LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN`.
    Without this setting Label Studio refuses the token that it gives to backends. With
    `USE_DEFAULT_BANNED_SUBNETS` on, it refuses a backend on loopback with 403. Raises ServiceError.
    """
    environment = {
        "LABEL_STUDIO_USE_DEFAULT_BANNED_SUBNETS": "false",
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LABEL_STUDIO_USERNAME": account.email,
        "LABEL_STUDIO_PASSWORD": account.password,
        "LABEL_STUDIO_USER_TOKEN": account.token,
        "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
        "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
        "LABEL_STUDIO_SENTRY_DSN": "",
        "LABEL_STUDIO_FRONTEND_SENTRY_DSN": "",
        "PYTHONUNBUFFERED": "1",
        # Label Studio and a browser need the same cores, so PyTorch's threads must not spin while they wait.
        "OMP_WAIT_POLICY": "PASSIVE",
        **(settings or {}),
    }
    command = [
        str(executable), "start", "--no-browser", "--internal-host", LOOPBACK, "--port", str(port),
        "--data-dir", str(data_dir.absolute()),
    ]  # fmt: skip
    data_dir.mkdir(parents=True, exist_ok=True)
    return start("Label Studio", command, f"http://{LOOPBACK}:{port}", log, environment)


def start_backend(
    port: int, studio_url: str, token: str, log: Path, settings: Mapping[str, str] | None = None
) -> Service:
    """Start `vlsam serve` with the API key `token` for Label Studio at `studio_url`. Raises ServiceError."""
    command = [str(VLSAM), "serve", "--host", LOOPBACK, "--port", str(port)]
    environment = {
        "LABEL_STUDIO_URL": studio_url,
        "LABEL_STUDIO_API_KEY": token,
        "PYTHONUNBUFFERED": "1",
        **(settings or {}),
    }
    return start("The backend", command, f"http://{LOOPBACK}:{port}", log, environment)


def free_port(preferred: int) -> int:
    """Return the first free port from `preferred` on, or any free port for 0. Raises ServiceError."""
    for port in range(preferred, preferred + 100) if preferred else (0,):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As servers do: a port whose last connections are still closing counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            bound: int = probe.getsockname()[1]
            return bound
    raise ServiceError(f"No port from {preferred} to {preferred + 99} is free.")


def answers(url: str) -> bool:
    """Return whether a GET of the URL is answered with status 200, within 2 s."""
    try:
        return connections.request("GET", url, timeout=2).status_code == 200
    except requests.RequestException:
        return False
