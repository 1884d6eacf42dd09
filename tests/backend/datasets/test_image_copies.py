"""Images beside YOLO's labels: files of every kind, and what a trainer then reads of them."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow

from backend.datasets.image_copies import Copies, link, size_text
from backend.datasets.items import Item
from backend.images.image_cache import image_hash
from backend.prelabel.sources import Files
from backend.settings import ImageSettings, LabelStudioSettings
from model.types import Image
from tests.support.colour_model import Model, save_image
from tests.support.fake_web import Web

Run = Callable[..., int]

rng = np.random.default_rng(3)
SCENE = cv2.resize(rng.integers(0, 256, (5, 7, 3), np.uint8), (70, 50), interpolation=cv2.INTER_CUBIC)


def file(kind: str, pixels: Any = SCENE, *, mode: str | None = None, turn: int = 0, **options: Any) -> bytes:
    image = Pillow.fromarray(pixels)
    if turn:
        options["exif"] = Pillow.Exif()
        options["exif"][0x0112] = turn
    written = io.BytesIO()
    (image.convert(mode) if mode else image).save(written, kind, **options)
    return written.getvalue()


def with_alpha() -> Any:
    alpha = np.full((50, 70, 1), 255, np.uint8)
    alpha[:20] = 0
    return np.concatenate([SCENE, alpha], 2)


def frames() -> Any:
    """Makes a file of several images."""
    return {"save_all": True, "append_images": [Pillow.fromarray(SCENE[::-1].copy())]}


KEPT = {
    "jpeg": file("JPEG"),
    "mpo": file("MPO", **frames()),
    "png": file("PNG"),
    "grey": file("PNG", mode="L"),
    "webp": file("WEBP", lossless=True),
    "bmp": file("BMP"),
    "tiff": file("TIFF"),
    "not turned": file("JPEG", turn=1),
}
CONVERTED = {
    "gif": (file("GIF"), "GIF", "PNG"),
    "avif": (file("AVIF"), "AVIF", "PNG"),
    "animation": (file("WEBP", **frames()), "several frames", "PNG"),
    "pages": (file("TIFF", **frames()), "several frames", "PNG"),
    "grey 16": (file("PNG", SCENE[..., 0].astype(np.uint16) * 16), "more than 8 bits", "PNG"),
    "colour 16": (
        cv2.imencode(".png", SCENE.astype(np.uint16) * 16)[1].tobytes(),
        "more than 8 bits",
        "PNG",
    ),
    "real": (file("TIFF", SCENE[..., 0] / np.float32(255)), "more than 8 bits", "PNG"),
    "transparent": (file("PNG", with_alpha()), "transparency", "PNG"),
    "cmyk": (file("JPEG", mode="CMYK"), "CMYK colours", "JPEG"),
    "palette": (file("PNG", mode="P"), "a palette", "PNG"),  # which supervision refuses
    "turned jpeg": (file("JPEG", turn=6), "EXIF orientation", "JPEG"),
    "turned png": (file("PNG", turn=3), "EXIF orientation", "PNG"),
}


def seen(path: Path) -> Image:
    """What YOLO's trainers read of a file."""
    read = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    assert read is not None
    return np.asarray(read[..., ::-1], np.uint8)


@pytest.fixture
def loader() -> Files:
    return Files(ImageSettings(), LabelStudioSettings())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def copied(data: bytes, loader: Files, folder: Path) -> tuple[str, Path, Image]:
    """What is said, the copy, and what was labelled."""
    source = folder.parent / "source"
    source.write_bytes(data)
    item = Item("key", str(source), {})
    image = loader.read(item)[1]
    came = Copies(loader, folder.parent / "kept").put(item, image_hash(image), folder, "x.y")
    (copy,) = folder.iterdir()
    assert copy.name.startswith("x.y.")
    return came, copy, image


@pytest.mark.parametrize("data", KEPT.values(), ids=KEPT.keys())
def test_what_trainers_read_is_copied_byte_by_byte(data: bytes, loader: Files, folder: Path) -> None:
    came, copy, image = copied(data, loader, folder)
    assert came == "copied"
    assert copy.read_bytes() == data
    assert copy.suffix in (".jpg", ".png", ".webp", ".bmp", ".tif")
    assert np.abs(seen(copy).astype(int) - image).max() <= 3


@pytest.mark.parametrize(("data", "why", "kind"), CONVERTED.values(), ids=CONVERTED.keys())
def test_what_trainers_would_see_otherwise_is_converted(
    data: bytes, why: str, kind: str, loader: Files, folder: Path
) -> None:
    came, copy, image = copied(data, loader, folder)
    assert came == f"converted, since trainers do not read {why}"
    with Pillow.open(copy) as opened:
        assert opened.format == kind
        assert copy.suffix == {"PNG": ".png", "JPEG": ".jpg"}[kind]
        # Also those who do not look at EXIF see it upright.
        assert not opened.getexif().get(0x0112)
        plain = np.asarray(opened)
    for pixels in (plain, seen(copy)):
        assert pixels.shape == image.shape
        assert np.abs(pixels.astype(int) - image).mean() < (4 if kind == "JPEG" else 0.01)


def test_links_lead_to_files_that_trainers_read(loader: Files, folder: Path) -> None:
    said = {}
    for name, data in {**KEPT, **{name: data for name, (data, _, _) in CONVERTED.items()}}.items():
        (folder.parent / name).write_bytes(data)
        said[name] = link(loader, Item(name, str(folder.parent / name), {}), "", folder, name)
    linked = {path.stem for path in folder.iterdir()}
    assert linked == {name for name, came in said.items() if came == "linked"}
    assert linked == {*KEPT, "turned jpeg", "turned png", "palette"}  # which OpenCV reads right
    for path in folder.iterdir():
        assert path.read_bytes() == (folder.parent / path.stem).read_bytes()
        assert np.abs(seen(path).astype(int) - loader.read(Item("", str(path.resolve()), {}))[1]).max() <= 3
    assert said["gif"] == "not linked, since trainers do not read GIF (--copy-images converts them)"
    away = link(loader, Item("a", "https://host.example/a.png", {}), "", folder, "a")
    assert away == "not linked, since they are not on this machine (--copy-images fetches them)"
    (folder.parent / "gif").write_text("text")
    assert "cannot be read any more" in link(
        loader, Item("gif", str(folder.parent / "gif"), {}), "", folder, "g"
    )


def test_an_image_of_which_the_size_alone_is_known_is_copied_if_it_has_that(
    loader: Files, folder: Path
) -> None:
    save_image(folder.parent / "a.png", 1)
    copies = Copies(loader, folder.parent / "kept")
    item = Item("a", str(folder.parent / "a.png"), {})
    assert "differs from the labelled one" in copies.put(item, "60x80", folder, "a")
    assert copies.put(item, size_text((60, 80, 3)), folder, "a") == "copied"


def test_another_image_than_was_labelled_is_not_copied(loader: Files, folder: Path) -> None:
    save_image(folder.parent / "a.png", 1)
    item = Item("a", str(folder.parent / "a.png"), {})
    before = image_hash(loader.read(item)[1])
    save_image(folder.parent / "a.png", 2)
    copies = Copies(loader, folder.parent / "kept")
    assert copies.put(item, before, folder, "a") == "not copied: The image differs from the labelled one."
    assert list(folder.iterdir()) == []


def test_f31_an_image_that_cannot_be_fetched_for_a_copy_is_counted_and_no_other_is_fetched_twice(
    prelabel: Run,
    model: Model,
    photos: Path,
    tmp_path: Path,
    web: Web,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VLSAM_ALLOWED_HOSTS", "127.0.0.1")
    addresses = [
        web.serve("/x/one.png", (photos / "a.png").read_bytes()),
        web.serve("/x/two%20words.gif", file("GIF", np.full((60, 80), 7, np.uint8))),
        web.serve("/y/one.png", (photos / "b.png").read_bytes()),
        str(photos / "c.png"),
    ]
    (tmp_path / "list.csv").write_text("image\n" + "\n".join(addresses) + "\n")
    out = tmp_path / "out.yolo"
    arguments = (tmp_path / "list.csv", "--to", out)
    assert prelabel(*arguments) == 0
    assert [path.name for path in (out / "images").iterdir()] == ["c.png"]
    assert "not linked, since they are not on this machine (--copy-images fetches them): 3" in (
        capsys.readouterr().err
    )
    # The same run again, with copies: its images are not annotated again, and one is gone by now.
    monkeypatch.setattr(model, "annotate", None)
    gone = web.routes.pop("/y/one.png")
    web.seen.clear()
    assert prelabel(*arguments, "--copy-images") == 0
    names = {path.name for path in (out / "images").iterdir()}
    assert names == {"one.png", "two words.png", "c.png"}
    assert {path.stem for path in (out / "labels").iterdir()} == {"one", "two words", "one-2", "c"}
    summary = json.loads((tmp_path / "out.yolo.state" / "summary.json").read_text())
    assert summary["failed"] == 0
    assert summary["image_files"] == {
        "copied": 2,
        "converted, since trainers do not read GIF": 1,
        f"not copied: {web.url}/y/one.png answered HTTP 404.": 1,
    }
    assert "HTTP 404.: 1" in capsys.readouterr().err
    web.routes["/y/one.png"] = gone
    web.seen.clear()
    assert prelabel(*arguments, "--copy-images") == 0
    assert [path for _, path, _ in web.seen] == ["/y/one.png"]
    for path in (out / "images").iterdir():
        assert not path.is_symlink()
        assert (out / "labels" / f"{path.stem}.txt").is_file()
    assert len(list((out / "images").iterdir())) == 4
