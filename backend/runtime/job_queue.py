"""The models of a process: loaded once, off the request path, and used by one job at a time."""

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn, TypeVar

from backend.answers.recent_answers import Memory
from backend.answers.unmatched_terms import Unlabelled
from backend.images.image_cache import ImageCache
from backend.images.load import Images
from backend.labelstudio.reading_budget import Kept
from backend.runtime import malloc
from backend.runtime.embedding_cache import EmbeddingCache
from backend.runtime.embedding_files import EmbeddingFiles
from backend.runtime.oom_retry import Model, Served
from backend.runtime.single_flight import SingleFlight
from backend.settings import Settings
from backend.telemetry.metrics import Metrics
from model.pipeline import VLSAM
from model.types import Detection, ModelLoadError, VLSAMError
from model.versions import segmenter_version_of

log = logging.getLogger(f"vlsam.{__name__}")

T = TypeVar("T")
CLICK, BATCH, AHEAD = 0, 1, 2  # the order in which the engine takes work
KINDS = {"click": CLICK, "batch": BATCH, "ahead": AHEAD}
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
    context: Context = field(default_factory=copy_context)  # for the log, which names the request


class Engine:
    """The models of a process, loaded once in a thread of its own, which then does all work on them in turn.

    One job runs at a time and a batch is one job per image, so a click waits for one image of it at most.
    Clicks go first; where they never cease, one image of a batch gets its turn each tenth of the deadline.
    `version` is known without loading, and so is `segmenter`, which names what makes embeddings; it is the
    version where nothing else is given.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        version: str,
        load: Callable[[], Model],
        segmenter: str | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.settings = settings
        self.version = version
        self.images = Images(settings.images, settings.label_studio)
        self.memory = Memory()
        self.regions = Kept()
        self.metrics = metrics or Metrics()
        self.unlabelled = Unlabelled()
        self.embedding_files = None
        if settings.cache.dir:
            self.embedding_files = EmbeddingFiles(
                settings.cache.dir, settings.cache.disk_mb * 1e6, self.metrics
            )
        self.embeddings = EmbeddingCache(
            segmenter or version, settings.cache.mb * 1e6, self.metrics, self.embedding_files
        )
        self.image_cache = ImageCache()
        self.annotating: SingleFlight[list[Detection]] = SingleFlight()  # by content and vocabulary
        self._ahead: set[Hashable] = set()
        self._load = load
        self._state = "loading"
        self._failure = ""
        self._inside = 0
        self._jobs: list[_Job] = []  # as they came
        self._batch_ended = time.monotonic()
        self._running: _Job | None = None
        self._begun = 0.0  # when it was
        self._stopping = False
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self.metrics.watch_queue(
            lambda: self._inside,
            **{kind: partial(self._waiting, priority) for kind, priority in KINDS.items()},
        )

    @classmethod
    def of(cls, settings: Settings) -> "Engine":
        """An engine for the profile of the settings. Raises ModelLoadError where there is no such profile.

        Weights that are not on this machine yet have a version by what the hub says of them. Where it does
        not, nothing will be loaded, and the engine says so.
        """
        profile, options, metrics = settings.models.select(), settings.detection.options, Metrics()
        try:
            version = settings.version(profile)
            segmenter = segmenter_version_of(profile, options)
        except ModelLoadError as error:
            return cls(settings, version=f"vlsam-{profile.name}-not-loaded", load=partial(_raise, error))
        return cls(
            settings,
            version=version,
            segmenter=segmenter,
            load=lambda: VLSAM.load(
                profile, settings.models.device, options, version, on_cut=metrics.cut_answers.inc
            ),
            metrics=metrics,
        )

    @property
    def state(self) -> str:
        """loading, ready or failed."""
        return "failed" if self._failed else self._state

    @property
    def _failed(self) -> str:
        """Why there are no models and will be none; "" while there is hope."""
        if os.getpid() != self._process:
            # The thread that has the models is the parent's, and CUDA does not survive a fork.
            return "This server was loaded before it forked: start gunicorn without --preload."
        return self._failure

    def _waiting(self, priority: int) -> int:
        with self._changed:
            return sum(job.priority == priority for job in self._jobs)

    def probe(self, timeout: float = 1.0) -> str:
        """Why the device cannot be relied on; "" where it computes, or is at work on something else in time.

        Takes `timeout` seconds at most.
        """
        if self.state != "ready":
            return f"The models are {'loading' if self.state == 'loading' else 'not loaded'}."
        job = self._running
        if job is not None:
            since = time.monotonic() - self._begun
            late = since > self.settings.answers.deadline
            return f"The device has been at one image for {since:.0f} s." if late else ""
        try:
            computes = self.run(
                lambda model: model.answers(), priority=CLICK, deadline=time.monotonic() + timeout
            )
        except Late:
            return "" if self._running is not None else "The device does not answer."
        except Exception as error:
            log.error("The device fails.", exc_info=error)
            return "The device fails; the server's log says why."
        return "" if computes else "The device computes wrongly."

    def disk_trouble(self) -> str:
        """Why embeddings cannot be written to the disk; "" where they can, or where there is none."""
        return self.embedding_files.problem() if self.embedding_files else ""

    def stop(self) -> None:
        """Ends what waits, as if its time were up, and lets nothing new begin: the process is to end.

        Batches then answer with what is done.
        """
        with self._changed:
            self._stopping = True
            jobs, self._jobs = self._jobs, []
        for job in jobs:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(Late())

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
            if self._failed:
                raise Unavailable(self._failed)
            if self._inside >= self.settings.server.admitted:
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
            if key in self._ahead or len(self._ahead) >= self.settings.server.admitted:
                return
            self._ahead.add(key)

        def begin() -> None:
            try:
                work()
            finally:
                with self._changed:
                    self._ahead.remove(key)

        threading.Thread(target=copy_context().run, args=(begin,), name="ahead", daemon=True).start()

    def run(
        self, work: Callable[[Served], T], *, priority: int, deadline: float, click: Click | None = None
    ) -> T:
        """What `work` gives for the models, once they are loaded and it is its turn.

        Raises Late at `deadline` (of time.monotonic), Superseded where a newer click makes `click` pointless
        before its turn, Unavailable where loading failed, and what `work` raises.
        Work that has begun by then runs to its end, for nobody.
        """
        job = _Job(priority, work, click)
        with self._changed:
            if self._failed:
                raise Unavailable(self._failed)
            if self._stopping:
                raise Late
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
        patient = waited < PATIENCE * self.settings.answers.deadline
        job = min(self._jobs, key=lambda job: job.priority) if patient else oldest
        self._jobs.remove(job)
        return job

    def _work(self) -> None:
        started = time.monotonic()
        try:
            model = Served(self._load(), self.metrics, self.embeddings.leave_device)
        except Exception as error:
            self._fail(error)
            return
        log.info("Loaded %s in %.1f s.", self.version, time.monotonic() - started)
        with self._changed:
            self._state = "ready"
        for count in itertools.count(1):
            with self._changed:
                while not self._jobs:
                    self._changed.wait()
                job = self._next()
            if job.future.set_running_or_notify_cancel():
                self._running, self._begun = job, time.monotonic()
                self.metrics.stages.labels("wait").observe(self._begun - job.since)
                try:
                    job.future.set_result(job.context.run(job.work, model))
                except Exception as error:
                    job.future.set_exception(error)
                self._running = None
                if job.priority != CLICK:
                    self._batch_ended = time.monotonic()
            # Else this thread would keep the last job and its image alive while it waits.
            del job
            if count % malloc.EVERY == 0:
                malloc.trim()

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


def _raise(error: Exception) -> NoReturn:
    raise error


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
