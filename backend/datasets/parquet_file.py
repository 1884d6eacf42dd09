"""Write a parquet file with a row per image."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from backend.datasets.items import need
from backend.datasets.objects import Files, Finished, Objects
from backend.datasets.run_state import Row, write
from backend.images import local_files


class Parquet(Objects):
    """A parquet file with a row per image: its key, address, data as JSON, size, error and detections."""

    def __init__(self, path: Path, version: str | None) -> None:
        need("pyarrow.parquet", "parquet files")  # before the work, not after
        super().__init__(path)
        self._version = version

    def write(self, rows: Finished, names: Sequence[str]) -> Files:
        arrow, parquet = need("pyarrow", "parquet files"), need("pyarrow.parquet", "parquet files")
        text, real, whole = arrow.string(), arrow.float64(), arrow.int32()
        mask = arrow.struct([("size", arrow.list_(whole)), ("counts", text)])
        detection = arrow.struct(
            [("term", text), ("label", text), ("score", real), ("box", arrow.list_(real)), ("mask", mask)]
        )
        columns = {
            "key": text,
            "image": text,
            "data": text,
            "width": whole,
            "height": whole,
            "error": text,
            "model_version": text,
            "detections": arrow.list_(detection),
        }
        schema = arrow.schema(list(columns.items()))

        def fill(file: BinaryIO) -> None:
            batch: list[Row] = []
            with parquet.ParquetWriter(file, schema) as writer:
                for item, row in rows():
                    about = {"key": item.key, "image": item.address, "data": json.dumps(item.data)}
                    kept = {name: row.get(name) for name in ("width", "height", "detections")}
                    version = row.get("model_version", self._version)
                    record = {**about, **kept, "error": row.get("reason"), "model_version": version}
                    batch.append(local_files.with_text(record))
                    if len(batch) == 500:
                        writer.write_table(arrow.Table.from_pylist(batch, schema))
                        batch.clear()
                writer.write_table(arrow.Table.from_pylist(batch, schema))

        write(self._path, fill)
        return Counter()
