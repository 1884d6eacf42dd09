"""Read manifests: CSV, JSON Lines, and parquet, which may contain the images themselves."""

import csv
import io
import json
import re
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import fsspec

from backend.datasets.items import SourceError, need
from model import connections
from model.types import ImageError

Row = dict[str, Any]
Cell = bytes | ImageError | None

_SCHEME = re.compile(r"(?i)([a-z][a-z0-9+.-]*)://")


def scheme_of(address: str) -> str | None:
    """Return the scheme of a URI in lower case; None for a local path."""
    match = _SCHEME.match(address)
    return match[1].lower() if match else None


def reason(error: Exception) -> str:
    return connections.distrust(error) or " ".join(str(error).split())[:200] or type(error).__name__


def rows(source: str, image_key: str, skipped: Counter[str]) -> Iterator[tuple[Row, int | None]]:
    """Yield (row, place of its embedded image for `Cells`, or None) of a manifest. Raises SourceError."""
    try:
        match PurePosixPath(source.lower()).suffix:
            case ".csv":
                yield from ((row, None) for row in _csv(source, skipped))
            case ".jsonl":
                yield from ((row, None) for row in _jsonl(source))
            case _:
                yield from _parquet(source, image_key, skipped)
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(f"{source} cannot be read: {reason(error)}") from None


def _csv(source: str, skipped: Counter[str]) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # a cell may contain an image, as a data address
    with _opened(source) as file, _text(file, newline="") as lines:
        for row in csv.DictReader(lines, restkey="", strict=True):
            if row.pop("", None):
                skipped["cells of a list that no column has a name for"] += 1
            yield row


def _jsonl(source: str) -> Iterator[Row]:
    with _opened(source) as file, _text(file) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, parse_constant=_no_number)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise SourceError(f"{source}, line {number} is not a JSON object")
            yield row


def _text(file: BinaryIO, newline: str | None = None) -> io.TextIOWrapper:
    # As in folders, names of files may be no UTF-8.
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def _no_number(name: str) -> None:
    """Return None for NaN and infinities, which Python reads, but JSON does not have."""


def _parquet(source: str, image_key: str, skipped: Counter[str]) -> Iterator[tuple[Row, int | None]]:
    with _parquet_file(source) as file:
        names, embedded = [], False
        for column in file.schema_arrow:
            if not _holds_bytes(column.type):
                names.append(column.name)
            elif column.name == image_key:
                embedded = True
                names += [f"{image_key}.path"] if "path" in _children(column.type) else []
            else:
                skipped[f"column of bytes, which no task can hold: {column.name}"] += 1
        place = 0
        for batch in file.iter_batches(batch_size=16, columns=names, use_threads=False):
            for row in batch.to_pylist():
                # A task's data is JSON, so times and decimals become text.
                row = json.loads(json.dumps(row, default=str), parse_constant=_no_number)
                yield ({image_key: None, **row}, place) if embedded else (row, None)
                place += 1


class Cells:
    """Reads images from a parquet column of bytes, or of Hugging Face's {"bytes", "path"}.

    Rows that are read nearly in order are decoded once. They are decoded page by page, since a row group may
    have gigabytes. Safe to share among threads.
    """

    KEPT = 8

    def __init__(self, source: str, column: str, most: int) -> None:
        self._source, self._column, self._most = source, column, most
        self._lock = threading.Lock()
        self._ends: list[int] = []  # of the row groups
        self._reading: Iterator[tuple[int, Cell]] = iter(())
        self._next = 0  # the place that it yields next
        self.passed: dict[int, Cell] = {}  # the last cells read on the way to another, by place

    def __reduce__(self) -> tuple[type["Cells"], tuple[str, str, int]]:
        return Cells, (self._source, self._column, self._most)  # locks cannot be pickled

    def read(self, place: int) -> bytes | None:
        """Return the bytes in row `place`, counted from 0; None if it has none. Raises ImageError."""
        with self._lock:
            try:
                cell = self._find(place)
            except Exception as error:  # of a file that is broken
                self._ends = []
                name = type(error).__name__
                raise ImageError(f"The row of the parquet file cannot be read ({name}).") from None
        if isinstance(cell, ImageError):
            raise cell
        return cell

    def _find(self, place: int) -> Cell:
        if place in self.passed:
            return self.passed.pop(place)
        group = bisect_right(self._ends, place)
        if not self._ends or place < self._next or group != bisect_right(self._ends, self._next):
            self._reading = self._from(place)
        for now, cell in self._reading:
            self._next = now + 1
            if now == place:
                return cell
            self.passed[now] = cell
            if len(self.passed) > self.KEPT:
                del self.passed[next(iter(self.passed))]
        raise IndexError(place)

    def _from(self, place: int) -> Iterator[tuple[int, Cell]]:
        """Yield cells with their places, from the start of the row group that contains `place`."""
        with _parquet_file(self._source) as file:
            metadata = file.metadata
            counts = (metadata.row_group(n).num_rows for n in range(metadata.num_row_groups))
            self._ends = list(accumulate(counts))
            group = bisect_right(self._ends, place)
            now = self._ends[group - 1] if group else 0
            nested = _children(file.schema_arrow.field(self._column).type)
            columns = [f"{self._column}.bytes" if nested else self._column]
            groups = range(group, len(self._ends))
            batches = file.iter_batches(batch_size=1, row_groups=groups, columns=columns, use_threads=False)
            for batch in batches:
                cells = batch.column(0).field("bytes") if nested else batch.column(0)
                for cell in cells.dictionary_decode() if hasattr(cells, "dictionary_decode") else cells:
                    data = cell.as_buffer()
                    if data is not None and data.size > self._most:
                        limit = f"{self._most} bytes (VLSAM_MAX_IMAGE_BYTES)"
                        yield now, ImageError(f"The image has more than {limit}.")
                    else:
                        yield now, None if data is None else bytes(data.to_pybytes())
                    now += 1


@contextmanager
def _parquet_file(source: str) -> Iterator[Any]:
    parquet = need("pyarrow.parquet", "parquet files")
    with _opened(source) as file, parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as opened:
        yield opened


def _children(kind: Any) -> dict[str, Any]:
    return {kind.field(n).name: kind.field(n).type for n in range(kind.num_fields)}


def _holds_bytes(kind: Any) -> bool:
    of_bytes = re.match(r"(large_)?binary|fixed_size_binary", str(kind)) is not None
    inside = list(_children(kind).values()) or [getattr(kind, "value_type", None)]  # of a dictionary
    return of_bytes or any(_holds_bytes(child) for child in inside if child is not None)


def _opened(source: str) -> AbstractContextManager[BinaryIO]:
    return open(source, "rb") if scheme_of(source) is None else fsspec.open(source, "rb")
