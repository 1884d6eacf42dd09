"""Define items (the images of a source) and the protocol of their loaders."""

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from model.types import Image


class SourceError(ValueError):
    """A source or destination cannot be used. The message is one sentence for the person who named it."""


@dataclass(frozen=True)
class Item:
    """One image of a source."""

    key: str  # its name in the state, unique within the source
    address: str  # where its file is
    data: Mapping[str, Any]  # the data of its task in Label Studio
    task: int | None = None  # the task's id, if the task exists
    name: str = ""  # of the image's file, with folders below the source's root: see file_names.image_name
    place: int | None = None  # of its row in a parquet file that may hold the image itself
    # Changes when the file at the address changes; "" if that is unknown.
    stamp: str = field(default="", compare=False)
    # image_hash of the pixels that were annotated under an earlier stamp.
    content: str = field(default="", compare=False)


class Loader(Protocol):
    """Reads the images of a source. Safe to share among threads; can be pickled."""

    def read(self, item: Item) -> tuple[bytes, Image]:
        """Return the file and its pixels, uint8 (H, W, 3) RGB, upright. Raises ImageError."""

    def path(self, item: Item) -> Path | None:
        """Return the path of a local file that may be linked; None for any other item."""


def need(module: str, what: str) -> Any:
    """Import a module of the extra `prelabel`. Raises SourceError with how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise SourceError(f"for {what} one more library is needed: pip install pyarrow") from None


def stamp(*facts: str) -> str:
    """Return a hash of facts about an item. An item is read again when this hash changes."""
    return digest("\0".join(facts).encode("utf-8", "surrogatepass"))


def digest(data: bytes) -> str:
    """Return a hash of `data` as 16 hex digits."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()
