"""A real Label Studio and this backend as child processes, for the demo and the end-to-end tests."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

from model import connections

LOOPBACK = "127.0.0.1"
VLSAM = Path(sys.executable).with_name("vlsam")
LOG_TAIL_LINES = 15
STOP_TIMEOUT_S = 10.0


class ServiceError(Exception):
    """A service did not start or ended by itself; the message ends with the tail of its log."""


@dataclass(frozen=True)
class Account:
    email: str
    password: str
    token: str  # a legacy token, at most 40 characters


@dataclass(frozen=True)
class Service:
    """A child in a process group of its own: Ctrl+C in the terminal reaches us, not it."""

    name: str
    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def check(self) -> None:
        if (code := self.process.poll()) is not None:
            raise ServiceError(f"{self.name} ended by itself (exit status {code}).\n{self.tail()}")

    def wait_until_up(self, timeout_s: float, on_wait: Callable[[float], None]) -> None:
        """Return when GET /health answers 200; `on_wait` is told the seconds so far, twice a second."""
        start = time.monotonic()
        while True:
            self.check()
            if _answers(f"{self.url}/health"):
                return
            waited = time.monotonic() - start
            if waited > timeout_s:
                raise ServiceError(f"{self.name} did not answer within {timeout_s:.0f} s.\n{self.tail()}")
            on_wait(waited)
            time.sleep(0.5)

    def tail(self) -> str:
        lines = self.log.read_text("utf-8", "replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n".join([f"The end of {self.log}:", *(f"  | {line}" for line in lines)])

    def stop(self) -> None:
        self._signal_group(signal.SIGTERM)
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Also what outlived the group's leader.
            self._signal_group(signal.SIGKILL)
            self.process.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return


def start(name: str, command: Sequence[str], url: str, log: Path, environment: Mapping[str, str]) -> Service:
    """Start `command`, its output in `log`. `environment` is added to ours, less what is meant for others."""
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


# A shell that is set up for another Label Studio must not change the one that we start.
_FOREIGN_SETTINGS = ("LABEL_STUDIO_", "HEARTEX_")


def start_label_studio(
    executable: Path,
    data_dir: Path,
    port: int,
    account: Account,
    log: Path,
    settings: Mapping[str, str] | None = None,
) -> Service:
    """Label Studio 1.23.2 on loopback with SQLite, made to talk to nobody but us.

    The account is created at the first start. `LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN` is read only then,
    and without it the token that Label Studio itself hands to backends is refused by itself. A backend on
    loopback is refused with 403 unless `USE_DEFAULT_BANNED_SUBNETS` is off.
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
        # Label Studio and a browser want the same cores: PyTorch's threads are not to spin while they wait.
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
    """`vlsam serve` of this installation, with a key for the Label Studio at `studio_url`."""
    command = [
        str(VLSAM), "serve", "--host", LOOPBACK, "--port", str(port),
    ]  # fmt: skip
    environment = {
        "LABEL_STUDIO_URL": studio_url,
        "LABEL_STUDIO_API_KEY": token,
        "PYTHONUNBUFFERED": "1",
        **(settings or {}),
    }
    return start("The backend", command, f"http://{LOOPBACK}:{port}", log, environment)


def free_port(preferred: int) -> int:
    """`preferred` or the next port that nobody listens on; 0 leaves the choice to the system."""
    for port in range(preferred, preferred + 100) if preferred else (0,):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As servers do: a port whose last connections are still winding down is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            bound: int = probe.getsockname()[1]
            return bound
    raise ServiceError(f"No port from {preferred} to {preferred + 99} is free.")


def _answers(url: str) -> bool:
    try:
        return connections.request("GET", url, timeout=2).status_code == 200
    except requests.RequestException:
        return False
