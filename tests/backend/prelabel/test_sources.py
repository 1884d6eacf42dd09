import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import fsspec
import pyarrow
import pytest
from pyarrow import parquet

from backend.fetch import ImageError
from backend.prelabel import sources
from backend.prelabel.sources import Item, SourceError
from backend.settings import Settings
from tests.backend.conftest import data_url


def items(source: str, prefix: str | None = None, key: str = "image") -> list[Item]:
    return list(sources.choose(source, Settings(), image_key=key, prefix=prefix).items())


def red(source: str, item: Item, settings: Settings | None = None) -> int:
    chosen = sources.choose(source, settings or Settings(), image_key="image", prefix=None)
    return int(chosen.loader.load(item)[0, 0, 0])


def test_a_folder_as_it_was_given(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    for given, address in (
        ("photos", "photos/a.png"),
        ("photos/", "photos/a.png"),
        ("./photos", "./photos/a.png"),
    ):
        found = items(given)
        assert found[0] == Item("a.png", address, {"image": address}, name="a.png")
        assert [item.key for item in found][4] == "deep/g h.png"
        assert len(found) == 7
        assert red(given, found[4]) == 7


def test_a_glob_and_a_single_file(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [item.key for item in items(f"{photos}/[ab].png")] == ["a.png", "b.png"]
    assert [item.key for item in items(f"{photos}/**/*h.png")] == ["deep/g h.png"]
    monkeypatch.chdir(photos)
    assert items("a.png") == [Item("a.png", "a.png", {"image": "a.png"}, name="a.png")]
    assert [item.address for item in items("deep/*.png")] == ["deep/g h.png"]


def test_uris_of_other_file_systems(photos: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("x/one.png", "x/y/two.png", "x/notes.txt"):
        memory.pipe(f"/{name}", (photos / "b.png").read_bytes())
    try:
        found = items("memory://x", prefix="s3://bucket/")
        assert [item.data["image"] for item in found] == ["s3://bucket/one.png", "s3://bucket/y/two.png"]
        assert [item.address for item in found] == ["memory://x/one.png", "memory://x/y/two.png"]
        assert red("memory://x", found[1]) == 2
        assert [item.key for item in items("memory://x/*.png")] == ["one.png"]
    finally:
        memory.rm("/x", recursive=True)


class _S3(BaseHTTPRequestHandler):
    """As much of S3 as lists a bucket and gives its files."""

    files: dict[str, bytes]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].removeprefix("/bucket").strip("/")
        if not path:
            found = "".join(
                f"<Contents><Key>{name}</Key><Size>{len(data)}</Size><LastModified>2026-01-01T00:00:00.000Z"
                f'</LastModified><ETag>"0"</ETag><StorageClass>STANDARD</StorageClass></Contents>'
                for name, data in self.files.items()
            )
            listing = (
                '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
                f"<Name>bucket</Name><KeyCount>{len(self.files)}</KeyCount><IsTruncated>false</IsTruncated>"
                f"{found}</ListBucketResult>"
            )
            self._answer(200, listing.encode())
        elif path in self.files:
            self._answer(200, self.files[path])
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def s3(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    _S3.files = {"in/a.png": (photos / "a.png").read_bytes(), "in/b.png": (photos / "b.png").read_bytes()}
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _S3) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        yield
        server.shutdown()


def test_s3(s3: None) -> None:
    found = items("s3://bucket/in")
    assert [(item.key, item.address) for item in found] == [
        ("a.png", "s3://bucket/in/a.png"),
        ("b.png", "s3://bucket/in/b.png"),
    ]
    assert red("s3://bucket/in", found[1]) == 2
    gone = Item("c", "s3://bucket/in/c.png", {})
    with pytest.raises(ImageError, match="no such file"):
        red("s3://bucket/in", gone)


def test_manifests_of_three_kinds_say_the_same(photos: Path, tmp_path: Path) -> None:
    rows = [
        {"image": "photos/a.png", "shelf": "upper"},
        {"image": str(photos / "b.png"), "shelf": "lower"},
        {"image": "photos/a.png", "shelf": ""},
        {"image": data_url(shade=9), "shelf": "none"},
    ]
    lines = "".join(f"{row['image']},{row['shelf']}\n" for row in rows[:3])
    # A data address has a comma.
    (tmp_path / "list.csv").write_text(f'image,shelf\n{lines}"{rows[3]["image"]}",none\n', "utf-8-sig")
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "list.parquet")
    for kind in ("csv", "jsonl", "parquet"):
        source = str(tmp_path / f"list.{kind}")
        found = items(source)
        assert [item.data for item in found] == rows
        assert [item.key for item in found][:3] == ["photos/a.png", str(photos / "b.png"), "photos/a.png#2"]
        assert [red(source, item) for item in found] == [1, 2, 1, 9]


def test_what_json_does_not_know_is_null_and_cells_may_hold_images(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "weight": float("nan")}, {"image": "b.png", "weight": float("inf")}]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "list.parquet")
    for kind in ("jsonl", "parquet"):
        assert [item.data["weight"] for item in items(str(tmp_path / f"list.{kind}"))] == [None, None]
    (tmp_path / "list.csv").write_text(f'image\n"data:{"x" * 200_000}"\n')
    assert len(items(str(tmp_path / "list.csv"))[0].address) == 200_005


def test_the_config_names_the_column_and_an_id_the_row(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"photo": "a.png", "id": 7, "image": "no"}\n\n{"photo": null, "id": 8}\n')
    one, other = items(str(path), key="photo")
    assert (one.key, one.address) == ("7", f"{tmp_path}/a.png")
    assert (other.key, other.address) == ("8", "")


def test_long_addresses_have_short_keys(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    addresses = ["data:" + "x" * 400 + end for end in "yzz"]
    path.write_text("".join(json.dumps({"image": address}) + "\n" for address in addresses))
    one, two, three = (item.key for item in items(str(path)))
    assert len(one) < 50
    assert one != two
    assert three == f"{two}#2"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("l.csv", "picture,shelf\na.png,1\n", r"row 1: no column 'image' .* but picture, shelf"),
        ("l.jsonl", '{"image": "a.png"}\nhello\n', r"line 2 is no JSON object"),
        ("l.jsonl", '{"image": "a.png", "id": 1}\n{"image": "b.png", "id": 1}', r"id '1' is there twice"),
        ("l.parquet", "no parquet", r"l.parquet cannot be read: "),
    ],
)
def test_a_list_that_is_wrong_is_said_before_anything_begins(
    name: str, text: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=reason):
        items(str(tmp_path / name))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("nowhere.csv", "nowhere.csv cannot be read"),
        ("odd://bucket/x", "odd:// addresses: Protocol not known: odd"),
        ("{photos}/notes.txt", "has no images"),
    ],
)
def test_a_source_that_is_none(source: str, reason: str, photos: Path) -> None:
    with pytest.raises(SourceError, match=reason):
        items(source.format(photos=photos))


def test_an_image_that_cannot_be_had_says_why(photos: Path) -> None:
    for address, reason in (
        ("nowhere.png", "There is no such file"),
        (str(photos), "cannot be read .IsADirectoryError."),
        ("", "There is no image address"),
        ("odd://x/y.png", "Protocol not known: odd"),
        ("http://127.0.0.1:9/x.png", "VLSAM_ALLOWED_HOSTS"),
    ):
        with pytest.raises(ImageError, match=reason):
            red(str(photos), Item("x", address, {}))
    with pytest.raises(ImageError, match="more than 20 bytes"):
        red(str(photos), Item("x", str(photos / "a.png"), {}), Settings(max_image_bytes=20))
