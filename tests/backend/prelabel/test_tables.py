import random
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from backend.prelabel import tables
from backend.prelabel.tables import Cells
from model.types import ImageError

DATA = [bytes([number]) * 100 for number in range(60)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """60 rows in groups of 20."""
    table = pyarrow.table({"image": [{"bytes": data, "path": "x"} for data in DATA]})
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=20)
    return tmp_path / "rows.parquet"


class Counting(Cells):
    """Counts how often reading begins."""

    began = 0

    def _from(self, place: int):  # type: ignore[no-untyped-def]
        self.began += 1
        return super()._from(place)


def test_rows_in_order_are_read_once(path: Path) -> None:
    cells = Counting(str(path), "image", 1000)
    assert [cells.read(place) for place in range(60)] == DATA
    assert cells.began == 1


def test_rows_nearly_in_order_are_read_once(path: Path) -> None:
    """As four threads ask for them."""
    cells = Counting(str(path), "image", 1000)
    order = [place + swap for place in range(0, 60, 4) for swap in (2, 0, 3, 1)]
    assert [cells.read(place) for place in order] == [DATA[place] for place in order]
    assert cells.began == 1


def test_rows_in_any_order_are_right_and_far_ones_are_not_walked_to(path: Path) -> None:
    cells = Counting(str(path), "image", 1000)
    order = random.Random(3).sample(range(60), 60)
    assert [cells.read(place) for place in order] == [DATA[place] for place in order]
    cells = Counting(str(path), "image", 1000)
    assert cells.read(59) == DATA[59]
    assert max(cells.passed) == 58
    assert min(cells.passed) > 40
    assert len(cells.passed) == Cells.KEPT


def test_bytes_beyond_the_limit_are_not_kept(path: Path) -> None:
    cells = Cells(str(path), "image", 99)
    for place in (9, 3):
        with pytest.raises(ImageError, match="more than 99 bytes"):
            cells.read(place)
    assert not any(isinstance(cell, bytes) for cell in cells.passed.values())


def test_a_broken_group_spoils_no_other(path: Path) -> None:
    data = bytearray(path.read_bytes())
    start = parquet.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[start : start + 60] = b"\xff" * 60
    path.write_bytes(data)
    cells = Cells(str(path), "image", 1000)
    for place in (*range(20), *range(40, 60), 20, 39, 7):
        if 20 <= place < 40:
            with pytest.raises(ImageError, match="row of the parquet file cannot be read"):
                cells.read(place)
        else:
            assert cells.read(place) == DATA[place]


def test_a_file_that_is_gone_is_said(path: Path) -> None:
    cells = Cells(str(path), "image", 1000)
    path.unlink()
    with pytest.raises(ImageError, match=r"cannot be read .FileNotFoundError"):
        cells.read(0)


def test_schemes() -> None:
    assert tables.scheme_of("S3://bucket/a.png") == "s3"
    for path in ("a.png", "/a://b", "a::b://c", "://x", "1x://y", "data:,x"):
        assert tables.scheme_of(path) is None
