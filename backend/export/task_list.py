"""A JSON file of tasks with annotations or predictions, to import into Label Studio."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from backend.datasets.objects import Files, Finished, done, written
from backend.datasets.run_state import Row, write


class TaskList:
    """A list of tasks as Label Studio imports it, each with its selected entry under `key`."""

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key

    def keep(self, entry: Mapping[str, Any]) -> Row:
        names = ("result", "ground_truth", "lead_time", "score", "model_version")
        return {"taken": {name: entry[name] for name in names if entry.get(name) is not None}}

    def write(self, rows: Finished, names: Sequence[str]) -> Files:
        def fill(file: BinaryIO) -> None:
            file.write(b"[")
            written(file, ({"data": item.data, self._key: [row["taken"]]} for item, row in done(rows)))
            file.write(b"\n]\n")

        write(self._path, fill)
        return Counter()
