"""Load a model in the background, and run jobs on it from a queue, one at a time.

Clicks run first. A job of a batch is one image, so a click waits for at most one image. If clicks arrive
without a pause, one image of a batch runs in each tenth of the deadline.
"""

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from backend.runtime import malloc
from backend.telemetry.metrics import Metrics
from model.deadline import Deadline
from model.types import VLSAMError

log = logging.getLogger(f"vlsam.{__name__}")

M = TypeVar("M")
T = TypeVar("T")
CLICK, BATCH, AHEAD = 0, 1, 2  # priorities, the first goes first
KINDS = {"click": CLICK, "batch": BATCH, "ahead": AHEAD}  # names in /metrics
MAX_WAIT_SHARE = 0.1  # the share of a request's time that a batch waits for clicks at most


class Unavailable(Exception):
    """Predictions cannot be made now (HTTP 503). The message is one sentence for the client."""


class Late(Exception):
    """The deadline of a request passed before its result was ready, or the server stops."""


class Superseded(Exception):
    """A newer request of the same editor makes the result of this one useless."""


class Topic(Protocol):
    """The identity of a job, which decides whether a newer job supersedes it."""

    def supersedes(self, older: Any) -> bool: ...


@dataclass(frozen=True, eq=False)
class _Job:
    priority: int
    work: Callable[[Any], Any]
    topic: Topic | None
    since: float
    future: Future[Any] = field(default_factory=Future)
    context: Context = field(default_factory=copy_context)  # holds the request's id, for the log

    def fail(self, error: Exception) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class JobQueue(Generic[M]):
    """A queue of jobs for one model. One thread loads the model with `load` and runs the jobs.

    `capacity` is the number of requests that may wait or run. `seconds` is the deadline of a request.
    """

    def __init__(
        self,
        load: Callable[[], M],
        *,
        capacity: int,
        seconds: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load, self._capacity, self._seconds = load, capacity, seconds
        self._metrics, self._clock = metrics, clock
        self._state = "loading"
        self._failure = ""
        self.admitted_requests = 0  # that wait or run
        self._jobs: list[_Job] = []  # in order of arrival
        self._batch_ended = clock()
        self._running_since: float | None = None
        self._stopping = False
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        depths = {kind: partial(self.waiting, value) for kind, value in KINDS.items()}
        metrics.watch_queue(lambda: self.admitted_requests, **depths)

    @property
    def state(self) -> str:
        """The state of the model: "loading", "ready" or "failed"."""
        return "failed" if self.failure else self._state

    @property
    def failure(self) -> str:
        """The reason why the model cannot be used; "" if loading has not failed."""
        if os.getpid() != self._process:
            # The thread with the model is the parent's, and CUDA does not survive a fork.
            return "This server was loaded before it forked: start gunicorn without --preload."
        return self._failure

    def waiting(self, priority: int | None = None) -> int:
        """Return the number of waiting jobs of one priority, or of all if it is None."""
        with self._changed:
            return sum(priority in (None, job.priority) for job in self._jobs)

    def probe(self, computes: Callable[[M], bool], timeout: float = 1.0) -> str:
        """Test the device. Return why it fails, in one sentence; "" if it computes correctly or is busy.

        `computes` is run on the model. The test ends after `timeout` seconds.
        """
        if self.state != "ready":
            return f"The models are {'loading' if self.state == 'loading' else 'not loaded'}."
        since = self._running_since
        if since is not None:
            busy = self._clock() - since
            return f"The device has been at one image for {busy:.0f} s." if busy > self._seconds else ""
        try:
            right = self.run(computes, priority=CLICK, deadline=Deadline.after(timeout))
        except Late:
            return "" if self._running_since is not None else "The device does not answer."
        except Exception as error:
            log.error("The device fails.", exc_info=error)
            return "The device fails; see the server's log."
        return "" if right else "The device computes wrongly."

    def start(self) -> None:
        """Load the model and run jobs in a background thread, unless it has been started."""
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="job queue", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Make all waiting and later jobs raise Late, so that batches return what is done."""
        with self._changed:
            self._stopping = True
        self._fail_waiting(Late())

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Reserve a place for one request. Raises Unavailable if none is free or loading failed."""
        with self._changed:
            if self.failure:
                raise Unavailable(self.failure)
            if self.admitted_requests >= self._capacity:
                raise Unavailable(
                    f"{self.admitted_requests} predictions are waiting already; try again later."
                )
            self.admitted_requests += 1
        try:
            yield
        finally:
            with self._changed:
                self.admitted_requests -= 1

    def run(
        self, work: Callable[[M], T], *, priority: int, deadline: Deadline, topic: Topic | None = None
    ) -> T:
        """Run `work` on the model, by `priority`. Return its result, or raise its error.

        Raises Late at the deadline, or when the queue is stopped. A running job is not interrupted. Raises
        Superseded if a job with a newer `topic` comes before it runs. Raises Unavailable if loading failed.
        """
        job = _Job(priority, work, topic, self._clock())
        with self._changed:
            if self.failure:
                raise Unavailable(self.failure)
            if self._stopping:
                raise Late
            if topic is not None:
                self._drop_superseded(topic)
            self._jobs.append(job)
            self._changed.notify_all()
        try:
            return job.future.result(timeout=deadline.left())  # type: ignore[no-any-return]
        except TimeoutError:
            if not job.future.cancel() and job.future.done():
                return job.future.result()  # type: ignore[no-any-return]
            with self._changed:  # or its image stays in memory until its turn
                self._jobs = [other for other in self._jobs if other is not job]
            raise Late from None

    def _drop_superseded(self, topic: Topic) -> None:
        """Make waiting jobs that `topic` supersedes raise Superseded. Raises it if one supersedes `topic`."""
        waiting = [(job, job.topic) for job in self._jobs if job.topic is not None]
        if any(other.supersedes(topic) for _, other in waiting):
            raise Superseded
        for job, other in waiting:
            if topic.supersedes(other):
                self._jobs.remove(job)
                job.fail(Superseded())

    def _next(self) -> _Job:
        """Remove and return the next job: the oldest if it waited too long, else of the highest priority."""
        oldest = self._jobs[0]
        waited = self._clock() - max(oldest.since, self._batch_ended)
        in_time = waited < MAX_WAIT_SHARE * self._seconds
        job = min(self._jobs, key=lambda job: job.priority) if in_time else oldest
        self._jobs.remove(job)
        return job

    def _work(self) -> None:
        try:
            model = self._load()
        except Exception as error:
            known = isinstance(error, VLSAMError)
            log.error("The models cannot be loaded: %s", error, exc_info=not known)
            reason = str(error) if known else "The models cannot be loaded; see the server's log."
            with self._changed:
                self._failure = reason
            self._fail_waiting(Unavailable(reason))
            return
        with self._changed:
            self._state = "ready"
        for count in itertools.count(1):
            with self._changed:
                while not self._jobs:
                    self._changed.wait()
                job = self._next()
            if job.future.set_running_or_notify_cancel():
                self._running_since = self._clock()
                self._metrics.stages.labels("wait").observe(self._running_since - job.since)
                try:
                    job.future.set_result(job.context.run(job.work, model))
                except Exception as error:
                    job.future.set_exception(error)
                self._running_since = None
                if job.priority != CLICK:
                    self._batch_ended = self._clock()
            del job  # or this thread keeps the last job's image in memory while it waits
            if count % malloc.EVERY == 0:
                malloc.trim()

    def _fail_waiting(self, error: Exception) -> None:
        with self._changed:
            jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.fail(error)
