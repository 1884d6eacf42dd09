import json
import os
import pickle
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote

import fsspec
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from backend.datasets.items import Item, SourceError
from backend.images.output_files import save
from backend.prelabel import sources
from backend.settings import Settings
from model.types import ImageError
from tests.support.images import data_url
from tests.support.settings import settings_with


def items(source: str, prefix: str | None = None, key: str = "image") -> list[Item]:
    return list(sources.choose(source, Settings(), image_key=key, prefix=prefix).items())


def red(source: str, item: Item, settings: Settings | None = None) -> int:
    chosen = sources.choose(source, settings or Settings(), image_key="image", prefix=None)
    return int(chosen.loader.read(item)[1][0, 0, 0])


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


NAMES = (
    "what?.png",
    "a#b.png",
    "a::b.png",
    "data:,x.png",
    "[1].png",
    "100%25.png",
    " blank .png",
    "new\nline.png",
)


@pytest.mark.parametrize("name", NAMES)
def test_odd_names_in_folders_and_lists(name: str, photos: Path, tmp_path: Path) -> None:
    (photos / "a.png").rename(photos / name)
    (item,) = (item for item in items(str(photos), prefix="/p/") if item.key == name)
    assert unquote(item.data["image"]) == f"/p/{name}"
    assert not {"?", "#", " ", "\n"} & set(item.data["image"])
    assert red(str(photos), item) == 1
    (tmp_path / "list.jsonl").write_text(json.dumps({"image": f"photos/{name}", "id": "x"}))
    (listed,) = items(str(tmp_path / "list.jsonl"))
    assert red(str(tmp_path / "list.jsonl"), listed) == 1


@pytest.mark.parametrize("name", NAMES)
def test_odd_names_on_the_command_line(name: str, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "a.png").rename(photos / name)
    monkeypatch.chdir(photos)
    if name.startswith("data:"):
        name = f"./{name}"  # as with any program that knows addresses
    (item,) = items(name)
    assert red(name, item) == 1
    (item,) = (item for item in items("*.png") if item.key == name.removeprefix("./"))
    assert red("*.png", item) == 1


def test_names_that_are_no_utf8_are_text_everywhere_but_in_the_path(photos: Path, tmp_path: Path) -> None:
    for raw, number in ((b"\xff.png", 1), (b"caf\xe9\xff.png", 2), (b"\\xff.png", 3)):
        os.rename(os.fsencode(photos / f"{'abc'[number - 1]}.png"), os.fsencode(photos) + b"/" + raw)
    found = {item.key: item for item in items(str(photos)) if "xff" in item.key}
    assert len(found) == 3
    assert {"\\xff.png", "caf\\xe9\\xff.png"} < set(found)  # and a third, for two names look the same
    assert sorted(red(str(photos), item) for item in found.values()) == [1, 2, 3]
    for item in found.values():
        for text in (item.key, item.name, str(item.data)):
            text.encode()
    prefixed = [item.data["image"] for item in items(str(photos), prefix="/p/")]
    assert "/p/caf%E9%FF.png" in prefixed
    # A list may have the bytes that the names have.
    lines = b"image,shelf\nphotos/caf\xe9\xff.png,caf\xe9\n"
    (tmp_path / "list.csv").write_bytes(lines)
    source = sources.choose(str(tmp_path / "list.csv"), Settings(), image_key="image", prefix=None)
    (item,) = source.items()
    assert red(str(photos), item) == 2
    assert item.key == "photos/caf\\xe9\\xff.png"
    assert item.data == {"image": "photos/caf\\xe9\\xff.png", "shelf": "caf\\xe9"}
    assert list(source.skipped.values()) == [1]


def test_surrogates_in_json_are_text(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"image": "a\\ud800.png", "more": {"\\udfff": ["\\udc80", 1, "\\ud83d\\ude00"]}}')
    (item,) = items(str(path))
    json.dumps([item.key, item.name, item.data], ensure_ascii=False).encode()
    assert item.data["more"] == {"\\xed\\xbf\\xbf": ["\\x80", 1, "😀"]}


def test_keys_of_a_list_are_never_shared(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("image\n" + "".join(f"{name}\n" for name in ("a#2", "a", "a", "a#2", "a#2#2", "a")))
    found = items(str(path))
    assert len({item.key for item in found}) == 6
    assert [item.address.rpartition("/")[2] for item in found] == ["a#2", "a", "a", "a#2", "a#2#2", "a"]


def test_cells_without_a_column_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("image,shelf\na.png,1,2\nb.png,1\n")
    source = sources.choose(str(path), Settings(), image_key="image", prefix=None)
    assert [item.data for item in source.items()] == [
        {"image": "a.png", "shelf": "1"},
        {"image": "b.png", "shelf": "1"},
    ]
    assert source.skipped == {"cells of a list that no column has a name for": 1}


@pytest.mark.parametrize(
    "address",
    [
        "simplecache::http://169.254.169.254/latest/meta-data",
        "filecache::simplecache::https://example.org/x.png",
        "zip://x.png::http://169.254.169.254/x.zip",
        "blockcache::{photos}://a.png",
        "file://{photos}/a.png",
        "FILE://{photos}/a.png",
        "local://{photos}/a.png",
        "memory://x/a.png",
        "github://org:repo@/a.png",
        "ftp://127.0.0.1/a.png",
        "sftp://127.0.0.1/a.png",
        "ssh://127.0.0.1/a.png",
        "smb://127.0.0.1/a.png",
        "webhdfs://127.0.0.1/a.png",
        "zip://a.png",
        "reference://a.png",
        "dir://{photos}/a.png",
        "git://a.png",
        "jupyter://127.0.0.1/a.png",
        "python://x",
        "odd://x",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_f14_lists_are_hostile_their_addresses_open_no_other_file_system(
    address: str, kind: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = address.format(photos=photos)
    path = tmp_path / f"list.{kind}"
    match kind:
        case "csv":
            path.write_text(f'image\n"{address}"\n')
        case "jsonl":
            path.write_text(json.dumps({"image": {"path": address, "bytes": None}}))
        case _:
            rows = [{"image": {"path": address, "bytes": None}}]
            schema = pyarrow.schema(
                {"image": pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})}
            )
            parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path)
    opened: list[object] = []
    monkeypatch.setattr(fsspec, "get_filesystem_class", lambda *args: opened.append(args))
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda *args, **more: opened.append(args))
    (item,) = items(str(path))
    with pytest.raises(ImageError, match=r"is refused|is not supported"):
        red(str(path), item)
    assert opened == []


def test_f14_a_list_asks_http_addresses_by_the_guarded_way(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("image\nHTTP://169.254.169.254/latest/meta-data\nhttps://[::1]/x.png\n")
    for item in items(str(path)):
        with pytest.raises(ImageError, match="VLSAM_ALLOWED_HOSTS"):
            red(str(path), item)


def test_chains_are_refused_on_the_command_line_too(tmp_path: Path) -> None:
    for source in ("simplecache::s3://bucket/*.jpg", "zip://*.jpg::s3://bucket/x.zip", "zip://l.csv::x.zip"):
        with pytest.raises(SourceError, match=r"several file systems"):
            items(source)


def test_what_is_typed_may_be_a_file_uri(photos: Path, tmp_path: Path) -> None:
    assert items(f"file://{photos}")[0].address == f"{photos}/a.png"
    (tmp_path / "list.csv").write_text("image\nphotos/a.png\n")
    (item,) = items(f"file://{tmp_path}/list.csv")
    assert red(f"file://{tmp_path}/list.csv", item) == 1


def test_a_folder_may_be_called_as_a_list(photos: Path, tmp_path: Path) -> None:
    photos.rename(tmp_path / "photos.csv")
    assert len(items(f"{tmp_path}/photos.csv")) == 7


def test_a_folder_says_what_it_left_out(photos: Path) -> None:
    (photos / "._a.png").touch()
    source = sources.choose(str(photos), Settings(), image_key="image", prefix=None)
    for _ in range(2):  # the counts are of one listing
        assert len(list(source.items())) == 7
        assert source.skipped == {"macOS's shadow of a file (._)": 1, "no image by its name: .txt": 1}
    with pytest.raises(SourceError, match=r"has no images \(.jpg.*but 1 x no image by its name: .txt"):
        items(str(photos / "*.txt"))


def test_pictures_drawn_beside_the_images_are_left_out(photos: Path) -> None:
    save(np.zeros((4, 4, 3), np.uint8), photos / "a-2.png")
    os.mkfifo(photos / "pipe.png")  # fails when it is read, and is not waited for before
    chosen = sources.choose(str(photos), Settings(), image_key="image", prefix=None)
    assert [item.key for item in chosen.items()][:2] == ["a.png", "b.png"]
    assert chosen.skipped["picture of an earlier run"] == 1
    assert [item.key for item in items(f"{photos}/a*.png")] == ["a.png"]
    assert [item.key for item in items(f"{photos}/a-2.png")] == ["a-2.png"]  # it was named


def test_a_stamp_follows_the_file(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text(
        '{"image": "photos/a.png", "id": 1}\n{"image": "photos/b.png", "id": 2}'
    )

    def stamps(source: Path) -> list[str]:
        return [item.stamp for item in items(str(source))][:2]

    before = [stamps(photos), stamps(tmp_path / "list.jsonl")]
    assert before == [stamps(photos), stamps(tmp_path / "list.jsonl")]
    # A file of the same size and time.
    data, times = (photos / "a.png").read_bytes(), (photos / "a.png").stat()
    (photos / "new").write_bytes(data)
    os.replace(photos / "new", photos / "a.png")
    os.utime(photos / "a.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    for old, new in zip(before, [stamps(photos), stamps(tmp_path / "list.jsonl")], strict=True):
        assert old[0] != new[0]
        assert old[1] == new[1]
    # An id that stands for another file now.
    (tmp_path / "list.jsonl").write_text(
        '{"image": "photos/b.png", "id": 1}\n{"image": "photos/b.png", "id": 2}'
    )
    assert stamps(tmp_path / "list.jsonl") == [before[1][1]] * 2


def test_parquet_with_the_images_inside(photos: Path, tmp_path: Path) -> None:
    data = [(photos / f"{name}.png").read_bytes() for name in "abc"]
    rows: list[dict[str, object]] = [
        {"image": {"bytes": data[0], "path": "x/one.png"}, "label": 3, "mask": {"bytes": b"1", "path": "m"}},
        {"image": {"bytes": data[1], "path": None}, "label": 4, "mask": None},
        {"image": {"bytes": None, "path": "photos/c.png"}, "label": 5, "mask": None},
        {"image": None, "label": 6, "mask": None},
        {"image": {"bytes": b"no image", "path": "x/one.png"}, "label": 7, "mask": None},
    ]
    path = tmp_path / "hf.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    source = sources.choose(str(path), Settings(), image_key="image", prefix=None)
    found = list(source.items())
    assert [(item.key, item.data) for item in found] == [
        ("x/one.png", {"image": "x/one.png", "label": 3}),
        ("row 2", {"image": "row 2", "label": 4}),
        ("photos/c.png", {"image": "photos/c.png", "label": 5}),
        ("row 4", {"image": "row 4", "label": 6}),
        ("x/one.png#2", {"image": "x/one.png", "label": 7}),
    ]
    assert source.skipped == {"column of bytes, which no task can hold: mask": 1}
    loader = pickle.loads(pickle.dumps(source.loader))  # as for the workers of a cluster
    assert [int(loader.read(item)[1][0, 0, 0]) for item in found[:3]] == [1, 2, 3]
    assert loader.read(found[0])[0] == data[0]
    assert loader.path(found[0]) is None
    for item, why in ((found[3], "no image address"), (found[4], "text where an image should be")):
        with pytest.raises(ImageError, match=why):
            loader.read(item)[1]


def test_parquet_with_a_column_of_bytes(photos: Path, tmp_path: Path) -> None:
    data = [(photos / f"{name}.png").read_bytes() for name in "abc"]
    kinds = (pyarrow.binary(), pyarrow.large_binary(), pyarrow.dictionary(pyarrow.int32(), pyarrow.binary()))
    for kind in kinds:
        parquet.write_table(pyarrow.table({"photo": pyarrow.array(data, kind)}), tmp_path / "b.parquet")
        source = sources.choose(str(tmp_path / "b.parquet"), Settings(), image_key="photo", prefix=None)
        found = list(source.items())
        assert [item.key for item in found] == ["row 1", "row 2", "row 3"]
        assert [int(source.loader.read(item)[1][0, 0, 0]) for item in found] == [1, 2, 3]
    small = sources.choose(
        str(tmp_path / "b.parquet"), settings_with(max_image_bytes=20), image_key="photo", prefix=None
    )
    with pytest.raises(ImageError, match="more than 20 bytes"):
        small.loader.read(next(small.items()))[1]


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


def test_images_that_are_deep_in_a_tasks_data(photos: Path, tmp_path: Path) -> None:
    """A column of that name becomes what Label Studio imports, and what it imports is taken as it is."""
    nested = {"photo": {"url": "a.png"}, "shelf": "upper"}
    (tmp_path / "list.csv").write_text("photo.url,shelf\na.png,upper\n")
    (tmp_path / "list.jsonl").write_text(json.dumps(nested) + "\n")
    for kind in ("csv", "jsonl"):
        (item,) = items(str(tmp_path / f"list.{kind}"), key="photo.url")
        assert (item.key, item.address, item.data) == ("a.png", f"{tmp_path}/a.png", nested)
    assert items(str(photos), key="imgs[0]")[0].data == {"imgs": [f"{photos}/a.png"]}
    with pytest.raises(ValueError, match=r"the image is imgs\[1\], which is one of several"):
        items(str(photos), key="imgs[1]")
    with pytest.raises(SourceError, match=r"no column 'photo.uri' for the image's address, but photo, shelf"):
        items(str(tmp_path / "list.jsonl"), key="photo.uri")


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
        ("l.jsonl", '{"image": "a.png"}\nhello\n', r"line 2 is not a JSON object"),
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
        ("odd://x/y.png", "is refused: a list has paths"),
        ("http://127.0.0.1:9/x.png", "VLSAM_ALLOWED_HOSTS"),
    ):
        with pytest.raises(ImageError, match=reason):
            red(str(photos), Item("x", address, {}))
    with pytest.raises(ImageError, match="more than 20 bytes"):
        red(str(photos), Item("x", str(photos / "a.png"), {}), settings_with(max_image_bytes=20))
