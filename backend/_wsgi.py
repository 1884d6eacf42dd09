"""gunicorn's door, by the name that Label Studio's ecosystem gives it.

gunicorn backend._wsgi:app        or, from this folder, gunicorn _wsgi:app
python backend/_wsgi.py --port 9090        which is also what `label-studio-ml start backend` runs
"""

import argparse
import logging
import signal
import sys
import threading
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script or from its own folder: `backend` and `model` lie one folder up
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
    """Serves until a signal ends it. Raises ModelLoadError for a profile that there is not.

    Workers are forked before anything is loaded, for CUDA does not survive a fork. No worker is ever killed
    for being slow: predictions have their own deadline.
    """
    logs.configure(settings.log.level, settings.secrets)
    announce(settings)
    options = {
        "bind": f"{f'[{host}]' if ':' in host else host}:{port}",
        "workers": settings.server.workers,
        "worker_class": "gthread",
        "threads": settings.server.threads,
        "timeout": 0,
        # Docker gives 10 s before it kills; one image of a large model may take some of them.
        "graceful_timeout": GRACE_SECONDS,
        "post_worker_init": _end_in_time,
        "preload_app": False,
        # It would be one socket for all servers of a user.
        "control_socket_disable": True,
        "loglevel": settings.log.level.lower(),
        "logger_class": _Log,
    }
    _Server(settings, options).run()


def announce(settings: Settings) -> None:
    """Says what will be served, and what is not to be expected of it."""
    profile = settings.models.select()
    log.info("Profile %s: VLM %s, segmenter %s.", profile.name, profile.vlm, profile.sam)
    if profile.demo:
        others = [name for name, other in PROFILES.items() if not other.demo]
        log.warning(
            "These are demo weights that know 40 drawn objects only, not photos. "
            "VLSAM_PROFILE=%s (or %s) switches to real ones.",
            others[0],
            ", ".join(others[1:]),
        )
    if settings.server.workers > 1:
        log.warning(
            "WORKERS=%d: each worker loads the models again, and only one of them hears a /setup, "
            "so set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY.",
            settings.server.workers,
        )
    if settings.label_studio.api_key and not settings.label_studio.url:
        log.warning(
            "LABEL_STUDIO_API_KEY is not used without LABEL_STUDIO_URL: it is sent to no other address."
        )


def _end_in_time(_: Any) -> None:
    """Has this worker's SIGTERM end what waits as well: a batch then answers with what is done."""
    usual = signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        # Not in this thread, which may hold the very locks.
        threading.Thread(target=lambda: PROCESS.resources().queue.stop(), name="stop", daemon=True).start()
        if callable(usual):
            usual(number, frame)

    signal.signal(signal.SIGTERM, stop)


class _Log(Logger):  # type: ignore[misc]
    """gunicorn's own lines go where all others go, in the same form."""

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


@cache
def _app() -> "Flask":
    settings = Settings.from_env()
    logs.configure(settings.log.level, settings.secrets)
    announce(settings)
    return create_app(settings)


def __getattr__(name: str) -> "Flask":
    """`app`, made when gunicorn asks for it and not when `serve` is imported."""
    if name == "app":
        return _app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
