"""Where pictures of images go: each has a name of its own, and none takes the place of another file."""

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import PngImagePlugin

from backend.images.local_files import text
from model.types import ImageError

OURS = "vlsam"  # in a picture's field "Software"
LONGEST = 200  # bytes of a stem: file systems take 255 with what comes behind it


class Pictures:
    """Gives names to pictures and writes them. `images` are the files that they are made of."""

    def __init__(self, images: Iterable[Path]) -> None:
        self._images = {identity for path in images if (identity := _identity(path)) is not None}
        self._given: set[tuple[str, str]] = set()

    def name(self, folder: Path, stem: str) -> Path:
        """`stem`.png in a folder, or with a number, as stem-2.png: none that was given, or is another's file.

        A picture of an earlier run may be written anew, any other file not. Makes the folder. Raises
        ValueError where it cannot be one.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{folder} cannot be a folder for pictures: {error.strerror}") from None
        if len(os.fsencode(stem)) > LONGEST:
            stem = os.fsencode(stem)[:LONGEST].decode("utf-8", "ignore")
        number, path = 1, folder / f"{stem}.png"
        while not self._is_free(path):
            number += 1
            path = folder / f"{stem}-{number}.png"
        self._given.add(_key(path))
        return path

    def _is_free(self, path: Path) -> bool:
        if _key(path) in self._given:
            return False
        if not os.path.lexists(path):
            return True
        return not path.is_symlink() and _identity(path) not in self._images and is_ours(path)


def save(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write a picture (H, W, 3) whole or not at all. Raises ImageError."""
    about = PngImagePlugin.PngInfo()
    about.add_text("Software", OURS)
    partial = path.with_name(f".{path.name}.partial")
    try:
        PILImage.fromarray(pixels).save(partial, "PNG", pnginfo=about)
        # A link of this name, to a file of somebody's, would be replaced itself.
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ImageError(f"{text(str(path))} cannot be written: {error.strerror or error}") from None


def _key(path: Path) -> tuple[str, str]:
    """As file systems compare that tell no capitals from small letters."""
    return os.path.realpath(path.parent), unicodedata.normalize("NFC", path.name).casefold()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_ours(path: Path) -> bool:
    """Whether a file is a picture that `save` wrote."""
    if not path.is_file():  # opening a pipe would wait for somebody who writes into it
        return False
    try:
        with PILImage.open(path, formats=("PNG",)) as opened:
            return opened.info.get("Software") == OURS
    except (OSError, ValueError, SyntaxError, PILImage.DecompressionBombError):
        return False
