"""Share one execution among concurrent callers that ask for the same work (single-flight)."""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from model.deadline import NEVER, Deadline

T = TypeVar("T")


class Flight(Generic[T]):
    """One execution of a piece of work that several callers share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcome: Future[T] = Future()

    @property
    def done(self) -> bool:
        return self._outcome.done()

    def run(self, work: Callable[[], T], deadline: Deadline = NEVER) -> T:
        """Run `work`, or wait while another caller runs it, and return the result.

        Raises the error of `work` to all callers. But if it fails after the deadline of the caller that runs
        it, only that caller gets the error, and the next one runs its own `work`. Raises TimeoutError if
        `deadline` passes while another caller runs it.
        """
        if not self._lock.acquire(timeout=deadline.left()):
            raise TimeoutError
        try:
            if not self.done:
                try:
                    self._outcome.set_result(work())
                except Exception as error:
                    if deadline.passed:
                        raise
                    self._outcome.set_exception(error)
        finally:
            self._lock.release()
        return self._outcome.result()


class SingleFlight(Generic[T]):
    """The shared executions by key. One is dropped when it is done or when no caller holds it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.flights: WeakValueDictionary[Hashable, Flight[T]] = WeakValueDictionary()

    def flight(self, key: Hashable) -> Flight[T]:
        """Return the execution in progress for `key`, or a new one."""
        with self._lock:
            flight = self.flights.get(key)
            if flight is None or flight.done:
                self.flights[key] = flight = Flight()
            return flight
