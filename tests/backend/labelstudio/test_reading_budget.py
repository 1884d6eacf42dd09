import math

import numpy as np
import pytest

from backend.labelstudio.brush_rle import Spans
from backend.labelstudio.region_reading import OutOfTime, ReadingBudget, RegionCache, TooMuch
from model.deadline import Deadline


def test_work_is_spent_until_there_is_none_left() -> None:
    budget = ReadingBudget(units=10)
    budget.spend(4)
    with pytest.raises(TooMuch, match="simplify or delete"):
        budget.spend(7)
    budget.spend(6)
    assert budget.units == 0


def test_f18_nothing_is_read_after_the_deadline() -> None:
    ReadingBudget(deadline=Deadline(60, clock=lambda: 59)).spend(1)
    with pytest.raises(OutOfTime, match="in time"):
        ReadingBudget(units=math.inf, deadline=Deadline(60, clock=lambda: 60)).spend(0)


def test_what_is_longest_unused_is_forgotten_first() -> None:
    kept = RegionCache(capacity=3 * (800 + 500))
    spans = {name: Spans(1, np.full(200, number, np.int32)) for number, name in enumerate("abcd")}
    for name in "abc":
        kept.put(name, spans[name])
    assert kept.get("a") is spans["a"]
    kept.put("d", spans["d"])
    assert kept.get("b") is None
    assert [kept.get(name) is spans[name] for name in "acd"] == [True] * 3


def test_what_is_larger_than_all_room_is_not_kept() -> None:
    kept = RegionCache(capacity=1000)
    kept.put("small", Spans(1, np.zeros(2, np.int32)))
    kept.put("large", Spans(1, np.zeros(2000, np.int32)))
    assert kept.get("large") is None
    assert kept.get("small") is not None
