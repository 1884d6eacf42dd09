import base64
import posixpath
from pathlib import PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backend.datasets.file_names import file_names, image_name, stems

SIGNED = base64.urlsafe_b64encode(b"s3://bucket/2026/a b?.jpg").decode()


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/data/local-files/?d=cam1/a%20b.jpg", "cam1/a b.jpg"),
        ("/data/local-files/?d=cam1%2Fa%2Bb.jpg&x=1", "cam1/a+b.jpg"),
        ("https://studio.example/ls/data/local-files/?d=a/b.jpg", "a/b.jpg"),
        ("/data/upload/7/5ab9-dog.jpg", "5ab9-dog.jpg"),
        ("https://studio.example/data/upload/7/5ab9-dog.jpg?token=x", "5ab9-dog.jpg"),
        ("/storage-data/uploaded/?filepath=upload/7/5ab9-dog.jpg", "5ab9-dog.jpg"),
        (f"/tasks/12/presign/?fileuri={SIGNED}", "2026/a b?.jpg"),
        (f"/tasks/12/resolve/?fileuri={SIGNED}", "2026/a b?.jpg"),
        ("/tasks/12/presign/?fileuri=%FF", ""),
        ("s3://bucket/cam1/a%20b?#.jpg", "cam1/a%20b?#.jpg"),
        ("https://host.example/x/a%20b.jpg?size=2#top", "a b.jpg"),
        ("https://host.example/", ""),
        ("https://[host/a.jpg", "a.jpg"),
        ("data:image/png;base64,AAAA/a.png", ""),
        ("", ""),
        # The data of tasks is anybody's, and these names are joined to folders.
        ("/data/local-files/?d=../../etc/passwd", "etc/passwd"),
        ("s3://bucket/../..\\a.jpg", "a.jpg"),
    ],
)
def test_an_address_of_a_task(address: str, name: str) -> None:
    assert image_name(address, local=False) == name


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("photos/a?b#c::d.jpg", "photos/a?b#c::d.jpg"),
        ("/data/local-files/?d=a.jpg", "/data/local-files/?d=a.jpg"),  # a path, however odd
        ("../a%20b.jpg", "../a%20b.jpg"),
        ("file:///data/a.jpg", "/data/a.jpg"),
        ("https://host.example/data/local-files/?d=a/b.jpg", "a/b.jpg"),
    ],
)
def test_an_address_of_a_folder_or_list(address: str, name: str) -> None:
    assert image_name(address, local=True) == name


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["a.png", "deep/g h.png", "b.x.jpg"], ["a", "g h", "b.x"]),
        (["cam1/1.jpg", "cam2/1.jpg", "2.jpg"], ["cam1-1", "cam2-1", "2"]),
        (["a.png", "a.jpg", "x/A.jpg"], ["a", "a-2", "x-A"]),
        (["1/a.png", "2/a.png", "1-a.png"], ["1-a-2", "2-a", "1-a"]),  # one keeps a name that is its alone
        (["image", "image", "image"], ["image", "image-2", "image-3"]),
        (["/data/a.png", "/x/a.png"], ["data-a", "x-a"]),
        ([".a.png", "line\nbreak.png", "\udcff.png", ""], ["_a", "line_break", "_", "image"]),
        (["x" * 300 + "end.png"], ["x" * 197 + "end"]),
    ],
)
def test_stems(names: list[str], wanted: list[str]) -> None:
    assert list(stems(lambda: names)) == wanted


paths = st.lists(
    st.text(st.sampled_from("aAé\u0301./-1 \n\udcff"), max_size=8).map(lambda t: t + ".jpg"), max_size=8
)


@given(paths)
@example(["\u00e9.jpg", "e\u0301.jpg"])
@example(["a/b.jpg", "a-b.jpg", "c/b.jpg", "a-b-2.jpg", "a-b.jpg"])
def test_stems_name_files_beside_each_other(names: list[str]) -> None:
    found = list(stems(lambda: names))
    assert len({stem.casefold() for stem in found}) == len(names)
    assert not any(stem.startswith(".") or "/" in stem for stem in found)
    assert all(len(stem.encode()) < 250 for stem in found)
    own = [posixpath.splitext(posixpath.basename(name))[0] for name in names]
    for name, stem in zip(own, found, strict=True):
        alone = [other.casefold() for other in own].count(name.casefold()) == 1
        if alone and name and name.isascii() and name.isprintable() and not name.startswith("."):
            assert stem == name


def test_a_file_name_stands_for_one_address() -> None:
    named = [
        ("a.jpg", "https://one.example/a.jpg"),
        ("b.jpg", "https://one.example/b.jpg"),
        ("a.jpg", "https://two.example/a.jpg"),
        ("a-2.jpg", "https://two.example/a-2.jpg"),
        ("a.jpg", "https://one.example/a.jpg"),  # the same image again
        ("x/c.jpg", "x/c.jpg"),
    ]
    assert list(file_names(lambda: named)) == ["a.jpg", "b.jpg", "a-3.jpg", "a-2.jpg", "a.jpg", "x/c.jpg"]


@given(st.text(), st.booleans())
def test_no_address_breaks_it(address: str, local: bool) -> None:
    name = image_name(address, local=local)
    assert local or not {"..", "/"} & set(PurePosixPath(name).parts)
