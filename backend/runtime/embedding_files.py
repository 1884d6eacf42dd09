"""Embeddings as files, so that they survive a restart and `vlsam warm` can make them ahead.

A file is safetensors, named by the key of its embedding. Any number of processes may share the folder: a file
appears whole or not at all, and who writes one removes what has been unused the longest beyond the cap.
"""

import contextlib
import json
import logging
import os
import queue
import tempfile
import threading
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from backend.telemetry.metrics import Metrics
from model.segmentation.segmenter import Embedding

log = logging.getLogger(__name__)

# To be counted up when the same weights and pixels give another embedding than before.
FORMAT = "1"
# Nobody else's files end so: weights in the same folder must be neither counted nor removed.
SUFFIX, TEMPORARY = ".embedding", ".embedding-to-be"
WAITING = 8  # embeddings to be written; more would only fill memory while the disk is slow
STALE_SECONDS = 3600.0  # after this nobody still writes to a temporary file


class Disk:
    """Embeddings in a folder of at most `capacity` bytes.

    What the disk refuses is logged, once until it works again; no method but `write` raises OSError.
    """

    def __init__(self, folder: Path, capacity: float, metrics: Metrics) -> None:
        self._folder, self._capacity, self._metrics = folder.expanduser(), capacity, metrics
        self._failing = False
        self._lock = threading.Lock()
        self._writer: threading.Thread | None = None
        self._waiting: queue.Queue[tuple[str, Embedding]] = queue.Queue(WAITING)
        metrics.embedding_hits.labels("disk")
        metrics.embedding_evictions.labels("disk")
        metrics.embedding_bytes.labels("disk")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._make_room(0)
        except OSError as error:
            self._warn(error)

    def trouble(self) -> str:
        """Why nothing can be written now; "" where it can."""
        try:
            with tempfile.NamedTemporaryFile(dir=self._folder, suffix=TEMPORARY) as file:
                file.write(bytes(4096))  # a full disk may still give names away
        except OSError as error:
            return f"VLSAM_CACHE_DIR cannot be written: {error.strerror or error}."
        return ""

    def read(self, key: str) -> Embedding | None:
        """What is kept under `key`, on the CPU. A file that is broken or not ours is removed."""
        path = self._path(key)
        try:
            embedding = _read(path, key)
            with contextlib.suppress(OSError):  # of a folder that may only be read
                os.utime(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(error)
            return None
        except (SafetensorError, ValueError) as error:
            log.warning("%s is no embedding that can be used, and is removed: %s", path, error)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        return embedding

    def keep(self, key: str, embedding: Embedding) -> None:
        """Has it written soon by a thread of its own; not at all while the disk is far behind."""
        with self._lock:
            if self._writer is None:
                self._writer = threading.Thread(target=self._write_all, name="disk", daemon=True)
                self._writer.start()
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait((key, embedding))

    def write(self, key: str, embedding: Embedding) -> None:
        """Keep it now, in place of what is longest unused. Raises OSError."""
        data = _bytes(key, embedding)
        if len(data) > self._capacity:
            return
        path = self._path(key)
        self._make_room(len(data), replaced=path)
        temporary = self._folder / f"{key}-{os.getpid()}-{threading.get_ident()}{TEMPORARY}"
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        self._metrics.embedding_bytes.labels("disk").inc(len(data))

    def _write_all(self) -> None:
        while True:
            key, embedding = self._waiting.get()
            try:
                self.write(key, embedding)
                self._failing = False
            except OSError as error:
                self._warn(error)
            except Exception:
                log.exception("An embedding could not be written.")
            del embedding  # else it would stay until the next one
            self._waiting.task_done()

    def _make_room(self, size: int, replaced: Path | None = None) -> None:
        """Remove what is longest unused until `size` bytes more, for `replaced`, are within the cap."""
        files = []
        for entry in os.scandir(self._folder):
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                status = entry.stat()
                if entry.name.endswith(SUFFIX) and Path(entry.path) != replaced:
                    files.append((status.st_mtime, status.st_size, entry.path))
                elif entry.name.endswith(TEMPORARY) and status.st_mtime < time.time() - STALE_SECONDS:
                    os.unlink(entry.path)
        total = sum(each for _, each, _ in files)
        for _, each, path in sorted(files):
            if total + size <= self._capacity:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            total -= each
            self._metrics.embedding_evictions.labels("disk").inc()
        self._metrics.embedding_bytes.labels("disk").set(total)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{SUFFIX}"

    def _warn(self, error: OSError) -> None:
        if not self._failing:
            self._failing = True
            log.warning("VLSAM_CACHE_DIR cannot be used: %s", error)


def _bytes(key: str, embedding: Embedding) -> bytes:
    tensors = {name: tensor.cpu().contiguous() for name, tensor in embedding.tensors.items()}
    facts = {"format": FORMAT, "key": key, "size": _pair(embedding.size), "scaled": _pair(embedding.scaled)}
    return save(tensors, {**facts, "checksum": _checksum(tensors, facts)})


def _read(path: Path, key: str) -> Embedding:
    """Raises OSError; SafetensorError or ValueError where the file is not what was written under `key`."""
    # Not mapped, as safe_open does: another process may replace the file, and a failing disk would end us.
    data = path.read_bytes()
    tensors = load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    facts = header.get("__metadata__", {})
    # The library sees that a file is cut off, and not that it was never wholly flushed.
    if facts.pop("checksum", "") != _checksum(tensors, facts):
        raise ValueError("its checksum does not agree")
    if (facts.get("format"), facts.get("key")) != (FORMAT, key) or not tensors:
        raise ValueError("it is that of another image or version")
    return Embedding(tensors, _size(facts["size"]), _size(facts["scaled"]))


def _checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    checksum = zlib.crc32(repr(sorted(facts.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        checksum = zlib.crc32(repr((name, tensor.dtype, tuple(tensor.shape))).encode(), checksum)
        checksum = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"


def _pair(size: tuple[int, int]) -> str:
    return f"{size[0]} {size[1]}"


def _size(pair: str) -> tuple[int, int]:
    height, width = pair.split()
    return int(height), int(width)
