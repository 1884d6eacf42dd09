import hashlib
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.types import ModelLoadError
from model.weights.sam_checkpoints import Checkpoint, fetch, verify
from tests.support.loopback import Site, running
from tests.support.waiting import wait_for

CONTENT = bytes(range(256)) * 9000  # 2.3 MB


@pytest.fixture
def site() -> Iterator[Site]:
    with running() as server:
        yield server


@pytest.fixture
def nowhere() -> str:
    """The address of a server that is gone."""
    with running() as server:
        return server.url


def of(site: Site, path: str) -> list[str]:
    """The ranges that were asked of a path."""
    return [asked for given, asked, _ in site.asked if given == path]


def test_a_file_arrives_under_its_own_name(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    checkpoint = site.checkpoint("weights.pth", CONTENT)
    fetch(checkpoint, folder)
    assert (folder / "weights.pth").read_bytes() == CONTENT
    assert [f.name for f in folder.iterdir() if not f.name.startswith(".")] == ["weights.pth"]
    fetch(checkpoint, folder)
    assert of(site, "/weights.pth") == [""]  # the second time it was there


def test_a_part_is_gone_on_with(site: Site, tmp_path: Path) -> None:
    (tmp_path / "weights.pth.part").write_bytes(CONTENT[:1_000_000])
    fetch(site.checkpoint("weights.pth", CONTENT), tmp_path)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT
    assert of(site, "/weights.pth") == ["bytes=1000000-"]


def test_a_broken_connection_is_taken_up_again(site: Site, tmp_path: Path) -> None:
    site.breaks = [1_500_000, 400_000]
    fetch(site.checkpoint("weights.pth", CONTENT), tmp_path)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT
    first, second, third = of(site, "/weights.pth")
    assert first == ""
    assert second < third


def test_a_server_without_ranges_sends_it_all_again(site: Site, tmp_path: Path) -> None:
    site.ranges = False
    (tmp_path / "weights.pth.part").write_bytes(b"x" * 1_000)
    fetch(site.checkpoint("weights.pth", CONTENT), tmp_path)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("other", [CONTENT[::-1], CONTENT * 2, b""])
def test_f25_other_bytes_never_get_the_name(site: Site, tmp_path: Path, other: bytes) -> None:
    checkpoint = site.checkpoint("weights.pth", CONTENT)
    site.files["/weights.pth"] = other
    with pytest.raises(ModelLoadError, match=r"another checksum|nothing came"):
        fetch(checkpoint, tmp_path)
    assert not (tmp_path / "weights.pth").exists()
    left = tmp_path / "weights.pth.part"
    assert not left.exists() or left.stat().st_size == 0


def test_a_corrupt_file_is_fetched_again(site: Site, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(CONTENT[:-1] + b"?")
    fetch(site.checkpoint("weights.pth", CONTENT), tmp_path)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


@pytest.mark.slow
def test_ctrl_c_leaves_a_part_to_go_on_with(site: Site, tmp_path: Path) -> None:
    site.breaks = [1_200_000]
    site.stall.clear()
    checkpoint, part = site.checkpoint("weights.pth", CONTENT), tmp_path / "weights.pth.part"
    # What starts the tests may have switched the signal off for all its children.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code = f"{listen}import sys; from model.weights.sam_checkpoints import *; "
    code += "fetch(eval(sys.argv[1]), Path(sys.argv[2]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, repr(checkpoint), tmp_path], stderr=subprocess.PIPE
    )
    wait_for(lambda: process.poll() is not None or (part.exists() and part.stat().st_size > 1_000_000), 60)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in error
    have = part.stat().st_size
    assert have > 1_000_000
    fetch(checkpoint, tmp_path)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT
    assert of(site, "/weights.pth") == ["", f"bytes={have}-"]


def test_of_two_at_once_one_fetches(site: Site, tmp_path: Path) -> None:
    checkpoint = site.checkpoint("weights.pth", CONTENT)
    threads = [threading.Thread(target=fetch, args=(checkpoint, tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT
    assert len(of(site, "/weights.pth")) == 1


def test_without_network_a_sentence_says_what_to_copy_where(nowhere: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(f"{nowhere}/weights.pth", 9, "0" * 64)
    with pytest.raises(ModelLoadError) as error:
        fetch(checkpoint, tmp_path)
    assert f"or copy {nowhere}/weights.pth to {tmp_path}/weights.pth" in str(error.value)
    assert "ConnectionError" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_the_server_lacks_is_said(site: Site, tmp_path: Path) -> None:
    checkpoint = site.checkpoint("weights.pth", CONTENT)
    del site.files["/weights.pth"]
    with pytest.raises(ModelLoadError, match="HTTP 404"):
        fetch(checkpoint, tmp_path)


def test_f28_a_folder_that_cannot_be_written_is_one_sentence(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelLoadError, match="cannot be used for weights"):
        fetch(site.checkpoint("weights.pth", CONTENT), tmp_path / "file" / "folder")


def test_f25_checkpoints_are_compared_when_they_load(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    published = tmp_path / "sam_vit_b_01ec64.pth"
    published.write_bytes(CONTENT)
    with pytest.raises(ModelLoadError, match=r"the published file ec2df627.*another name"):
        verify(published)

    own = tmp_path / "own.pth"
    own.write_bytes(CONTENT)
    with caplog.at_level(logging.WARNING):
        verify(own)
    assert "without a checksum" in caplog.text
    caplog.clear()
    beside = tmp_path / "own.pth.sha256"
    beside.write_text(f"{hashlib.sha256(CONTENT).hexdigest().upper()}  own.pth\n")  # as sha256sum writes it
    verify(own)
    assert caplog.text == ""
    for wrong in ("", "0" * 64):
        beside.write_text(wrong)
        with pytest.raises(ModelLoadError, match=r"own\.pth\.sha256"):
            verify(own)
