import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from backend.runtime.single_flight import Flight, SingleFlight
from model.deadline import Deadline


def together(count: int, work: Callable[[int], Any]) -> list[Future[Any]]:
    """Return the result of `work` for each number, each in a thread."""
    with ThreadPoolExecutor(count) as pool:
        return [pool.submit(work, number) for number in range(count)]


def test_eight_callers_at_once_share_one_result() -> None:
    flights, begun, here = SingleFlight[object](), list[int](), threading.Barrier(8)

    def work() -> object:
        begun.append(1)
        return object()

    def ask(_: int) -> object:
        flight = flights.flight("key")
        here.wait(10)
        return flight.run(work)

    assert len({future.result() for future in together(8, ask)}) == 1
    assert len(begun) == 1


def test_eight_callers_at_once_share_one_error_and_the_ninth_does_not() -> None:
    flights, begun, here = SingleFlight[int](), list[int](), threading.Barrier(8)

    def work() -> int:
        begun.append(1)
        raise ZeroDivisionError

    def ask(_: int) -> int:
        flight = flights.flight("key")
        here.wait(10)
        return flight.run(work)

    assert [type(future.exception()) for future in together(8, ask)] == [ZeroDivisionError] * 8
    assert len(begun) == 1
    assert flights.flight("key").run(lambda: 9) == 9


def test_an_error_after_the_callers_own_deadline_is_not_shared() -> None:
    flight, begun, go = Flight[int](), threading.Event(), threading.Event()
    now = [0.0]

    def too_long() -> int:
        begun.set()
        go.wait(10)
        now[0] = 2.0
        raise ConnectionError("did not answer in time")

    with ThreadPoolExecutor() as pool:
        hasty = pool.submit(flight.run, too_long, Deadline(1.0, lambda: now[0]))
        begun.wait(10)
        patient = pool.submit(flight.run, lambda: 7)
        go.set()
        assert isinstance(hasty.exception(), ConnectionError)
        assert patient.result() == 7


def test_nobody_waits_beyond_a_deadline_of_their_own() -> None:
    flight, begun, go = Flight[int](), threading.Event(), threading.Event()

    def long() -> int:
        begun.set()
        go.wait(10)
        return 7

    with ThreadPoolExecutor() as pool:
        first = pool.submit(flight.run, long)
        begun.wait(10)
        with pytest.raises(TimeoutError):
            flight.run(lambda: 8, Deadline.after(0.02))
        go.set()
        assert first.result() == 7


def test_a_flight_that_nobody_holds_is_forgotten() -> None:
    flights = SingleFlight[int]()
    flights.flight("key").run(lambda: 1)
    assert not len(flights.flights)
    held = flights.flight("key")
    assert flights.flight("key") is held
