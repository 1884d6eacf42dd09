"""Keep the state of a run in text files, so that a killed run resumes from them.

run.json      the identity of the run: another command cannot resume it
lock          held by the running process; the kernel releases it when that ends
items.jsonl   the images of the source, in order, listed at each start, and counts of what was skipped
              (readable by the owner alone, since addresses may be signed)
rows.jsonl    a line per finished image, flushed to the disk; the last line of a key counts
sent.jsonl    the tasks whose predictions Label Studio has taken
samples/      pictures for the contact sheet
"""

import fcntl
import heapq
import json
import os
import re
import shutil
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from backend.datasets.items import Item, digest

Row = dict[str, Any]

DONE, FAILED = "done", "failed"
SKIPPED = "skipped"  # an item that does not count as an image, with the reason
REDUCED = "reduced"  # key in the row of an image that was annotated in half its size, after memory ran out
SAME = "same"  # never saved: the file was replaced by one with the same pixels
# Rows may be megabytes; a start parses only their first keys.
_HEAD = re.compile(rb'\{"key": ("(?:[^"\\]|\\.)*"), "status": "(\w+)"(?:, "stamp": "(\w*)")?')


class StateError(ValueError):
    """The run cannot use its state or DEST. The message contains what to do."""


def state_of(target: Path, part: str = "") -> Path:
    """Return the folder beside DEST for the state of its run. `part`: a suffix for a shard."""
    return target.with_name(f"{target.name}{part}.state")


def check_target(target: Path, *, is_folder: bool, known: bool, restart: bool = True) -> None:
    """Raise StateError if `target` must not be overwritten.

    `known`: whether a state records that a run wrote it. `restart`: whether any file may be overwritten.
    """
    if not target.exists():
        return
    strange = is_folder and not known and target.is_dir() and any(target.iterdir())
    if target.is_dir() != is_folder or strange:
        kind = "folder" if target.is_dir() else "file"
        raise StateError(f"{target} is a {kind} that no run has written; move it, or give another --to")
    if not (known or restart):
        raise StateError(f"{target} is there already; move it, or overwrite it with --restart")


class Unchanged(Exception):
    """Raised if an image's file has changed, but its pixels are those that were annotated."""


class State:
    """The state of one run, or of one shard of it. One process at a time can `open` it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._offsets: dict[str, int] = {}  # of the last row of each key
        self._failed: set[str] = set()
        self._stamps: dict[str, str] = {}  # of the rows' items, if known
        self._file: BinaryIO | None = None

    @property
    def exists(self) -> bool:
        """Return whether a run has begun."""
        return (self.folder / "run.json").exists()

    @contextmanager
    def open(self, identity: Mapping[str, Any], *, restart: bool = False) -> Iterator["State"]:
        """Lock and read the state. `restart` clears it. Raises StateError if it has another identity."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if restart:
                for path in self.folder.iterdir():
                    if path.name != "lock":
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
            self._claim(identity)
            (self.folder / "samples").mkdir(exist_ok=True)
            rows = self.folder / "rows.jsonl"
            self._read(rows)
            with rows.open("ab") as self._file:
                yield self
            self._file = None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.seek(0)
                raise StateError(
                    f"another run is working on {self.folder} ({lock.read(200).strip() or 'unknown'}); "
                    "wait for it, or end it"
                ) from None
            # Replace the line of an earlier process.
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            lock.flush()
            yield

    def _claim(self, identity: Mapping[str, Any]) -> None:
        path = self.folder / "run.json"
        if not self.exists:
            write_text(path, json.dumps(identity, indent=1))
            return
        before = json.loads(path.read_text("utf-8"))
        changed = [name for name in {**before, **identity} if before.get(name) != identity.get(name)]
        if changed:
            changes = "; ".join(
                f"{n} was {_brief(before.get(n))}, is {_brief(identity.get(n))}" for n in changed
            )
            raise StateError(
                f"{self.folder} belongs to another run: {changes}. Repeat that command, give another --to, "
                "or begin again with --restart"
            )

    def _read(self, path: Path) -> None:
        """Read the offset and status of each row. Cut off an incomplete last line."""
        if not path.exists():
            return
        whole = 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                if head := _HEAD.match(line):
                    self._know(json.loads(head[1]), head[2].decode(), (head[3] or b"").decode(), whole)
                whole += len(line)
        os.truncate(path, whole)

    def _know(self, key: str, status: str, stamp: str, offset: int) -> None:
        self._offsets[key] = offset
        self._stamps[key] = stamp
        (self._failed.add if status == FAILED else self._failed.discard)(key)

    def plan(
        self,
        items: Iterable[Item],
        *,
        shard: tuple[int, int],
        limit: int | None,
        samples: int,
        skipped: Mapping[str, int] | None = None,
    ) -> tuple[int, int, frozenset[str]]:
        """Save the items of this shard. Return their number, how many are done, and the keys of samples."""
        total = done = 0
        chosen: list[tuple[str, str]] = []

        def lines(file: BinaryIO) -> None:
            nonlocal total, done
            for index, item in enumerate(items):
                hashed = digest(item.key.encode("utf-8", "replace"))
                if int(hashed, 16) % shard[1] != shard[0] - 1:
                    continue
                if total == limit:
                    break
                file.write(json.dumps({"index": index, **vars(item)}).encode() + b"\n")
                total += 1
                done += self.is_done(item)
                # The smallest hashes, which are the same after a restart.
                chosen.append((hashed, item.key))
                if len(chosen) > 10 * samples:
                    chosen[:] = heapq.nsmallest(samples, chosen)
            file.write(json.dumps({"skipped": skipped or {}}, default=dict).encode() + b"\n")

        write(self.folder / "items.jsonl", lines, private=True)  # addresses may be signed
        return total, done, frozenset(key for _, key in heapq.nsmallest(samples, chosen))

    def is_done(self, item: Item) -> bool:
        """Return whether an item has a row that did not fail. Known stamps of both must be equal."""
        return item.key not in self._failed and self._is_current(item)

    def _is_current(self, item: Item) -> bool:
        known = self._stamps.get(item.key)
        return item.key in self._offsets and (not known or item.stamp in ("", known))

    def pending(self) -> Iterator[Item]:
        """Yield the planned items that have no row, that failed, or whose stamp has changed.

        Items with a changed stamp have the hash of the annotated pixels in `content`.
        """
        for _, item in self._items():
            if self.is_done(item):
                continue
            if item.key in self._offsets and item.key not in self._failed:
                item = replace(item, content=self._row(item.key).get("content", ""))
            yield item

    def _items(self) -> Iterator[tuple[int, Item]]:
        with (self.folder / "items.jsonl").open(encoding="utf-8") as file:
            for line in file:
                fields = json.loads(line)
                if "index" in fields:
                    yield fields.pop("index"), Item(**fields)

    @property
    def skipped(self) -> Counter[str]:
        """Return the counts of what the source skipped when it was listed, by reason."""
        with (self.folder / "items.jsonl").open("rb") as file:
            (last,) = deque(file, maxlen=1)
        return Counter(json.loads(last)["skipped"])

    def save(self, row: Row) -> None:
        """Append a row of {"key", "status", ...} and flush it to the disk."""
        if self._file is None:
            raise StateError("the state is not open")
        offset = self._file.tell()
        head = {name: row[name] for name in ("key", "status", "stamp") if name in row}
        self._file.write(json.dumps({**head, **row}).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._know(row["key"], row["status"], row.get("stamp", ""), offset)

    def renew(self, item: Item) -> None:
        """Save an item's row again, with the item's new stamp. Raises StateError."""
        self.save({**self._row(item.key), "stamp": item.stamp})

    def _row(self, key: str) -> Row:
        with (self.folder / "rows.jsonl").open("rb") as file:
            file.seek(self._offsets[key])
            return dict(json.loads(file.readline()))

    def rows(self) -> Iterator[tuple[int, Item, Row]]:
        """Yield (place in the source, item, row) of all finished items, in the source's order."""
        with (self.folder / "rows.jsonl").open("rb") as file:
            for index, item in self._items():
                offset = self._offsets.get(item.key)
                if offset is not None:
                    file.seek(offset)
                    yield index, item, json.loads(file.readline())

    @property
    def complete(self) -> bool:
        """Return whether every planned item has a row."""
        planned = (self.folder / "items.jsonl").exists()
        return planned and all(self._is_current(item) for _, item in self._items())

    def sample(self, key: str) -> Path:
        return self.folder / "samples" / f"{digest(key.encode('utf-8', 'replace'))}.jpg"


def write(path: Path, fill: Callable[[BinaryIO], object], *, private: bool = False) -> None:
    """Write a file atomically by calling `fill`. Only its owner can read a `private` file."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    mode = 0o600 if private else 0o666  # reduced by the umask
    with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_text(path: Path, text: str) -> None:
    write(path, lambda file: file.write(text.encode("utf-8", "replace")))


def _brief(value: Any) -> str:
    text = " ".join(str(value).split())
    return repr(text if len(text) <= 60 else text[:57] + "...")
