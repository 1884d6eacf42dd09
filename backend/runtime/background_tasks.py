"""Run tasks in the background, such as prewarming the embedding of an opened image."""

import threading
from collections.abc import Callable, Hashable
from contextvars import copy_context


class BackgroundTasks:
    """At most `capacity` tasks at a time, each in a thread of its own."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._running: set[Hashable] = set()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, key: Hashable, work: Callable[[], None]) -> None:
        """Start `work`. Do nothing if a task with the same `key` runs, or as many as there may be."""
        with self._lock:
            if key in self._running or len(self._running) >= self._capacity:
                return
            self._running.add(key)

        def run() -> None:
            try:
                work()
            finally:
                with self._lock:
                    self._running.remove(key)

        threading.Thread(target=copy_context().run, args=(run,), name="background", daemon=True).start()
