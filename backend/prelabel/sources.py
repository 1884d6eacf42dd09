"""Where the images of `vlsam prelabel` come from: folders, URIs, manifests. Label Studio is in project.py."""

import csv
import hashlib
import importlib
import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import fsspec

from backend.fetch import ImageError, Server
from backend.images import Images, decode
from backend.prelabel.naming import image_name
from backend.settings import Settings
from model.types import Image

IMAGES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MANIFESTS = (".csv", ".jsonl", ".parquet")
LONGEST_KEY = 300  # characters


class SourceError(ValueError):
    """A source cannot be read. The message is one sentence for the person who named it."""


@dataclass(frozen=True)
class Item:
    """One image to be labelled."""

    key: str  # names it in the state: unique within its source
    address: str  # what is loaded
    data: Mapping[str, Any]  # of its task in Label Studio
    task: int | None = None  # the id, where the task exists already
    name: str = ""  # of the image's file, with folders from the source's root on: see naming.image_name


class Loader(Protocol):
    """Reads the images of a source. From several threads; pickles for other processes."""

    def load(self, item: Item) -> Image:
        """uint8 (H, W, 3) RGB, upright. Raises ImageError."""
        ...

    def read(self, item: Item) -> tuple[bytes, Image]:
        """As `load`, with the file itself before its pixels."""
        ...

    def path(self, item: Item) -> Path | None:
        """Where the file lies on this machine; None where it does not, or the source may not say so."""
        ...


class Source(Protocol):
    @property
    def loader(self) -> Loader: ...

    def items(self) -> Iterator[Item]:
        """All images in an order that does not change by itself. Raises SourceError."""
        ...


def choose(source: str, settings: Settings, *, image_key: str, prefix: str | None) -> Source:
    """The source that an argument names: a manifest by its suffix, else a folder, glob or URI."""
    files = Files(settings)
    if source.lower().endswith(MANIFESTS):
        if prefix is not None:
            raise SourceError("--image-prefix goes with a folder or URIs; a manifest has its own addresses")
        return Manifest(source, files, image_key)
    return Folder(source, files, image_key, prefix)


class Files:
    """Reads image files by address: local paths, http(s) and data addresses, and fsspec's URIs."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._images = settings, Images(settings)
        url = settings.label_studio_url  # whose files want its token, which goes nowhere else
        self._server = Server(url, settings.label_studio_api_key) if url else None

    def __reduce__(self) -> tuple[type["Files"], tuple[Settings]]:
        return Files, (self._settings,)  # its locks stay here

    def load(self, item: Item) -> Image:
        return self.read(item)[1]

    def path(self, item: Item) -> Path | None:
        path = item.address.removeprefix("file://")
        return Path(path) if os.path.isfile(path) else None

    def read(self, item: Item) -> tuple[bytes, Image]:
        address = item.address
        if re.match(r"(?i)https?://|data:", address):
            return self._images.read(address, self._server)
        if not address:
            raise ImageError("There is no image address.")
        limit = self._settings.max_image_bytes
        try:
            data = _bytes(address, limit + 1)
        except FileNotFoundError:
            raise ImageError("There is no such file.") from None
        except SourceError as error:
            raise ImageError(str(error)) from None
        except Exception as error:  # each file system has its own; their texts may hold secrets
            raise ImageError(f"The file cannot be read ({type(error).__name__}).") from None
        if len(data) > limit:
            raise ImageError(f"The file has more than {limit} bytes (VLSAM_MAX_IMAGE_BYTES).")
        return data, decode(data, max_pixels=self._settings.max_image_pixels)


class Folder:
    """The images below a folder or its URI, or those that a glob names; other files are skipped."""

    def __init__(self, source: str, loader: Loader, image_key: str, prefix: str | None) -> None:
        self.loader = loader
        self._source, self._image_key, self._prefix = source, image_key, prefix

    def items(self) -> Iterator[Item]:
        fs, path = _file_system(self._source)
        try:
            if fs.isdir(path):
                root, found = self._source.rstrip("/") + "/", fs.find(path)
            else:
                # A glob's fixed part, or the folder of a single file.
                fixed = re.split(r"[*?\[]", self._source)[0]
                root, found = fixed[: fixed.rfind("/") + 1], fs.glob(path)
        except Exception as error:
            raise SourceError(f"{self._source} cannot be listed: {_reason(error)}") from None
        images = sorted(name for name in found if name.lower().endswith(IMAGES))
        if not images:
            raise SourceError(
                f"{self._source} has no images ({', '.join(IMAGES)})"
                if found
                else f"{self._source}: there is no such folder, file, or anything that fits"
            )
        # Listings are absolute and without a scheme; what people gave stays in front.
        inside = len(fs._strip_protocol(root or ".").rstrip("/")) + 1
        for name in images:
            relative = name[inside:]
            address = root + relative
            shown = address if self._prefix is None else self._prefix + quote(relative)
            yield Item(relative, address, {self._image_key: shown}, name=relative)


class Manifest:
    """A table with an image address in each row; further columns go into the task's data.

    `id`, where there is such a column, names a row; otherwise its address does.
    """

    def __init__(self, source: str, loader: Loader, image_key: str) -> None:
        self.loader = loader
        self._source, self._image_key = source, image_key
        self._folder = posixpath.dirname(source)

    def items(self) -> Iterator[Item]:
        times: Counter[str] = Counter()
        for number, row in enumerate(self._rows(), 1):
            if self._image_key not in row:
                columns = ", ".join(map(str, list(row)[:20]))
                raise SourceError(
                    f"{self._source}, row {number}: no column {self._image_key!r} for the image's address, "
                    f"but {columns}"
                )
            address = str(row[self._image_key] or "").strip()
            given = row.get("id")
            key = _short(address) if given in (None, "") else str(given)
            times[key] += 1
            if times[key] > 1:
                if given not in (None, ""):
                    raise SourceError(f"{self._source}, row {number}: the id {key!r} is there twice")
                key = f"{key}#{times[key]}"
            yield Item(key, self._absolute(address), row, name=image_name(address, local=True) or key)

    def _absolute(self, address: str) -> str:
        """A relative path is meant from the manifest's folder."""
        if not address or address.startswith("/") or re.match(r"(?i)[a-z][a-z0-9+.-]*://|data:", address):
            return address
        return posixpath.join(self._folder, address)

    def _rows(self) -> Iterator[dict[str, Any]]:
        try:
            yield from _READERS[Path(self._source.lower()).suffix](self._source)
        except SourceError:
            raise
        except Exception as error:
            raise SourceError(f"{self._source} cannot be read: {_reason(error)}") from None


def _csv(source: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)  # a cell may hold an image, as a data address
    with fsspec.open(source, "rt", encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file, restkey="", strict=True):
            row.pop("", None)  # more cells than columns, or a column without a name
            yield row


def _jsonl(source: str) -> Iterator[dict[str, Any]]:
    with fsspec.open(source, "rt", encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, parse_constant=_no_number)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise SourceError(f"{source}, line {number} is no JSON object")
            yield row


def _parquet(source: str) -> Iterator[dict[str, Any]]:
    pyarrow = need("pyarrow.parquet", "parquet files")
    with fsspec.open(source, "rb") as file:
        for batch in pyarrow.ParquetFile(file).iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                # Times, decimals and bytes are no JSON, which a task's data is.
                yield json.loads(json.dumps(row, default=str), parse_constant=_no_number)


def _no_number(name: str) -> None:
    """In place of NaN and infinities, which Python reads and writes, and JSON does not know."""


_READERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}


def need(module: str, what: str) -> Any:
    """A module of the extra `prelabel`. Raises SourceError that says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise SourceError(f"for {what} install the extra: pip install 'vlsam[prelabel]'") from None


def _bytes(address: str, most: int) -> bytes:
    fs, path = _file_system(address)
    return bytes(fs.cat_file(path, start=0, end=most))


def _file_system(address: str) -> tuple[Any, str]:
    try:
        fs, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:  # a driver that is not installed, or a scheme that is none
        raise SourceError(
            f"{address.partition('://')[0]}:// addresses: {_reason(error)}; "
            "for s3:// pip install 'vlsam[prelabel]'"
        ) from None
    return fs, path


def _short(address: str) -> str:
    """An address as a key: a hash stands for long ones, as data: addresses are."""
    if len(address) <= LONGEST_KEY:
        return address
    return "hash:" + hashlib.blake2b(address.encode("utf-8", "replace"), digest_size=16).hexdigest()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
