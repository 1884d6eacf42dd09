"""Name and write the pictures of commands: each has its own name, and none overwrites another file."""

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import PngImagePlugin

from backend.images.local_files import identity, text
from model.types import ImageError

OURS = "vlsam"  # in a picture's field "Software"
LONGEST = 200  # bytes of a stem: file systems take 255 with its suffix


class Pictures:
    """Chooses names of picture files. Never chooses the file of one of `images`."""

    def __init__(self, images: Iterable[Path]) -> None:
        self._images = {identity(path) for path in images} - {None}
        self._given: set[tuple[str, str]] = set()

    def name(self, folder: Path, stem: str) -> Path:
        """Create the folder. Return a free path in it: stem.png, stem-2.png and so on. Raises ValueError."""
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
        return not path.is_symlink() and identity(path) not in self._images and is_ours(path)


def save(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write a picture, uint8 (H, W, 3), atomically. Raises ImageError."""
    about = PngImagePlugin.PngInfo()
    about.add_text("Software", OURS)
    partial = path.with_name(f".{path.name}.partial")
    try:
        PILImage.fromarray(pixels).save(partial, "PNG", pnginfo=about)
        # A link of this name is replaced, not the file that it points to.
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ImageError(f"{text(str(path))} cannot be written: {error.strerror or error}") from None


def _key(path: Path) -> tuple[str, str]:
    """Return a key that is equal for paths that differ only by case."""
    return os.path.realpath(path.parent), unicodedata.normalize("NFC", path.name).casefold()


def is_ours(path: Path) -> bool:
    """Return whether a file is a picture that `save` wrote."""
    if not path.is_file():  # opening a pipe blocks until somebody writes
        return False
    try:
        with PILImage.open(path, formats=("PNG",)) as opened:
            return opened.info.get("Software") == OURS
    except (OSError, ValueError, SyntaxError, PILImage.DecompressionBombError):
        return False
