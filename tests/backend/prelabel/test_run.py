import threading
import weakref

import numpy as np
import pytest

from backend.datasets.batch_command import AHEAD
from backend.datasets.items import Item
from backend.datasets.run_state import Row, Unchanged
from backend.prelabel.run import BEHIND, run
from model.types import Image, ImageError
from tests.support.waiting import wait_for

ITEMS = [Item(str(number), "", {}) for number in range(40)]


def image(number: int) -> Image:
    return np.full((4, 6, 3), number, np.uint8)


def test_f31_rows_come_in_order_and_failures_are_rows() -> None:
    third = threading.Event()

    def load(item: Item) -> tuple[Image, int]:
        if item.key == "0":
            assert third.wait(10)
        if item.key == "2":
            third.set()
        if item.key == "5":
            raise ImageError("no\nimage")
        if item.key == "6":
            raise ZeroDivisionError("odd")
        return image(int(item.key)), 10 * int(item.key)

    def annotate(item: Item, pixels: Image, asked: int) -> list[object]:
        assert asked == 10 * int(item.key)
        if pixels[0, 0, 0] == 7:
            raise MemoryError("no room")
        return []

    def describe(item: Item, pixels: Image, found: object) -> Row:
        if item.key == "8":
            raise KeyError("x")
        return {"shade": int(pixels[0, 0, 0])}

    saved: list[Row] = []
    run(ITEMS, load=load, annotate=annotate, describe=describe, save=lambda item, row: saved.append(row))
    assert [row["key"] for row in saved] == [item.key for item in ITEMS]
    assert {row["key"]: row["reason"] for row in saved if row["status"] == "failed"} == {
        "5": "no image",
        "6": "ZeroDivisionError: odd",
        "7": "There is too little memory for this image (MemoryError: no room)",
        "8": "KeyError: 'x'",
    }
    assert saved[9] == {"key": "9", "status": "done", "width": 6, "height": 4, "shade": 9}


def test_f31_what_is_the_same_picture_is_not_annotated_again() -> None:
    def load(item: Item) -> tuple[Image, int]:
        if int(item.key) % 2:
            raise Unchanged
        return image(1), 0

    seen: list[str] = []
    saved: list[Row] = []

    def annotate(item: Item, pixels: Image, asked: int) -> None:
        seen.append(item.key)

    run(
        ITEMS[:4],
        load=load,
        annotate=annotate,
        describe=lambda *each: {},
        save=lambda i, row: saved.append(row),
    )
    assert seen == ["0", "2"]
    assert [(row["key"], row["status"]) for row in saved] == [
        ("0", "done"), ("1", "same"), ("2", "done"), ("3", "same")
    ]  # fmt: skip


def test_reading_and_writing_go_on_while_the_models_work() -> None:
    """Each of the three stages waits for the others to be at work at the same time."""
    together = threading.Barrier(3, timeout=20)
    met = threading.Event()

    def meet() -> None:
        if not met.is_set():
            together.wait()
            met.set()

    def load(item: Item) -> tuple[Image, int]:
        if item.key == "3":
            meet()
        return image(int(item.key)), 0

    def annotate(item: Item, pixels: Image, asked: int) -> list[object]:
        if pixels[0, 0, 0] == 1:
            meet()
        return []

    def describe(item: Item, pixels: Image, found: object) -> Row:
        if item.key == "0":
            meet()
        return {}

    run(ITEMS, load=load, annotate=annotate, describe=describe, save=lambda item, row: None)
    assert met.is_set()


def test_images_in_memory_are_bounded() -> None:
    alive: weakref.WeakSet[Image] = weakref.WeakSet()
    most = loaded = annotated = 0
    lock = threading.Lock()

    def load(item: Item) -> tuple[Image, int]:
        nonlocal loaded, most
        pixels = image(1).view(_Tracked)
        with lock:
            alive.add(pixels)
            loaded += 1
            most = max(most, len(alive))
        return pixels, 0

    def annotate(item: Item, pixels: Image, asked: int) -> list[object]:
        nonlocal annotated
        annotated += 1
        return []

    def save(item: Item, row: Row) -> None:
        """Hold the first row until as much is at hand as ever is."""
        if annotated <= BEHIND + 1:
            wait_for(lambda: annotated == BEHIND + 1 and loaded == BEHIND + 1 + AHEAD)

    run(ITEMS * 3, load=load, annotate=annotate, describe=lambda *each: {}, save=save)
    assert AHEAD + BEHIND <= most <= AHEAD + BEHIND + 3


class _Tracked(np.ndarray):  # type: ignore[type-arg]
    """Arrays of a subclass take weak references."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def test_when_rows_cannot_be_saved_the_run_ends() -> None:
    seen: list[int] = []

    def save(item: Item, row: Row) -> None:
        raise OSError("disk full")

    def annotate(item: Item, pixels: Image, asked: int) -> list[object]:
        seen.append(1)
        return []

    with pytest.raises(OSError, match="disk full"):
        run(ITEMS, load=lambda item: (image(1), 0), annotate=annotate, describe=lambda *each: {}, save=save)
    assert len(seen) <= BEHIND + 2
