"""Start the server with gunicorn, under the module name that Label Studio's tools expect.

gunicorn backend._wsgi:app        or, from this folder, gunicorn _wsgi:app
python backend/_wsgi.py --port 9090        which is also what `label-studio-ml start backend` runs
"""

import argparse
import logging
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script or from its own folder: the packages lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from backend.answers.resources import PROCESS
from backend.settings import Settings, SettingsError
from backend.telemetry import logs
from backend.web.app import create_app
from model.profiles import PROFILES
from model.types import ModelLoadError

if TYPE_CHECKING:
    from flask import Flask

log = logging.getLogger("backend")

GRACE_SECONDS = 8


def serve(host: str, port: int, settings: Settings) -> None:
    """Run the server until a signal ends the process. Raises ModelLoadError for an unknown profile.

    Workers are forked before the models are loaded, since CUDA does not work after a fork. Workers have no
    timeout, since each prediction has a deadline.
    """
    logs.configure(settings.log.level, settings.secrets)
    announce(settings)
    options = {
        "bind": f"{f'[{host}]' if ':' in host else host}:{port}",
        "workers": settings.server.workers,
        "worker_class": "gthread",
        "threads": settings.server.threads,
        "timeout": 0,
        # Docker kills after 10 s.
        "graceful_timeout": GRACE_SECONDS,
        "post_worker_init": _end_in_time,
        "preload_app": False,
        # All servers of a user would share one socket.
        "control_socket_disable": True,
        "loglevel": settings.log.level.lower(),
        "logger_class": _Log,
    }
    _Server(settings, options).run()


def announce(settings: Settings) -> None:
    """Log the models. Warn of demo weights, several workers, and settings that have no effect."""
    profile = settings.models.select()
    log.info("Profile %s: VLM %s, segmenter %s.", profile.name, profile.vlm, profile.sam)
    if profile.demo:
        first, *others = (name for name, other in PROFILES.items() if not other.demo)
        log.warning(
            "These are demo weights that know 40 drawn objects only, not photos. "
            f"VLSAM_PROFILE={first} (or {', '.join(others)}) switches to real ones."
        )
    if settings.server.workers > 1:
        log.warning(
            f"WORKERS={settings.server.workers}: each worker loads the models again, and only one of them "
            "receives a /setup, so set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY."
        )
    if settings.label_studio.api_key and not settings.label_studio.url:
        log.warning(
            "LABEL_STUDIO_API_KEY is not used without LABEL_STUDIO_URL: it is sent to no other address."
        )


def _end_in_time(_: Any) -> None:
    """Make SIGTERM stop the job queue of this worker, so that a batch returns the predictions made so far."""
    usual = signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        # In a thread of its own: this one may hold the queue's locks.
        threading.Thread(target=lambda: PROCESS.resources().queue.stop(), name="stop", daemon=True).start()
        if callable(usual):
            usual(number, frame)

    signal.signal(signal.SIGTERM, stop)


class _Log(Logger):  # type: ignore[misc]
    """A gunicorn logger that writes to the root logger, so that all log lines have the same format."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


class _Server(BaseApplication):  # type: ignore[misc]
    def __init__(self, settings: Settings, options: dict[str, Any]) -> None:
        self._settings, self._options = settings, options
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> "Flask":
        return create_app(self._settings)


def __getattr__(name: str) -> "Flask":
    """Return the Flask application for the name `app`. It is created on first use."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    settings = Settings.from_env()
    logs.configure(settings.log.level, settings.secrets)
    announce(settings)
    globals()[name] = app = create_app(settings)
    return app


def main() -> int:
    parser = argparse.ArgumentParser(description="Label Studio ML backend VL-SAM")
    parser.add_argument("-p", "--port", type=int, help="default: $PORT or 9090")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default: all)")  # noqa: S104
    args = parser.parse_args()
    try:
        settings = Settings.from_env()
        serve(args.host, args.port or settings.server.port, settings)
    except (SettingsError, ModelLoadError) as error:
        print(f"vlsam: {logs.printable(str(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
