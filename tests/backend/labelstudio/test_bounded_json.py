import json
import secrets
import tracemalloc
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.labelstudio import bounded_json, brush_rle
from backend.labelstudio.bounded_json import MAX_REST, MAX_VALUES, TooLarge
from backend.labelstudio.region_reading import ReadingBudget

LONG = [1, 20, 255] * 100


class RunLengthsError(Exception):
    pass


def plain(found: Any) -> Any:
    """Return the value with lists in place of the texts of run lengths."""
    if isinstance(found, memoryview):
        try:
            return brush_rle.numbers(found, ReadingBudget().spend).tolist()
        except ValueError as error:
            raise RunLengthsError from error
    if isinstance(found, dict):
        return {key: plain(value) for key, value in found.items()}
    return [plain(item) for item in found] if isinstance(found, list) else found


def loads(body: str) -> Any:
    return plain(bounded_json.loads(body.encode()))


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["rle", '"rle":[' + "1," * 300 + "1]", '\\"rle":[', "]", "\\", 'a\\"', "é"])
    | st.just(LONG),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["rle", "a", '"rle"', 'a"rle', "]"]), inner)
    ),
    max_leaves=12,
)


@given(values, st.sampled_from([None, 1]), st.booleans())
def test_a_body_says_what_its_json_says(body: Any, indent: int | None, ascii_only: bool) -> None:
    assert loads(json.dumps(body, indent=indent, ensure_ascii=ascii_only)) == body


@given(st.text(st.sampled_from('"rle:[]{}, \\1'), max_size=40))
def test_what_is_no_json_is_refused_as_ever(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounded_json, "MIN_TEXT", 3)
        try:
            expected = json.loads(text)
        except ValueError:
            return
        with suppress(RunLengthsError):  # a list of other numbers, or of none, is told by whoever reads it
            assert loads(text) == expected


def test_run_lengths_stay_as_they_are() -> None:
    found = bounded_json.loads(json.dumps({"value": {"rle": LONG, "other": LONG}}).encode())["value"]
    assert bytes(found["rle"]) == json.dumps(LONG)[1:-1].encode()
    assert found["other"] == LONG


def test_a_key_that_only_ends_like_that_of_run_lengths() -> None:
    assert loads(json.dumps({'a"rle': LONG})) == {'a"rle': LONG}


def test_run_lengths_are_looked_for_so_many_times_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Millions of short ones would take seconds: the others are values among others, which are counted."""
    monkeypatch.setattr(bounded_json, "MAX_TEXTS", 3)
    found = bounded_json.loads(json.dumps([{"rle": LONG}] * 5).encode())
    assert [isinstance(each["rle"], memoryview) for each in found] == [True] * 3 + [False] * 2
    assert plain(found) == [{"rle": LONG}] * 5


def test_no_text_of_a_body_stands_for_its_run_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run lengths are replaced by a random name, so no text in a body can be taken for one."""
    body = json.dumps({"rle": LONG, "others": [{"rle": str(number)} for number in range(3)]})
    random, names = secrets.token_hex, list[str]()

    def remember(size: int) -> str:
        names.append(random(size))
        return names[-1]

    monkeypatch.setattr(secrets, "token_hex", remember)
    assert loads(body) == loads(body) == json.loads(body)
    assert len(set(names)) == 2
    assert {len(name) for name in names} == {32}


@pytest.mark.parametrize(
    "body",
    ['{"rle":[1', '{"rle":[' + "1," * 300, '"rle":[' * 5000, '{"rle":' * 900 + "[]", '{"rle":[[1]]}'],
)
def test_run_lengths_without_an_end(body: str) -> None:
    with pytest.raises((ValueError, RecursionError)):
        loads(body + "}" * 2)


# What a body may take. Counted, and not timed: each of these is refused, or takes so much memory at most.

SMALL: dict[str, Any] = {
    "number": b"0",
    "float": b"1.5",
    "large number": b"99999999999",
    "text": b'"abc"',
    "list": b"[]",
    "object": b'{"":0}',
    "objects in each other": b'{"a":{"b":{"c":{}}}}',
    "true": b"true",
}


@pytest.mark.parametrize("kind", [*SMALL, "keys"])
def test_as_many_values_as_are_read_fit_into_a_gigabyte(kind: str) -> None:
    count = 20_000
    each = (b'"%x":0' % number for number in range(count)) if kind == "keys" else [SMALL[kind]] * count
    inside = b",".join(each)
    body = b"{" + inside + b"}" if kind == "keys" else b"[" + inside + b"]"
    tracemalloc.start()
    try:
        found = bounded_json.loads(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == count
    # Besides the body itself, read twice: by the server's library and as text.
    assert peak / bounded_json.values(body) * MAX_VALUES < 500e6


def test_the_longest_text_that_is_read_fits_into_a_gigabyte() -> None:
    """One character beyond the others makes it four bytes for each."""
    body = b'["' + b"a" * 1_000_000 + b'\\ud83d\\ude00"]'
    tracemalloc.start()
    try:
        bounded_json.loads(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / len(body) * MAX_REST < 600e6


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL)
def test_f18_more_values_are_refused_before_they_are_made(kind: str) -> None:
    body = b"[" + b",".join([SMALL[kind]] * (MAX_VALUES + 1)) + b"]"
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="1500000 values"):
            bounded_json.loads(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5e6


def test_a_long_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_json, "MAX_REST", 1_000_000)
    with pytest.raises(TooLarge, match="1 MB besides the run lengths"):
        bounded_json.loads(b'"' + b"a" * 1_000_000 + b'"')


def test_run_lengths_count_for_neither() -> None:
    """100 masks of one megapixel are 18 MB, and 30 of 12 with much noise are a hundred."""
    region = b'{"value": {"rle": [' + b"255, 0, " * 400_000 + b"0]}}"
    body = b'{"result": [' + b",".join([region] * 30) + b"]}"
    assert len(body) > MAX_REST
    found = bounded_json.loads(body)
    assert len(found["result"]) == 30
    assert found["result"][29]["value"]["rle"][:6] == b"255, 0"
