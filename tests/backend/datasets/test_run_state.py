import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backend.datasets.items import Item
from backend.datasets.run_state import DONE, FAILED, State, StateError, write

ITEMS = [Item(f"{name}\n\"é'", f"/{name}", {"image": name}) for name in "abcdefghij"]
ALL = (1, 1)


def keys(state: State) -> list[str]:
    return [item.key for item in state.pending()]


def test_what_is_saved_is_not_pending_any_longer(tmp_path: Path) -> None:
    with State(tmp_path / "s").open({"v": 1}) as state:
        assert state.plan(ITEMS, shard=ALL, limit=None, samples=2)[:2] == (10, 0)
        state.save({"status": DONE, "key": ITEMS[3].key, "found": []})
        state.save({"key": ITEMS[1].key, "status": FAILED, "reason": "x"})
    with State(tmp_path / "s").open({"v": 1}) as state:
        assert state.plan(ITEMS, shard=ALL, limit=None, samples=2)[:2] == (10, 1)
        assert keys(state) == [item.key for item in ITEMS if item != ITEMS[3]]
        state.save({"key": ITEMS[1].key, "status": DONE})
        assert [(place, row["status"]) for place, _, row in state.rows()] == [(1, DONE), (3, DONE)]
        assert not state.complete


def test_an_item_with_another_stamp_is_pending_with_what_is_known_of_it(tmp_path: Path) -> None:
    one, two, three = (replace(item, stamp="11") for item in ITEMS[:3])
    with State(tmp_path).open({}) as state:
        state.plan([one, two, three], shard=ALL, limit=None, samples=0)
        state.save({"content": "pixels", "key": one.key, "status": DONE, "stamp": "11"})
        state.save({"key": two.key, "status": DONE, "stamp": ""})  # as of an address
        state.save({"key": three.key, "status": DONE, "stamp": "11"})
        assert state.complete
    now = [replace(one, stamp="22"), replace(two, stamp="22"), replace(three, stamp="")]
    with State(tmp_path).open({}) as state:
        assert state.plan(now, shard=ALL, limit=None, samples=0)[:2] == (3, 2)
        assert [(item.key, item.content) for item in state.pending()] == [(one.key, "pixels")]
        assert not state.complete
        state.renew(now[0])
        assert keys(state) == []
    with State(tmp_path).open({}) as state:
        assert keys(state) == []
        rows = [row for _, _, row in state.rows()]
        assert [row["key"] for row in rows] == [one.key, two.key, three.key]
        assert (rows[0]["stamp"], rows[0]["content"]) == ("22", "pixels")


def test_what_was_skipped_is_kept(tmp_path: Path) -> None:
    skipped: Counter[str] = Counter()

    def items() -> Iterator[Item]:
        yield from ITEMS
        skipped["odd"] += 2

    with State(tmp_path).open({}) as state:
        state.plan(items(), shard=ALL, limit=None, samples=0, skipped=skipped)
        assert state.skipped == {"odd": 2}
        assert len(keys(state)) == len(ITEMS)
        state.plan(ITEMS, shard=ALL, limit=None, samples=0)
        assert state.skipped == {}


def test_a_line_torn_anywhere_is_done_again(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with State(folder).open({}) as state:
        state.plan(ITEMS, shard=ALL, limit=None, samples=0)
        for item in ITEMS[:3]:
            state.save({"key": item.key, "status": DONE, "found": [[item.key, None, 0.5]]})
    rows = folder / "rows.jsonl"
    whole = rows.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for end in range(last, len(whole)):
        rows.write_bytes(whole[:end])
        with State(folder).open({}) as state:
            assert keys(state) == [item.key for item in ITEMS[2:]]
            state.save({"key": ITEMS[2].key, "status": DONE, "found": [[ITEMS[2].key, None, 0.5]]})
        assert rows.read_bytes() == whole


def test_shards_share_out_the_items_whatever_comes_between(tmp_path: Path) -> None:
    shares: list[set[str]] = []
    for number in (1, 2, 3):
        with State(tmp_path / str(number)).open({}) as state:
            state.plan(ITEMS, shard=(number, 3), limit=None, samples=0)
            shares.append(set(keys(state)))
            state.plan([Item("new", "/new", {}), *ITEMS], shard=(number, 3), limit=None, samples=0)
            assert set(keys(state)) - {"new"} == shares[-1]
    assert sorted(key for share in shares for key in share) == sorted(item.key for item in ITEMS)


def test_samples_are_the_same_ones_after_a_restart(tmp_path: Path) -> None:
    with State(tmp_path).open({}) as state:
        *_, some = state.plan(ITEMS, shard=ALL, limit=None, samples=3)
        *_, again = state.plan(reversed(ITEMS), shard=ALL, limit=None, samples=3)
    assert len(some) == 3
    assert some == again


def test_one_run_at_a_time_and_a_dead_ones_lock_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("process 1 on elsewhere\n")
    with State(tmp_path).open({}), pytest.raises(StateError, match="another run is working"):
        State(tmp_path).open({}).__enter__()
    with State(tmp_path).open({}):
        assert (tmp_path / "lock").read_text().startswith("process ")


def test_a_state_of_another_command_is_refused_unless_thrown_away(tmp_path: Path) -> None:
    with State(tmp_path).open({"source": "a", "model version": "1"}) as state:
        state.save({"key": "x", "status": DONE})
    with pytest.raises(StateError, match=r"model version was '1', is '2'\. Repeat .* --restart"):
        State(tmp_path).open({"source": "a", "model version": "2"}).__enter__()
    with State(tmp_path).open({"source": "a", "model version": "2"}, restart=True) as state:
        assert not state.is_done(Item("x", "", {}))
    assert json.loads((tmp_path / "run.json").read_text())["model version"] == "2"


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")

    def fail(file: object) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write(path, fail)
    assert path.read_text() == "old"
