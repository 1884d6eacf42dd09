"""Hash files of weights, and lock their folder for one writer at a time."""

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from model import connections
from model.types import ModelLoadError

log = logging.getLogger(f"vlsam.{__name__}")

_BLOCK = 1 << 20  # bytes read at a time
_SAMPLES, _SAMPLE = 256, 4096  # pieces, and bytes of each, that tell two large files apart


def digest_of(file: Path, *, git: bool = False) -> str:
    """Return a file's SHA-256 in hex, or its git object id if `git`. This takes about a second per GB."""
    size = file.stat().st_size
    state = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if git else hashlib.sha256()
    with file.open("rb") as opened, progress_bar(f"checksum of {file.name}", size, leave=False) as bar:
        while block := opened.read(_BLOCK):
            state.update(block)
            bar.update(len(block))
    return state.hexdigest()


def is_intact(file: Path, digest: str) -> bool:
    """Return whether a file exists and has a digest: SHA-256 (64 digits) or git's object id (40)."""
    # os.path takes any name that a repository may list.
    return os.path.isfile(file) and digest_of(file, git=len(digest) == 40) == digest


def sample_hash(file: Path) -> str:
    """Return a hash of a file's size and of samples spread over it, to tell weights apart quickly."""
    size = file.stat().st_size
    state = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        if size <= _SAMPLES * _SAMPLE:
            state.update(opened.read())
        else:
            for index in range(_SAMPLES):  # the first and the last piece included
                opened.seek(index * (size - _SAMPLE) // (_SAMPLES - 1))
                state.update(opened.read(_SAMPLE))
    return state.hexdigest()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Create a folder and lock it for one writer at a time. Raises ModelLoadError in place of any OSError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.warning("Another process downloads into %s; waiting for it.", folder)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise ModelLoadError(f"{folder} cannot be used for weights: {error.strerror or error}") from error


def progress_bar(title: str, size: int, start: int = 0, *, leave: bool = True) -> "tqdm[NoReturn]":
    """Return a progress bar of bytes on standard error, shown on a terminal only."""
    return tqdm(desc=title, total=size, initial=start, unit="B", unit_scale=True, leave=leave, disable=None)


def reason_of(error: BaseException | None) -> str:
    """Return a short reason for a failed request, without its message, which may hold a signed address."""
    if error is None:
        return "nothing came"
    if (response := response_of(error)) is not None:
        return f"HTTP {response.status_code}"
    if isinstance(error, connections.ProxyError):  # its message has no secret
        return str(error)
    return connections.distrust(error) or type(error.__cause__ or error).__name__


def response_of(error: BaseException | None) -> Any:
    """Return the HTTP response that an error, or one of its causes, is about; None if there is none."""
    while error is not None:
        if (response := getattr(error, "response", None)) is not None:
            return response
        error = error.__cause__
    return None
