import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from backend.runtime.job_queue import BATCH, CLICK, JobQueue, Late, Superseded, Unavailable
from backend.telemetry.metrics import Metrics
from model.types import ModelLoadError
from tests.support.clock import Clock
from tests.support.waiting import soon, wait_for

Queue = JobQueue[Any]
MODEL = object()


def queue_of(
    load: Callable[[], Any] = lambda: MODEL,
    *,
    capacity: int = 8,
    seconds: float = 90.0,
    clock: Callable[[], float] = time.monotonic,
) -> Queue:
    """Return a started queue. Its model is an object, since the queue does nothing with it."""
    queue: Queue = JobQueue(load, capacity=capacity, seconds=seconds, metrics=Metrics(), clock=clock)
    queue.start()
    return queue


@dataclass
class Work:
    """A long job: it runs from `begun` until `go`."""

    begun: threading.Event
    go: threading.Event

    def __call__(self, _: object) -> None:
        self.begun.set()
        assert self.go.wait(10)


@pytest.fixture
def long() -> Iterator[Work]:
    work = Work(threading.Event(), threading.Event())
    yield work
    work.go.set()


def test_a_model_loads_once_in_the_background() -> None:
    loads, go = [], threading.Event()

    def load() -> object:
        loads.append(1)
        go.wait(10)
        return MODEL

    queue = queue_of(load)
    queue.start()
    assert queue.state == "loading"
    with ThreadPoolExecutor() as pool:
        models = [
            pool.submit(queue.run, lambda model: model, priority=CLICK, deadline=soon()) for _ in range(3)
        ]
        go.set()
        assert [model.result() for model in models] == [MODEL] * 3
    assert queue.state == "ready"
    assert loads == [1]


def test_jobs_for_a_model_that_cannot_be_loaded_are_told_why() -> None:
    go = threading.Event()

    def load() -> object:
        go.wait(10)
        raise ModelLoadError("The weights of the VLM are missing: run make weights.")

    queue = queue_of(load)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(queue.run, lambda model: 1, priority=CLICK, deadline=soon())
        wait_for(lambda: queue.waiting() == 1)
        go.set()
        with pytest.raises(Unavailable, match="weights of the VLM are missing"):
            waiting.result()
    with pytest.raises(Unavailable, match="weights of the VLM are missing"), queue.admitted():
        pass
    with pytest.raises(Unavailable, match="weights of the VLM are missing"):
        queue.run(lambda model: 1, priority=CLICK, deadline=soon())
    assert queue.state == "failed"


def test_an_unexpected_error_of_loading_tells_nothing_of_the_machine() -> None:
    def load() -> object:
        raise KeyError("/srv/secret/path")

    queue = queue_of(load)
    wait_for(lambda: queue.state == "failed")
    with pytest.raises(Unavailable, match="see the server's log") as caught:
        queue.run(lambda model: 1, priority=CLICK, deadline=soon())
    assert "secret" not in str(caught.value)


def test_a_deadline_passes_while_the_model_loads() -> None:
    go = threading.Event()
    queue = queue_of(lambda: go.wait(10))
    with pytest.raises(Late):
        queue.run(lambda model: 1, priority=CLICK, deadline=soon(0.05))
    go.set()


def test_an_error_of_a_job_is_its_callers() -> None:
    queue = queue_of()

    def job(model: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        queue.run(job, priority=BATCH, deadline=soon())
    assert queue.run(lambda model: 1, priority=BATCH, deadline=soon()) == 1


def test_a_job_may_itself_raise_a_timeout() -> None:
    def job(model: object) -> None:
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        queue_of().run(job, priority=BATCH, deadline=soon())


def test_clicks_go_before_batches_and_one_job_runs_at_a_time(long: Work) -> None:
    queue, order, running = queue_of(), list[str](), list[int]()

    def job(name: str) -> Callable[[object], None]:
        def work(_: object) -> None:
            running.append(1)
            assert sum(running) == 1
            order.append(name)
            running.pop()

        return work

    with ThreadPoolExecutor() as pool:
        futures = [pool.submit(queue.run, long, priority=BATCH, deadline=soon())]
        assert long.begun.wait(10)
        for name, priority in (
            ("batch 1", BATCH),
            ("batch 2", BATCH),
            ("click 1", CLICK),
            ("click 2", CLICK),
        ):
            futures.append(pool.submit(queue.run, job(name), priority=priority, deadline=soon()))
            count = len(futures) - 1
            wait_for(lambda count=count: queue.waiting() == count)  # type: ignore[misc]
        assert (queue.waiting(CLICK), queue.waiting(BATCH)) == (2, 2)
        long.go.set()
        for future in futures:
            future.result()
    assert order == ["click 1", "click 2", "batch 1", "batch 2"]


def test_clicks_that_never_cease_do_not_starve_a_batch(long: Work) -> None:
    """By this clock a click takes a second, and a request has twenty."""
    clock = Clock()
    queue, order = queue_of(seconds=20, clock=clock), list[str]()

    def job(name: str) -> Callable[[object], None]:
        def work(_: object) -> None:
            clock.now += 1
            order.append(name)

        return work

    with ThreadPoolExecutor(20) as pool:
        futures = [pool.submit(queue.run, long, priority=CLICK, deadline=soon())]
        assert long.begun.wait(10)
        for name, priority in [("image", BATCH)] * 2 + [("click", CLICK)] * 10:
            futures.append(pool.submit(queue.run, job(name), priority=priority, deadline=soon()))
        wait_for(lambda: queue.waiting() == 12)
        long.go.set()
        for future in futures:
            future.result()
    # A tenth of 20 s is two clicks: after them an image has its turn, and a long batch holds up no click.
    assert order == ["click"] * 2 + ["image"] + ["click"] * 2 + ["image"] + ["click"] * 6


@dataclass(frozen=True)
class Number:
    """A topic: a larger number supersedes its smaller ones of the same kind."""

    kind: str
    value: int

    def supersedes(self, older: "Number") -> bool:
        return self.kind == older.kind and self.value > older.value


def test_a_job_is_dropped_when_a_newer_one_supersedes_it(long: Work) -> None:
    queue, ran = queue_of(), list[str]()

    def submit(name: str, topic: Number | None) -> "Future[None]":
        return pool.submit(
            queue.run, lambda model: ran.append(name), priority=CLICK, deadline=soon(), topic=topic
        )

    with ThreadPoolExecutor() as pool:
        busy = pool.submit(queue.run, long, priority=CLICK, deadline=soon())
        assert long.begun.wait(10)
        first = submit("first", Number("a", 1))
        wait_for(lambda: queue.waiting() == 1)
        others = [submit("other kind", Number("b", 9))]
        wait_for(lambda: queue.waiting() == 2)
        others.append(submit("no topic", None))
        wait_for(lambda: queue.waiting() == 3)
        newest = submit("newest", Number("a", 3))
        with pytest.raises(Superseded):  # at once, while the job before it still runs
            first.result(10)
        with pytest.raises(Superseded):  # its image was loaded later than that of the newest
            submit("second", Number("a", 2)).result(10)
        assert not newest.done()
        long.go.set()
        for future in (busy, *others, newest):
            future.result(10)
    assert ran == ["other kind", "no topic", "newest"]


def test_a_job_that_came_too_late_is_never_run(long: Work) -> None:
    queue, ran = queue_of(), list[str]()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(queue.run, long, priority=BATCH, deadline=soon())
        assert long.begun.wait(10)
        with pytest.raises(Late):
            queue.run(lambda model: ran.append("late"), priority=BATCH, deadline=soon(0.05))
        assert queue.waiting() == 0
        long.go.set()
        first.result()
    queue.run(lambda model: None, priority=BATCH, deadline=soon())
    assert ran == []


def test_what_waits_when_the_queue_stops_is_late_and_nothing_new_begins(long: Work) -> None:
    queue = queue_of()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(queue.run, long, priority=BATCH, deadline=soon())
        assert long.begun.wait(10)
        waiting = pool.submit(queue.run, lambda model: 1, priority=CLICK, deadline=soon())
        wait_for(lambda: queue.waiting() == 1)
        queue.stop()
        with pytest.raises(Late):
            waiting.result(10)
        with pytest.raises(Late):
            queue.run(lambda model: 1, priority=CLICK, deadline=soon())
        long.go.set()
        assert running.result(10) is None


def test_more_requests_than_the_capacity_are_refused() -> None:
    queue = queue_of(capacity=2)
    with queue.admitted():
        with queue.admitted():
            assert queue.admitted_requests == 2
            with pytest.raises(Unavailable, match="2 predictions are waiting"), queue.admitted():
                pass
        with queue.admitted():
            pass
    assert queue.admitted_requests == 0


def test_a_probe_waits_for_no_job_but_reports_one_that_takes_too_long(long: Work) -> None:
    clock = Clock()
    queue = queue_of(seconds=90, clock=clock)
    wait_for(lambda: queue.state == "ready")
    with ThreadPoolExecutor() as pool:
        running = pool.submit(queue.run, long, priority=BATCH, deadline=soon())
        assert long.begun.wait(10)
        clock.now += 89
        assert queue.probe(lambda model: False) == ""
        clock.now += 2
        assert queue.probe(lambda model: False) == "The device has been at one image for 91 s."
        long.go.set()
        running.result()


def test_a_probe_reports_what_the_device_does() -> None:
    queue = queue_of()

    def fails(_: object) -> bool:
        raise RuntimeError("illegal memory access")

    with suppress(Late):
        queue.run(lambda model: None, priority=CLICK, deadline=soon())
    assert queue.probe(lambda model: model is MODEL) == ""
    assert queue.probe(lambda model: False) == "The device computes wrongly."
    assert queue.probe(fails) == "The device fails; see the server's log."
