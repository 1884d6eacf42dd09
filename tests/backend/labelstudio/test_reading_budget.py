import math

import numpy as np
import pytest

from backend.labelstudio.reading_budget import OutOfTime, Reading, RegionCache, TooMuch
from model.deadline import Deadline


def test_work_is_spent_until_there_is_none_left() -> None:
    reading = Reading(units=10)
    reading.spend(4)
    with pytest.raises(TooMuch, match="simplify or delete"):
        reading.spend(7)
    reading.spend(6)
    assert reading.units == 0


def test_f18_nothing_is_read_after_the_deadline() -> None:
    Reading(deadline=Deadline(60, clock=lambda: 59)).spend(1)
    with pytest.raises(OutOfTime, match="in time"):
        Reading(units=math.inf, deadline=Deadline(60, clock=lambda: 60)).spend(0)


def test_what_is_longest_unused_is_forgotten_first() -> None:
    kept = RegionCache(capacity=3 * (800 + 500))
    spans = {name: np.full((100, 2), number, np.int32) for number, name in enumerate("abcd")}
    for name in "abc":
        kept.put(name, spans[name])
    assert kept.get("a") is spans["a"]
    kept.put("d", spans["d"])
    assert kept.get("b") is None
    assert [kept.get(name) is spans[name] for name in "acd"] == [True] * 3


def test_what_is_larger_than_all_room_is_not_kept() -> None:
    kept = RegionCache(capacity=1000)
    kept.put("small", np.zeros((1, 2), np.int32))
    kept.put("large", np.zeros((1000, 2), np.int32))
    assert kept.get("large") is None
    assert kept.get("small") is not None
