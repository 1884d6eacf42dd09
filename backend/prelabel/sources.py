"""List and read the files of `vlsam prelabel`: folders, URIs and manifests.

The command line may name any file system of fsspec. The addresses in a manifest are not trusted: paths,
http(s) and data addresses, which images/fetch.py reads, and URIs of cloud storages.
"""

import hashlib
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fsspec

from backend.datasets.file_names import image_name
from backend.datasets.items import Item, Loader, SourceError, digest, stamp
from backend.images import local_files
from backend.images.errors import Refused
from backend.images.fetch import Fetcher, decode
from backend.images.http_url import shown
from backend.images.local_files import IMAGES, Listing, text, with_text
from backend.images.output_files import is_ours
from backend.images.studio_urls import Server
from backend.labelstudio.labeling_config import data_with, field_of
from backend.prelabel import tables
from backend.prelabel.tables import reason, scheme_of
from backend.settings import ImageSettings, LabelStudioSettings, Settings
from backend.telemetry.logs import unsigned
from model.types import Image, ImageError

MANIFESTS = (".csv", ".jsonl", ".parquet")
STORAGES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})  # allowed in manifests
LONGEST_KEY = 300  # characters
# What file systems list that changes when a file is replaced.
_FACTS = (
    "etag", "md5hash", "generation", "size", "lastmodified", "last_modified", "updated", "mtime", "created",
)  # fmt: skip
_CHAIN = re.compile(r"(?is)[a-z0-9+._-]+::.*://")  # fsspec's, as simplecache::http://...


class Files:
    """Reads image files by address: local paths, http(s) and data addresses, and URIs of `schemes`."""

    def __init__(
        self,
        images: ImageSettings,
        label_studio: LabelStudioSettings,
        schemes: frozenset[str] = STORAGES,
        cells: tables.Cells | None = None,
    ) -> None:
        self._schemes, self._cells, self._images = schemes, cells, Fetcher(images, label_studio)
        self._max_bytes, self._max_pixels = images.max_image_bytes, images.max_image_pixels
        url = label_studio.url  # its token is sent to its files alone
        self._server = Server(url, label_studio.api_key) if url else None

    def path(self, item: Item) -> Path | None:
        address = item.address
        is_file = item.place is None and scheme_of(address) is None and os.path.isfile(address)
        return Path(address) if is_file else None

    def read(self, item: Item) -> tuple[bytes, Image]:
        data = self._cells.read(item.place) if self._cells and item.place is not None else None
        return self._read(item.address) if data is None else self._decoded(data)

    def _read(self, address: str) -> tuple[bytes, Image]:
        limit = self._max_bytes
        if re.match(r"(?i)https?://|data:", address):
            return self._images.read(address, self._server)
        if not address:
            raise ImageError("There is no image address.")
        scheme = scheme_of(address)
        if _CHAIN.match(address) or (scheme is not None and scheme not in self._schemes):
            raise Refused(
                f"{shown(address)} is refused: a list has paths of files, and addresses of http, https, "
                "data, s3, gs and az."
            )
        try:
            if scheme is None:
                data = local_files.read(address, limit + 1)
            else:
                fs, path = _file_system(address)
                data = bytes(fs.cat_file(path, start=0, end=limit + 1))
        except ImageError:
            raise
        except FileNotFoundError:
            raise ImageError("There is no such file.") from None
        except SourceError as error:
            raise ImageError(str(error)) from None
        except Exception as error:  # each file system has its own errors, with secrets in some messages
            raise ImageError(f"The file cannot be read ({type(error).__name__}).") from None
        return self._decoded(data)

    def _decoded(self, data: bytes) -> tuple[bytes, Image]:
        if len(data) > self._max_bytes:
            raise ImageError(f"The file has more than {self._max_bytes} bytes (VLSAM_MAX_IMAGE_BYTES).")
        return data, decode(data, max_pixels=self._max_pixels)


class Folder:
    """The images below a folder or its URI, or those that match a glob."""

    def __init__(self, source: str, loader: Loader, image_key: str, prefix: str | None) -> None:
        self.loader = loader
        self.skipped: Counter[str] = Counter()
        self._source, self._image_key, self._prefix = source, image_key, prefix

    def items(self) -> Iterator[Item]:
        stamps: dict[str, str] = {}
        try:
            if scheme_of(self._source) is None:
                listing = local_files.listed(self._source)
                if not os.path.isfile(self._source):
                    listing = _without_pictures(listing)
            else:
                listing, stamps = _remote(self._source)
        except SourceError:
            raise
        except Exception as error:
            raise SourceError(f"{self._source} cannot be listed: {reason(error)}") from None
        self.skipped.clear()
        self.skipped.update(listing.skipped)
        if not listing.names:
            left_out = ", ".join(f"{count} x {reason}" for reason, count in listing.skipped.most_common(5))
            if left_out:
                raise SourceError(f"{self._source} has no images ({', '.join(IMAGES)}), but {left_out}")
            raise SourceError(f"{self._source}: there is no such folder, file, or anything that fits")
        taken = set(listing.names)
        for name in listing.names:
            key = text(name)
            if key != name:  # it is not UTF-8
                key = f"{key} ({digest(os.fsencode(name))})" if key in taken else key
                taken.add(key)
            address = listing.root + name
            if re.match(r"(?i)data:", address) or (scheme_of(self._source) is None and _is_uri(address)):
                address = f"./{address}"  # a path, even if its name looks like an address
            # Percent-encoding keeps the bytes of a name that is not UTF-8.
            shown = text(address) if self._prefix is None else self._prefix + quote(os.fsencode(name))
            yield Item(
                key,
                address,
                data_with(self._image_key, shown),
                name=text(name),
                stamp=stamps[name] if stamps else _stamp_of(address),
            )


def _without_pictures(listing: Listing) -> Listing:
    """Return a listing without the pictures that `vlsam annotate` wrote beside the images."""
    pngs = (name for name in listing.names if name.lower().endswith(".png"))  # no other files are opened
    pictures = {name for name in pngs if is_ours(Path(listing.root + name))}
    names = [name for name in listing.names if name not in pictures]
    if left_out := len(pictures):
        listing.skipped["picture of an earlier run"] += left_out
    return Listing(listing.root, names, listing.skipped)


def _remote(source: str) -> tuple[Listing, dict[str, str]]:
    """Return the images at a URI, listed by fsspec, and a stamp of each name. Raises SourceError."""
    fs, path = _file_system(source)
    if fs.isdir(path):
        root, pattern = source.rstrip("/") + "/", None
        files = fs.find(path, detail=True)
    elif not local_files.is_pattern(source) or fs.isfile(path):
        root, pattern = source[: source.rfind("/") + 1], None
        files = {path: fs.info(path)} if fs.isfile(path) else {}
    else:
        root, pattern = local_files.split_pattern(source)
        # fsspec counts the root as one level.
        files = fs.find(fs._strip_protocol(root), maxdepth=local_files.depth_of(pattern), detail=True)
    # fsspec lists names without the scheme; the given root is put in front.
    inside = len(fs._strip_protocol(root).rstrip("/")) + 1
    stamps = {name[inside:]: _stamp_from(info) for name, info in files.items()}
    return local_files.chosen(root, stamps, pattern=pattern), stamps


def _stamp_from(info: Mapping[str, Any]) -> str:
    """Return a hash of what a file system lists about a remote file, such as its size and ETag."""
    facts = {name.lower(): value for name, value in info.items()}
    return digest(repr([facts.get(name) for name in _FACTS]).encode("utf-8", "replace"))


def _stamp_of(address: str) -> str:
    """Return a hash of a file's size, modification time and inode change time; "" if there is no file."""
    try:
        status = os.stat(address)
    except (OSError, ValueError):
        return ""
    return digest(repr((status.st_size, status.st_mtime_ns, status.st_ctime_ns)).encode())


def _stamp_of_uri(address: str) -> str:
    try:
        fs, path = _file_system(address)
        return _stamp_from(fs.info(path))
    except Exception:  # reading it reports the reason
        return ""


class Manifest:
    """A table with an image or its address in each row. Its other columns become the task's data."""

    def __init__(self, source: str, loader: Loader, image_key: str) -> None:
        self.loader = loader
        self.skipped: Counter[str] = Counter()
        self._source, self._image_key = source, image_key
        self._folder = posixpath.dirname(source)

    def items(self) -> Iterator[Item]:
        self.skipped.clear()
        times: Counter[str] = Counter()
        of_list = _stamp_of(self._source) or _stamp_of_uri(self._source)
        rows = tables.rows(self._source, self._image_key, self.skipped)
        for number, (row, place) in enumerate(rows, 1):
            try:
                cell = field_of(row, self._image_key)
            except LookupError:
                columns = ", ".join(map(str, list(row)[:20]))
                raise SourceError(
                    f"{self._source}, row {number}: no column {self._image_key!r} for the image's address, "
                    f"but {columns}"
                ) from None
            given, row_id = _address(cell), row.get("id")
            key = text(unsigned(given))
            if len(key) > LONGEST_KEY:  # as a data: address
                hashed = hashlib.blake2b(unsigned(given).encode("utf-8", "replace"), digest_size=16)
                key = f"hash:{hashed.hexdigest()}"
            elif not key and place is not None:
                key = f"row {number}"
            if row_id not in (None, ""):
                key = text(str(row_id))
                if times[key]:
                    raise SourceError(f"{self._source}, row {number}: the id {key!r} is there twice")
            base = key
            while times[key]:
                times[base] += 1
                key = f"{base}#{times[base]}"
            times[key] += 1
            # A relative path is below the manifest's folder.
            address = given if not given or _is_uri(given) else posixpath.join(self._folder, given)
            if place is not None:
                row[self._image_key] = given or key
            if self._image_key in row:  # the column "photo.url" becomes a field of "photo"
                row |= data_with(self._image_key, row.pop(self._image_key))
            if (data := with_text(row)) != row:  # no UTF-8, so no reader could parse it
                self.skipped[r"rows with bytes that are no UTF-8, which stay as \xff and the like"] += 1
            yield Item(
                key,
                address,
                data,
                name=text(image_name(given, local=True)) or key,
                place=place,
                stamp=stamp(unsigned(address), of_list if place is not None else _stamp_of(address)),
            )


def _is_uri(address: str) -> bool:
    return re.match(r"(?i)data:", address) is not None or bool(scheme_of(address) or _CHAIN.match(address))


def _address(value: Any) -> str:
    """Return the address in a cell, which may be Hugging Face's {"path": ...}; "" if there is none."""
    if isinstance(value, Mapping):
        value = value.get("path")
    return value.strip() if isinstance(value, str) else "" if value is None else str(value)


def _file_system(address: str) -> tuple[Any, str]:
    """Return the file system of a URI and the path in it. "::" is part of the path. Raises SourceError."""
    scheme = scheme_of(address) or "file"
    try:
        kind = fsspec.get_filesystem_class(scheme)
        return kind(**kind._get_kwargs_from_urls(address)), kind._strip_protocol(address)
    except (ImportError, ValueError, TypeError) as error:  # a missing driver, an unknown scheme
        raise SourceError(f"{scheme}:// addresses: {reason(error)}; for s3:// pip install s3fs") from None


def without_file_scheme(source: str) -> str:
    return source[len("file://") :] if source.lower().startswith("file://") else source


def choose(source: str, settings: Settings, *, image_key: str, prefix: str | None) -> Folder | Manifest:
    """Return a Manifest if `source` has the suffix of one, else a Folder. Raises SourceError."""
    source = without_file_scheme(source)
    scheme = scheme_of(source)
    if "::" in source and scheme not in STORAGES and (scheme or _CHAIN.match(source)):
        raise SourceError(f"{source}: addresses of several file systems (::) are not supported")
    if source.lower().endswith(MANIFESTS) and not os.path.isdir(source):
        if prefix is not None:
            raise SourceError("--image-prefix goes with a folder or URIs; a manifest has its own addresses")
        is_parquet = source.lower().endswith(".parquet")
        cells = tables.Cells(source, image_key, settings.images.max_image_bytes) if is_parquet else None
        return Manifest(source, Files(settings.images, settings.label_studio, cells=cells), image_key)
    # The command line may name any file system.
    schemes = STORAGES | ({scheme} if scheme else set())
    files = Files(settings.images, settings.label_studio, schemes)
    return Folder(source, files, image_key, prefix)
