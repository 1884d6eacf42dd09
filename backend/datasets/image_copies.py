"""Link or copy image files beside their labels. Convert copies that trainers would read wrongly."""

import logging
import os
import shutil
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image as Pillow

from backend.datasets.items import Item, Loader, stamp
from backend.datasets.run_state import write
from backend.images.image_cache import image_hash
from model.image_decoding import formats
from model.types import Image, ImageError

log = logging.getLogger(f"vlsam.{__name__}")

# Formats that trainers read, by Pillow's names, and the suffixes that they expect.
SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif"}
ORIENTATION = 0x0112  # of EXIF


def link(loader: Loader, item: Item, _: str, folder: Path, stem: str) -> str:
    """Link a local file into `folder` as `stem`. Return the result as text for the summary."""
    path = loader.path(item)
    if path is None:
        return "not linked, since they are not on this machine (--copy-images fetches them)"
    try:
        with Pillow.open(path, formats=formats()) as opened:
            kind, why = opened.format or "", _obstacle(opened)  # YOLO's trainers apply EXIF orientation
    except Exception:  # a decoder may fail in any way, and the file may have changed
        return "not linked, since they cannot be read any more"
    if why:
        return f"not linked, since trainers do not read {why} (--copy-images converts them)"
    os.symlink(path.resolve(), folder / (stem + SUFFIXES[kind]))
    return "linked"


class Copies:
    """Copies of images in a folder. A resumed run uses those that exist."""

    def __init__(self, loader: Loader, folder: Path) -> None:
        self._loader, self._folder = loader, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._copies = {path.name.partition("-")[0]: path for path in folder.glob("[!.]*")}

    def put(self, item: Item, pixels: str, folder: Path, stem: str) -> str:
        """Copy the labelled image into `folder` as `stem`. Return the result as text for the summary.

        `pixels` identifies the image: its image_hash, or its size by `size_text`. The file itself
        is copied if every reader decodes it to the labelled pixels. Otherwise these are saved. Thread-safe.
        """
        name = stamp(item.key, item.address, pixels)
        path = self._copies.get(name)
        if path is None:
            try:
                data, why, suffix = _portable(*self._loader.read(item), pixels)
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                log.warning("%s is not copied: %s", ascii(item.key[:200]), reason)
                return f"not copied: {reason}"
            path = self._folder / f"{name}-{why}{suffix}"
            write(path, lambda file: file.write(data))
        target = folder / (stem + path.suffix)
        try:
            os.link(path, target)
        except OSError:  # a file system without links
            shutil.copyfile(path, target)
        why = path.stem.partition("-")[2]
        return f"converted, since trainers do not read {why}" if why else "copied"


def size_text(shape: Sequence[int]) -> str:
    """Write the size of an image (height, width) as text: 640x480."""
    return f"{shape[1]}x{shape[0]}"


def _portable(data: bytes, image: Image, pixels: str) -> tuple[bytes, str, str]:
    """Return a file that all readers decode alike, the reason for a conversion or "", and its suffix."""
    if pixels not in (image_hash(image), size_text(image.shape)):
        raise ImageError("The image differs from the labelled one.")
    with Pillow.open(BytesIO(data), formats=formats()) as opened:
        kind, why = opened.format or "", _obstacle(opened)
        if not why and opened.getexif().get(ORIENTATION) in range(2, 9):
            why = "EXIF orientation"
        if not why and opened.mode in ("1", "P"):  # supervision refuses these
            why = "a palette"
    if not why:
        return data, "", SUFFIXES[kind]
    kind = "JPEG" if kind in ("JPEG", "MPO") else "PNG"
    file = BytesIO()
    Pillow.fromarray(image).save(file, kind, quality=95, subsampling=0)  # PNG has neither
    return file.getvalue(), why, SUFFIXES[kind]


def _obstacle(image: Pillow.Image) -> str:
    """Return why trainers would not decode an image to the labelled pixels; "" if they would."""
    if image.format not in SUFFIXES:
        return image.format or "its format"
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        return "several frames"
    if image.has_transparency_data:
        return "transparency"
    tiles = getattr(image, "tile", [])  # with the layout of values in the file
    if image.mode.startswith(("I", "F")) or (tiles and ";16" in str(tiles[0][3])):
        return "more than 8 bits"
    return "" if image.mode in ("1", "L", "P", "RGB") else f"{image.mode} colours"
