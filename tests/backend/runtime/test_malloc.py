"""A heap full of holes, as tensors of many sizes leave it, and who gives it back."""

import ctypes
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from backend.answers.resources import Resources
from backend.bench.prelabel import resident_mb
from backend.datasets.items import Item
from backend.prelabel.run import run
from backend.runtime import malloc
from backend.runtime.job_queue import CLICK
from tests.support.paths import ROOT
from tests.support.waiting import soon

HOLES = 100  # MB

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

pytestmark = pytest.mark.skipif(not hasattr(libc, "malloc_trim"), reason="this C library keeps nothing back")


@pytest.fixture
def digging() -> Iterator[Callable[[], float]]:
    """Frees all but each tenth piece of memory, which stay to the end; gives what is resident in MB then."""
    kept: list[int] = []

    def dig() -> float:
        pieces = [libc.malloc(50_000) for _ in range(HOLES * 20)]
        for piece in pieces:
            ctypes.memset(piece, 1, 50_000)
        for number, piece in enumerate(pieces):
            if number % 10:
                libc.free(piece)
            else:
                kept.append(piece)
        return resident_mb()

    yield dig
    for piece in kept:
        libc.free(piece)


def test_free_pages_between_used_ones_go_back(digging: Callable[[], float]) -> None:
    before = digging()
    malloc.trim()
    assert resident_mb() < before - 0.6 * HOLES


def test_threads_share_one_heap(tmp_path: Path) -> None:
    """A process of its own is needed: the setting cannot be undone."""
    script = """if True:
        import ctypes, sys, threading
        from backend.runtime import malloc
        libc = ctypes.CDLL(None)
        libc.fopen.restype, libc.malloc.restype = ctypes.c_void_p, ctypes.c_void_p
        def heaps():
            together = threading.Barrier(4)
            def work():
                together.wait()
                libc.malloc(50_000)
                together.wait()
            threads = [threading.Thread(target=work) for _ in range(4)]
            [each.start() for each in threads]
            [each.join() for each in threads]
            file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
            libc.malloc_info(0, file)
            libc.fclose(file)
            return open(sys.argv[1]).read().count("<heap nr=")
        if sys.argv[2] == "share":
            malloc.share()
        print(heaps())
    """

    def heaps(how: str) -> int:
        command = [sys.executable, "-c", script, str(tmp_path / "heaps.xml"), how]
        return int(subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout)

    assert heaps("share") == 1
    assert heaps("leave") > 1


def test_a_run_gives_memory_back(digging: Callable[[], float]) -> None:
    items = [Item(str(number), "", {}) for number in range(malloc.EVERY + 3)]
    resident: list[float] = []

    def annotate(item: Item, image: object, asked: None) -> None:
        if item.key == "0":
            resident.append(digging())
        if item.key == items[-1].key:
            resident.append(resident_mb())

    run(
        items,
        load=lambda item: (np.zeros((4, 6, 3), np.uint8), None),
        annotate=annotate,
        describe=lambda *each: {},
        save=lambda item, row: None,
    )
    full, later = resident
    assert later < full - 0.6 * HOLES


def test_a_server_gives_memory_back(
    digging: Callable[[], float], make_resources: Callable[..., Resources]
) -> None:
    resources = make_resources()
    full = resources.queue.run(lambda model: digging(), priority=CLICK, deadline=soon())
    for _ in range(malloc.EVERY):
        resources.queue.run(lambda model: time.sleep(0), priority=CLICK, deadline=soon())
    later = resources.queue.run(lambda model: resident_mb(), priority=CLICK, deadline=soon())
    assert later < full - 0.6 * HOLES
