"""Store embeddings in files, so that they are kept after a restart. `vlsam warm` writes them in advance.

Several processes may share the folder. An embedding is one safetensors file, named by its key and replaced
atomically. Each write first removes the least recently used files if the folder is full.
"""

import contextlib
import json
import logging
import os
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

from backend.runtime.background_tasks import BackgroundTasks
from backend.telemetry.metrics import Metrics
from model.segmentation.embedding import Embedding

log = logging.getLogger(f"vlsam.{__name__}")

# Increase it when the same weights and pixels give another embedding than before.
FORMAT = "1"
# Suffixes unique to this cache, so that other files in the folder are neither counted nor removed.
SUFFIX, TEMPORARY = ".embedding", ".embedding.tmp"
MAX_WAITING = 8  # embeddings that wait to be written: more fill the memory when the disk is slow
STALE_SECONDS = 3600.0  # the age at which a temporary file was abandoned by its writer


class EmbeddingFiles:
    """A store of embeddings in a folder of at most `capacity` bytes.

    A disk error is logged once, until `write_later` succeeds again. Only `write` raises OSError.
    """

    def __init__(self, folder: Path, capacity: float, metrics: Metrics) -> None:
        self._folder, self._capacity, self._metrics = folder.expanduser(), capacity, metrics
        self._failing = False
        self._lock = threading.Lock()
        self.writers = BackgroundTasks(MAX_WAITING)
        for metric in (metrics.embedding_hits, metrics.embedding_evictions, metrics.embedding_bytes):
            metric.labels("disk")  # 0 until there is one
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._make_room(0)
        except OSError as error:
            self._warn(error)

    def problem(self) -> str:
        """Return the reason why files cannot be written; "" if they can."""
        try:
            with tempfile.NamedTemporaryFile(dir=self._folder, suffix=TEMPORARY) as file:
                file.write(bytes(4096))  # a full disk still creates empty files
        except OSError as error:
            return f"VLSAM_CACHE_DIR cannot be written: {error.strerror or error}."
        return ""

    def read(self, key: str) -> Embedding | None:
        """Return the embedding under `key`, on the CPU; None if there is none. Delete an invalid file."""
        path = self._path(key)
        try:
            embedding = _read(path, key)
            with contextlib.suppress(OSError):  # the folder may be read-only
                os.utime(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(error)
            return None
        except (SafetensorError, ValueError) as error:
            log.warning("%s is not a usable embedding and is removed: %s", path, error)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        self._metrics.embedding_hits.labels("disk").inc()
        return embedding

    def write_later(self, key: str, embedding: Embedding) -> None:
        """Write an embedding in the background. Drop it if MAX_WAITING others are still to be written."""

        def write() -> None:
            try:
                with self._lock:  # one after the other, so that a slow disk costs the memory of one file
                    self.write(key, embedding)
                self._failing = False
            except OSError as error:
                self._warn(error)
            except Exception:
                log.exception("An embedding could not be written.")

        self.writers.start(key, write)

    def write(self, key: str, embedding: Embedding) -> None:
        """Write an embedding, if it fits into the capacity, and remove old files for it. Raises OSError."""
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

    def _make_room(self, size: int, replaced: Path | None = None) -> None:
        """Remove the least recently used files but `replaced` until `size` more bytes fit. Raises OSError."""
        files = []
        for entry in os.scandir(self._folder):
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                status = entry.stat()
                if entry.name.endswith(SUFFIX) and Path(entry.path) != replaced:
                    files.append((status.st_mtime, status.st_size, entry.path))
                elif entry.name.endswith(TEMPORARY) and status.st_mtime < time.time() - STALE_SECONDS:
                    os.unlink(entry.path)
        total = sum(nbytes for _, nbytes, _ in files)
        for _, nbytes, path in sorted(files):
            if total + size <= self._capacity:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            total -= nbytes
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
    size, scaled = (" ".join(map(str, pair)) for pair in (embedding.size, embedding.scaled))
    facts = {"format": FORMAT, "key": key, "size": size, "scaled": scaled}
    return save(tensors, {**facts, "checksum": _checksum(tensors, facts)})


def _read(path: Path, key: str) -> Embedding:
    """Read an embedding. Raises OSError. Raises SafetensorError or ValueError for an invalid file or key."""
    # Not memory-mapped as by safe_open: another process may replace the file, a failing disk raise SIGBUS.
    data = path.read_bytes()
    tensors = load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    facts = header.get("__metadata__", {})
    # The library detects a truncated file, but not one whose pages were never flushed.
    if facts.pop("checksum", "") != _checksum(tensors, facts):
        raise ValueError("its checksum does not match")
    if (facts.get("format"), facts.get("key")) != (FORMAT, key) or not tensors:
        raise ValueError("it belongs to another image or version")
    return Embedding(tensors, _size(facts["size"]), _size(facts["scaled"]))


def _checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    checksum = zlib.crc32(repr(sorted(facts.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        checksum = zlib.crc32(repr((name, tensor.dtype, tuple(tensor.shape))).encode(), checksum)
        checksum = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"


def _size(pair: str) -> tuple[int, int]:
    height, width = pair.split()
    return int(height), int(width)
