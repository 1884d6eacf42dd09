import threading

import pytest

from model.deadline import NEVER, Deadline
from tests.support.clock import Clock


def test_a_deadline_counts_down_to_zero_on_its_own_clock() -> None:
    clock = Clock(100)
    deadline = Deadline.after(8, clock)
    assert (deadline.left(), deadline.check(), deadline.passed) == (8, 8, False)
    clock.now = 105
    assert (deadline.left(), deadline.passed) == (3, False)
    clock.now = 108
    assert (deadline.left(), deadline.passed) == (0, True)
    with pytest.raises(TimeoutError):
        deadline.check()


def test_of_two_deadlines_the_earlier_counts() -> None:
    clock = Clock()
    assert Deadline.after(8, clock).within(3).left() == 3
    assert Deadline.after(8, clock).within(30).left() == 8
    assert Deadline(clock=clock).within(30).left() == 30


def test_one_that_never_passes_fits_the_timeouts_of_threads() -> None:
    assert not NEVER.passed
    assert NEVER.check() == threading.TIMEOUT_MAX
    assert threading.Lock().acquire(timeout=NEVER.left())
