from collections import Counter

from backend.datasets.items import Item
from backend.datasets.run_state import Row
from backend.datasets.summary import Summary

HOSTILE = "<script>alert(1)</script>\"'&"


def summary() -> Summary:
    rows: list[Row] = [
        {"status": "done", "found": [["cat", "Cat", 0.95], [HOSTILE, None, 0.5], ["dog", "Dog", 1.0]]},
        {"status": "done", "found": [["cat", None, 0.1]], "reduced": True},
        {"status": "failed", "reason": HOSTILE},
    ]
    return Summary.of((Item(HOSTILE, "", {}), row) for row in rows)


def test_summary() -> None:
    told = summary().as_json()
    assert (told["images"], told["failed"], told["empty"], told["regions"]) == (3, 1, 1, 2)
    assert told["terms"] == {"cat": 2, HOSTILE: 1, "dog": 1}
    assert told["dropped_terms"] == {HOSTILE: 1, "cat": 1}
    assert told["scores"] == {f"0.{n}": 2 if n == 9 else 0 for n in range(10)}
    assert told["failures"] == {HOSTILE: 1}
    assert "reduced to half their size to save memory: 1 images" in summary().as_text()
    assert "half their size" not in Summary().as_text()
    assert told["reduced"] == 1
    assert "3 images: 2 labelled with 2 regions, 1 of them empty; 1 failed" in summary().as_text()


def test_regions_that_are_left_out_are_said_with_the_reason_and_the_images() -> None:
    row = {"status": "done", "found": [["cat", "cat", None]], "left_out": {"a line": 2}, "several": True}
    told = Summary.of((Item(str(n), "", {}), row) for n in range(10))
    told.add(Item("10", "", {}), {"status": "skipped", "reason": "nobody looked"})
    text = told.as_text()
    assert "regions left out: 20 x a line (0, 1, 2, 3, 4, 5, 6, 7, ...)" in text
    assert "several annotations, of which one was taken: 10" in text
    assert "skipped: 1 x nobody looked" in text
    assert "scores" not in text  # what people made has none
    assert told.images == 10
    assert told.as_json()["left_out"]["a line"]["regions"] == 20


def test_what_was_skipped_is_said_with_the_reason() -> None:
    told = Summary(skipped=Counter({"a\x1b[2J": 3, **{f"reason {n}": 1 for n in range(20)}}))
    assert told.as_json()["skipped"]["reason 7"] == 1
    lines = told.as_text().splitlines()
    assert lines[-1] == "skipped: 23 in all, for 21 reasons"
    assert r"skipped: 3 x a\x1b[2J" in lines
    assert len(lines) < 15


def test_terminals_get_no_control_characters() -> None:
    odd = Summary(labels=Counter({"a\x1b[2Jb\n猫": 1}))
    assert r"a\x1b[2Jb\n猫 1" in odd.as_text()
