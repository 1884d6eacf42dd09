import os
import pickle
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backend.answers.ml_backend import VLSAMBackend
from backend.answers.resources import Resources
from backend.runtime import embedding_files as module
from backend.runtime.embedding_files import FORMAT, MAX_WAITING, SUFFIX, EmbeddingFiles
from backend.telemetry.metrics import Metrics
from model.segmentation.embedding import Embedding
from model.segmentation.segmenter import Segmenter
from model.types import Prompt
from tests.support import sam_families
from tests.support.embedding_figures import figures
from tests.support.images import data_url
from tests.support.labeling_configs import CONFIG
from tests.support.predictions import regions
from tests.support.stand_in import StandIn
from tests.support.waiting import wait_for

Make = Callable[..., Resources]
KEY = "sam-0-1"
FILE = 1000 + 400  # no more than that many bytes for an embedding of 1000


def embedding(shade: int = 1, count: int = 250) -> Embedding:
    return Embedding({"image": torch.full((1, count), float(shade))}, (60, 80), (48, 64))


def shade(found: Embedding | None) -> float | None:
    return None if found is None else float(found.tensors["image"][0, 0])


@pytest.fixture
def disk(tmp_path: Path) -> EmbeddingFiles:
    return EmbeddingFiles(tmp_path, 1e6, Metrics())


def settle(disk: EmbeddingFiles) -> None:
    """Wait until everything is written."""
    wait_for(lambda: not disk.writers.running)


def only(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


# Files


@pytest.mark.slow
@pytest.mark.parametrize("family", sam_families.BUILDERS)
def test_a_restart_changes_no_mask_of_any_family(family: str, tmp_path: Path) -> None:
    sam_families.saved(family, tmp_path / "weights")
    segmenter = Segmenter.load(str(tmp_path / "weights"), device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    before = segmenter.encode(image)
    EmbeddingFiles(tmp_path / "kept", 1e9, Metrics()).write(KEY, before)
    after = EmbeddingFiles(tmp_path / "kept", 1e9, Metrics()).read(KEY)
    assert after is not None
    prompt = Prompt.of((20, 10, 1))
    one, two = (segmenter.decode(each, [prompt], multimask=True)[0] for each in (before, after))
    np.testing.assert_array_equal(one.logits, two.logits)
    np.testing.assert_array_equal(one.masks[0], two.masks[0])


def test_what_is_not_there_is_none(disk: EmbeddingFiles) -> None:
    assert disk.read(KEY) is None


def broken(how: str, good: bytes) -> bytes:
    return {
        "empty": b"",
        "cut off": good[:-10],
        "never flushed": good[:-200] + bytes(200),
        "longer": good + b"more",
        "text": b"no embedding at all",
        "pickle": pickle.dumps({"image": 1}),
        "huge header": b"\xff" * 8 + good[8:],
        "no checksum": good.replace(b'"checksum"', b'"checkSum"'),
        "another format": good.replace(f'"format":"{FORMAT}"'.encode(), b'"format":"0"'),
        "another size": good.replace(b'"60 80"', b'"80 60"'),
    }[how]


@pytest.mark.parametrize(
    "how",
    ["empty", "cut off", "never flushed", "longer", "text", "pickle", "huge header", "no checksum",
     "another format", "another size"],
)  # fmt: skip
def test_a_broken_or_foreign_file_is_removed_with_a_warning(
    how: str, disk: EmbeddingFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk.write(KEY, embedding())
    file = only(tmp_path)
    good = file.read_bytes()
    file.write_bytes(broken(how, good))
    assert file.read_bytes() != good
    assert disk.read(KEY) is None
    assert not file.exists()
    assert "is not a usable embedding and is removed" in caplog.text
    disk.write(KEY, embedding())
    assert shade(disk.read(KEY)) == 1


def test_another_images_file_under_this_name_is_removed(disk: EmbeddingFiles, tmp_path: Path) -> None:
    disk.write(KEY, embedding())
    only(tmp_path).rename(tmp_path / f"other{SUFFIX}")
    assert disk.read("other") is None
    assert list(tmp_path.iterdir()) == []


@given(data=st.data())
def test_no_flipped_bit_goes_unnoticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    disk = EmbeddingFiles(folder, 1e6, Metrics())
    disk.write(KEY, embedding(count=8))
    file = only(folder)
    raw = bytearray(file.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(raw)
    found = disk.read(KEY)
    if found is not None:  # the bit was padding, or stood for the same
        assert (found.size, found.scaled) == ((60, 80), (48, 64))
        assert torch.equal(found.tensors["image"], embedding(count=8).tensors["image"])


def test_a_reader_never_sees_a_file_half_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer, reader = (EmbeddingFiles(tmp_path, 1e9, Metrics()) for _ in range(2))
    writer.write(KEY, embedding(0, 50_000))

    def write() -> None:
        for number in range(30):
            writer.write(KEY, embedding(number, 50_000))

    thread = threading.Thread(target=write)
    thread.start()
    found = []
    while thread.is_alive():
        found.append(reader.read(KEY))
    thread.join()
    assert all(each is not None and len(set(each.tensors["image"].flatten().tolist())) == 1 for each in found)
    assert shade(reader.read(KEY)) == 29
    assert caplog.text == ""


# Room


def test_f3_the_longest_unused_is_removed_beyond_the_cap(tmp_path: Path) -> None:
    disk = EmbeddingFiles(tmp_path, 3 * FILE, m := Metrics())
    for number, key in enumerate("abc"):
        disk.write(key, embedding(number))
        os.utime(tmp_path / f"{key}{SUFFIX}", (0, 1000 + number))
    assert shade(disk.read("a")) == 0  # now the last used
    disk.write("d", embedding(3))
    assert [shade(disk.read(key)) for key in "abcd"] == [0, None, 2, 3]
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert (figures(m)["bytes disk"], figures(m)["evictions disk"]) == (size, 1)
    assert size <= 3 * FILE


def test_what_is_written_again_takes_its_own_room(tmp_path: Path) -> None:
    """Two processes that meet the same new image do so."""
    disk = EmbeddingFiles(tmp_path, 2 * FILE, m := Metrics())
    for key in ("a", "b", "b"):
        disk.write(key, embedding())
    assert (shade(disk.read("a")), shade(disk.read("b"))) == (1, 1)
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert (figures(m)["bytes disk"], figures(m)["evictions disk"]) == (size, 0)


def test_a_smaller_cap_holds_from_the_next_start(tmp_path: Path) -> None:
    for key in "abc":
        EmbeddingFiles(tmp_path, 1e6, Metrics()).write(key, embedding())
    EmbeddingFiles(tmp_path, FILE, m := Metrics())
    assert len(list(tmp_path.iterdir())) == 1
    assert figures(m)["bytes disk"] == only(tmp_path).stat().st_size


def test_f3_what_is_larger_than_the_cap_drives_nothing_out(tmp_path: Path) -> None:
    disk = EmbeddingFiles(tmp_path, FILE, Metrics())
    disk.write("a", embedding())
    disk.write("huge", embedding(2, 1000))
    assert (shade(disk.read("a")), disk.read("huge")) == (1, None)


def test_files_of_others_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(10 * FILE))
    disk = EmbeddingFiles(tmp_path, FILE, m := Metrics())
    for key in "ab":
        disk.write(key, embedding())
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"b{SUFFIX}", "model.safetensors"]
    assert figures(m)["bytes disk"] <= FILE


def test_what_a_killed_process_left_goes_after_an_hour(tmp_path: Path) -> None:
    old, new = (tmp_path / f"{name}{module.TEMPORARY}" for name in ("old", "new"))
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (0, time.time() - 3700))
    EmbeddingFiles(tmp_path, 1e6, Metrics())
    assert only(tmp_path) == new


# Disks that refuse


@contextmanager
def full_disk() -> Iterator[None]:
    """Forbid this process to write files of more than 1 kB, even as root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_f28_a_full_disk_is_told_once_until_it_works_again(
    disk: EmbeddingFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> int:
        return caplog.text.count("VLSAM_CACHE_DIR cannot be used")

    for _ in range(2):
        with full_disk():
            for key in "ab":
                disk.write_later(key, embedding())
            settle(disk)
        assert warnings() == 1
        assert list(tmp_path.iterdir()) == []
    disk.write_later("c", embedding())
    settle(disk)
    assert shade(disk.read("c")) == 1
    with full_disk():
        disk.write_later("d", embedding())
        settle(disk)
    assert warnings() == 2


def test_f28_a_folder_that_cannot_be_fails_no_click(
    make_resources: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    ours = VLSAMBackend(CONFIG, resources=make_resources(cache_dir=tmp_path / "file" / "kept"), project="1.1")
    assert [len(regions(ours, data_url(shade=each))) for each in (5, 5, 9)] == [1, 1, 1]
    assert caplog.text.count("VLSAM_CACHE_DIR cannot be used") == 1


def test_a_slow_disk_delays_nobody_and_fills_no_memory(
    disk: EmbeddingFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, write, written = threading.Event(), disk.write, list[str]()

    def slowly(key: str, kept: Embedding) -> None:
        go.wait(10)
        write(key, kept)
        written.append(key)

    monkeypatch.setattr(disk, "write", slowly)
    for number in range(50):
        disk.write_later(str(number), embedding())
    assert not written
    go.set()
    settle(disk)
    assert sorted(written) == sorted(map(str, range(MAX_WAITING)))


def test_a_writer_survives_what_cannot_be_written(
    disk: EmbeddingFiles, caplog: pytest.LogCaptureFixture
) -> None:
    tensor = torch.zeros(4)
    disk.write_later("a", Embedding({"one": tensor, "same": tensor}, (1, 1), (1, 1)))  # safetensors refuses
    disk.write_later("b", embedding())
    settle(disk)
    assert (disk.read("a"), shade(disk.read("b"))) == (None, 1)
    assert "could not be written" in caplog.text


# Clicks


def settled(ours: VLSAMBackend) -> None:
    assert ours.resources.embedding_files is not None
    settle(ours.resources.embedding_files)


def test_a_restart_encodes_nothing_again(make_resources: Make, stand_in: StandIn, tmp_path: Path) -> None:
    def started() -> VLSAMBackend:
        return VLSAMBackend(CONFIG, resources=make_resources(cache_dir=tmp_path / "kept"), project="1.1")

    before = started()
    first = regions(before, data_url(shade=5))[0]
    settled(before)
    after = started()
    again = [regions(after, data_url(shade=5))[0] for _ in range(2)]
    assert all({**each, "id": ""} == {**first, "id": ""} for each in again)
    assert stand_in.encoded == [5]
    counted = figures(after.resources.metrics)
    assert (counted["hits disk"], counted["hits host"], counted["misses"]) == (1, 1, 0)


def test_what_memory_has_no_room_for_is_read_again_without_a_fetch(
    make_resources: Make, stand_in: StandIn, tmp_path: Path
) -> None:
    ours = VLSAMBackend(CONFIG, resources=make_resources(cache_dir=tmp_path, cache_mb=0), project="1.1")
    assert len(regions(ours, data_url(shade=5))) == 1
    settled(ours)
    loads: list[Any] = []
    ours.resources.images.load = lambda *args, **more: loads.append(args)  # type: ignore[assignment, method-assign]
    assert len(regions(ours, data_url(shade=5))) == 1
    assert (stand_in.encoded, loads) == ([5], [])


def test_a_click_on_a_broken_file_encodes_again(
    make_resources: Make, stand_in: StandIn, tmp_path: Path
) -> None:
    ours = VLSAMBackend(CONFIG, resources=make_resources(cache_dir=tmp_path, cache_mb=0), project="1.1")
    assert len(regions(ours, data_url(shade=5))) == 1
    settled(ours)
    only(tmp_path).write_bytes(b"broken")
    assert len(regions(ours, data_url(shade=5))) == 1
    assert stand_in.encoded == [5, 5]
    settled(ours)
    assert only(tmp_path).stat().st_size > 1000
