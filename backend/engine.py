"""The models of a process: loaded once, off the request path, and used by one job at a time."""

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from backend.cache import Embeddings, Encoder, Flights, Sources
from backend.disk import Disk
from backend.images import Images
from backend.memory import Memory
from backend.metrics import Metrics
from backend.settings import Settings
from backend.unlabelled import Unlabelled
from model.clicks import Level
from model.pipeline import VLSAM
from model.profiles import segmenter_version_of
from model.segmenter import Embedding
from model.types import Detection, Image, Prompt, VLSAMError

log = logging.getLogger(__name__)

T = TypeVar("T")
CLICK, BATCH, AHEAD = 0, 1, 2  # the order in which the engine takes work
# A batch waits for clicks at most this share of the deadline, so that they cannot starve it.
PATIENCE = 0.1


class Unavailable(Exception):
    """Predictions cannot be made now. The message is one sentence for the client: HTTP 503."""


class Late(Exception):
    """The deadline of a request passed."""


class Superseded(Exception):
    """A newer click asks for all that this one did, and more: nobody waits for its answer any longer."""


@dataclass(frozen=True)
class Click:
    """What a click is about. Made when its request arrives, for that is the order that counts."""

    place: tuple[str, ...]  # server, project, task and control
    prompts: frozenset[str]  # the ids of its points or rectangles; the editor draws them at random
    arrived: float = field(default_factory=time.monotonic)

    def supersedes(self, older: "Click") -> bool:
        """Whether the editor that sent this one has thereby stopped waiting for `older`'s answer.

        It sends the prompts that were not accepted yet with each new one, and shows the answer to its newest
        request only. Two people's prompts have different ids, so neither drops the other's click.
        """
        known = bool(older.prompts) and self.place == older.place and self.arrived > older.arrived
        return known and older.prompts < self.prompts


@dataclass(frozen=True, eq=False)
class _Job:
    priority: int
    work: Callable[[Any], Any]
    click: Click | None
    since: float = field(default_factory=time.monotonic)
    future: Future[Any] = field(default_factory=Future)


class Model(Encoder, Protocol):
    """What the engine needs of `model.pipeline.VLSAM`."""

    def annotate(
        self,
        image: Image,
        *,
        encode: Callable[[Image], Embedding] | None = None,
        vocabulary: Sequence[str] = (),
    ) -> list[Detection]: ...

    def similarity(self, terms: Sequence[str], names: Sequence[str]) -> NDArray[np.float32]: ...

    def find(
        self,
        image: Image,
        phrase: str,
        *,
        encode: Callable[[Image], Embedding] | None = None,
        level: Level = "auto",
    ) -> list[Detection]: ...

    def refine(self, embedding: Embedding, prompt: Prompt, level: Level = "auto") -> Detection: ...


class Engine:
    """The models of a process, loaded once in a thread of its own, which then does all work on them in turn.

    One job runs at a time and a batch is one job per image, so a click waits for one image of it at most.
    Clicks go first; where they never cease, one image of a batch gets its turn each tenth of the deadline.
    `version` is known without loading, and so is `segmenter`, which names what makes embeddings; it is the
    version where nothing else is given.
    """

    def __init__(
        self, settings: Settings, *, version: str, load: Callable[[], Model], segmenter: str | None = None
    ) -> None:
        self.settings = settings
        self.version = version
        self.images = Images(settings)
        self.memory = Memory()
        self.metrics = Metrics()
        self.unlabelled = Unlabelled()
        disk = None
        if settings.cache_dir:
            disk = Disk(settings.cache_dir, settings.cache_disk_mb * 1e6, self.metrics)
        self.embeddings = Embeddings(segmenter or version, settings.cache_mb * 1e6, self.metrics, disk)
        self.sources = Sources()
        self.annotations: Flights[list[Detection]] = Flights()  # by content and vocabulary
        self._ahead: set[Hashable] = set()
        self._load = load
        self._state = "loading"
        self._failure = ""
        self._inside = 0
        self._jobs: list[_Job] = []  # as they came
        self._batch_ended = time.monotonic()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @classmethod
    def of(cls, settings: Settings) -> "Engine":
        """An engine for the profile of the settings. Raises ModelLoadError where there is no such profile."""
        profile, options = settings.models(), settings.options()
        version = settings.version(profile)
        return cls(
            settings,
            version=version,
            segmenter=segmenter_version_of(profile, options),
            load=lambda: VLSAM.load(profile, settings.device, options, version),
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

    def ahead(self, key: Hashable, work: Callable[[], None]) -> None:
        """Begins `work`, for which nobody waits, in a thread of its own.

        Not where `key` is on its way already, nor where as many are as predictions may wait.
        """
        with self._changed:
            if key in self._ahead or len(self._ahead) >= self.settings.admitted:
                return
            self._ahead.add(key)

        def begin() -> None:
            try:
                work()
            finally:
                with self._changed:
                    self._ahead.remove(key)

        threading.Thread(target=begin, name="ahead", daemon=True).start()

    def run(
        self, work: Callable[[Model], T], *, priority: int, deadline: float, click: Click | None = None
    ) -> T:
        """What `work` gives for the models, once they are loaded and it is its turn.

        Raises Late at `deadline` (of time.monotonic), Superseded where a newer click makes `click` pointless
        before its turn, Unavailable where loading failed, and what `work` raises.
        Work that has begun by then runs to its end, for nobody.
        """
        job = _Job(priority, work, click)
        with self._changed:
            if self._state == "failed":
                raise Unavailable(self._failure)
            if click is not None:
                self._drop_superseded(click)
            self._jobs.append(job)
            self._changed.notify_all()
        try:
            return job.future.result(timeout=max(0.0, deadline - time.monotonic()))  # type: ignore[no-any-return]
        except TimeoutError:
            if not job.future.cancel() and job.future.done():
                return job.future.result()  # type: ignore[no-any-return]
            with self._changed:  # else its image would stay until its turn
                self._jobs = [other for other in self._jobs if other is not job]
            raise Late from None

    def _drop_superseded(self, click: Click) -> None:
        """Ends the waiting clicks that `click` supersedes.

        Raises Superseded where one of them supersedes it: its image came later than theirs.
        """
        waiting = [(job, job.click) for job in self._jobs if job.click is not None]
        if any(other.supersedes(click) for _, other in waiting):
            raise Superseded
        for job, other in waiting:
            if click.supersedes(other):
                self._jobs.remove(job)
                if job.future.set_running_or_notify_cancel():
                    job.future.set_exception(Superseded())

    def _next(self) -> _Job:
        """Takes the oldest click, or else the oldest job; this one also where it has waited too long."""
        oldest = self._jobs[0]
        waited = time.monotonic() - max(oldest.since, self._batch_ended)
        patient = waited < PATIENCE * self.settings.deadline
        job = min(self._jobs, key=lambda job: job.priority) if patient else oldest
        self._jobs.remove(job)
        return job

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
                job = self._next()
            if job.future.set_running_or_notify_cancel():
                try:
                    job.future.set_result(job.work(model))
                except Exception as error:
                    job.future.set_exception(error)
                if job.priority != CLICK:
                    self._batch_ended = time.monotonic()
            # Else this thread would keep the last job and its image alive while it waits.
            del job

    def _fail(self, error: Exception) -> None:
        known = isinstance(error, VLSAMError)
        log.error("The models cannot be loaded: %s", error, exc_info=not known)
        with self._changed:
            self._failure = str(error) if known else "The models cannot be loaded; the server's log says why."
            self._state = "failed"
            jobs, self._jobs = self._jobs, []
        for job in jobs:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(Unavailable(self._failure))


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
