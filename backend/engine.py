"""The models of a process: loaded once, off the request path, and used by one job at a time."""

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from backend.images import Images
from backend.settings import Settings
from model.pipeline import VLSAM
from model.profiles import version_of
from model.types import Detection, Image, Prompt, VLSAMError

log = logging.getLogger(__name__)

T = TypeVar("T")
CLICK, BATCH = 0, 1  # the order in which the engine takes work


class Unavailable(Exception):
    """Predictions cannot be made now. The message is one sentence for the client: HTTP 503."""


class Late(Exception):
    """The deadline of a request passed."""


class Model(Protocol):
    """What the engine needs of `model.pipeline.VLSAM`."""

    def annotate(self, image: Image) -> list[Detection]: ...

    def refine(self, image: Image, prompt: Prompt) -> Detection: ...


class Engine:
    """The models of a process, loaded once in a thread of its own, which then does all work on them in turn.

    One job runs at a time, clicks before batches. `version` is known without loading.
    """

    def __init__(self, settings: Settings, *, version: str, load: Callable[[], Model]) -> None:
        self.settings = settings
        self.version = version
        self.images = Images(settings)
        self._load = load
        self._state = "loading"
        self._failure = ""
        self._inside = 0
        self._jobs: list[tuple[int, int, Future[Any], Callable[[Model], Any]]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @classmethod
    def of(cls, settings: Settings) -> "Engine":
        """An engine for the profile of the settings. Raises ModelLoadError where there is no such profile."""
        profile, options = settings.models(), settings.options()
        return cls(
            settings,
            version=version_of(profile, options),
            load=lambda: VLSAM.load(profile, settings.device, options),
        )

    @property
    def state(self) -> str:
        """loading, ready or failed."""
        return self._state

    def start(self) -> "Engine":
        """Begins to load, once, and returns at once."""
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
                self._thread.start()
        return self

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place for one request. Raises Unavailable where too many have one, or where loading failed."""
        with self._changed:
            if self._state == "failed":
                raise Unavailable(self._failure)
            if self._inside >= self.settings.admitted:
                raise Unavailable(f"{self._inside} predictions are waiting already; try again later.")
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1

    def run(self, job: Callable[[Model], T], *, priority: int, deadline: float) -> T:
        """What `job` gives for the models, once they are loaded and it is its turn.

        Raises Late at `deadline` (of time.monotonic), Unavailable where loading failed, and what `job`
        raises.
        A job that has begun by then runs to its end, for nobody.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._state == "failed":
                raise Unavailable(self._failure)
            heapq.heappush(self._jobs, (priority, next(self._numbers), future, job))
            self._changed.notify_all()
        try:
            return future.result(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            if not future.cancel() and future.done():
                return future.result()
            with self._changed:  # else its image would stay until its turn
                self._jobs = [entry for entry in self._jobs if entry[2] is not future]
                heapq.heapify(self._jobs)
            raise Late from None

    def _work(self) -> None:
        started = time.monotonic()
        try:
            model = self._load()
        except Exception as error:
            self._fail(error)
            return
        log.info("Loaded %s in %.1f s.", self.version, time.monotonic() - started)
        with self._changed:
            self._state = "ready"
        while True:
            with self._changed:
                while not self._jobs:
                    self._changed.wait()
                _, _, future, job = heapq.heappop(self._jobs)
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(job(model))
                except Exception as error:
                    future.set_exception(error)
            # Else this thread would keep the last job and its image alive while it waits.
            del future, job

    def _fail(self, error: Exception) -> None:
        known = isinstance(error, VLSAMError)
        log.error("The models cannot be loaded: %s", error, exc_info=not known)
        with self._changed:
            self._failure = str(error) if known else "The models cannot be loaded; the server's log says why."
            self._state = "failed"
            jobs, self._jobs = self._jobs, []
        for _, _, future, _ in jobs:
            if future.set_running_or_notify_cancel():
                future.set_exception(Unavailable(self._failure))


class _Process:
    """The engine that this process shares, made on first use unless one was installed."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._lock = threading.Lock()

    def install(self, engine: Engine | None) -> None:
        with self._lock:
            self._engine = engine

    def engine(self) -> Engine:
        with self._lock:
            if self._engine is None:
                self._engine = Engine.of(Settings.from_env())
        return self._engine.start()


PROCESS = _Process()
