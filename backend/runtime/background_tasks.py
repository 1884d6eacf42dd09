"""Run tasks in the background, such as prewarming the embedding of an opened image."""

import threading
from collections.abc import Callable, Hashable
from contextvars import copy_context


class BackgroundTasks:
    """A starter of background tasks, of which at most `capacity` run at a time, each in its own thread."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self.running: set[Hashable] = set()  # keys

    def start(self, key: Hashable, work: Callable[[], None]) -> None:
        """Start `work` in a thread. Do nothing if a task with this `key` runs, or if `capacity` tasks run."""
        with self._lock:
            if key in self.running or len(self.running) >= self._capacity:
                return
            self.running.add(key)

        def run() -> None:
            try:
                work()
            finally:
                with self._lock:
                    self.running.remove(key)

        threading.Thread(target=copy_context().run, args=(run,), name="background", daemon=True).start()
