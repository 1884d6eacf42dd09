"""Check a project's access in the background after /setup, and log the findings."""

import logging
import threading
import time
from collections.abc import Callable

from cachetools import TTLCache

from backend.doctor.checks import access
from backend.doctor.finding import FAILED, one_line
from backend.images.fetch import Fetcher
from backend.images.studio_urls import Server
from backend.labelstudio_api.client import StudioClient

log = logging.getLogger(f"vlsam.{__name__}")

WATCH_S = 300.0  # until a project is checked again
MAX_WATCHED = 1000
MAX_AT_ONCE = 4


class Watch:
    """Background checks of the access to projects: few at once, and each at most every WATCH_S seconds."""

    def __init__(self, images: Fetcher, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._images = images
        self._recent: TTLCache[tuple[int, Server], None] = TTLCache(MAX_WATCHED, WATCH_S, timer=clock)
        self._running = 0
        self._lock = threading.Lock()

    def begin(self, project: str, server: Server) -> None:
        """Check a project ("id.created") in a thread, unless the last check is recent or too many run."""
        number = project.partition(".")[0]
        if not number.isdecimal():
            return
        key = int(number), server
        with self._lock:
            if key in self._recent or self._running >= MAX_AT_ONCE:
                return
            self._recent[key] = None
            self._running += 1
        threading.Thread(target=self._check, args=key, name="watch", daemon=True).start()

    def _check(self, project: int, server: Server) -> None:
        try:
            for finding in access(StudioClient(server, self._images), project):
                level = logging.INFO if finding.check == "image" else logging.DEBUG
                level = logging.WARNING if finding.status == FAILED else level
                cure = f" To do: {finding.cure}." if finding.cure else ""
                log.log(level, "%s", one_line(f"Project {project}, {finding.check}: {finding.message}{cure}"))
        except Exception:
            log.exception("Project %d could not be checked.", project)
        finally:
            with self._lock:
                self._running -= 1
