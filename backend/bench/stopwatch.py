"""Measure the time of some functions while other code calls them."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest import mock


class Stopwatch:
    """The total seconds and calls of each stage. Calls may run in any thread, but only one at a time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._inner: list[float] = []  # seconds of nested functions, for each function on the stack

    @contextmanager
    def running(self, stages: Mapping[str, Iterable[tuple[Any, str]]]) -> Iterator["Stopwatch"]:
        """Time the functions (owner, name) of each stage. A nested call counts for its own stage only."""
        with ExitStack() as stack:
            for stage, functions in stages.items():
                for owner, name in functions:
                    timed = self._around(stage, getattr(owner, name))
                    stack.enter_context(mock.patch.object(owner, name, timed))
            yield self

    def _around(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            since = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - since
                self.seconds[stage] += took - self._inner.pop()
                self.calls[stage] += 1
                if self._inner:
                    self._inner[-1] += took

        return timed
