"""Derive the name of an image from its address, and unique names of the files written for it."""

import base64
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import parse_qs, unquote, urlsplit

LONGEST = 200  # bytes of a stem: file systems take 255 with its suffix


def image_name(address: str, *, local: bool) -> str:
    """Return the name of the file at an address, with folders for some kinds of address.

    `local`: an address without a scheme is a path of this machine, not one of Label Studio. The names of
    local paths, of URIs of storages and of Label Studio's local files include their folders. The name of an
    upload to Label Studio or of any other URL is the last part of its path. A data: address gives "".
    """
    if address[:5].lower() == "data:":
        return ""
    scheme, separator, rest = address.partition("://")
    if not separator or not re.fullmatch(r"(?i)[a-z][a-z0-9+.-]*", scheme):
        return address if local else _of_url(address)
    match scheme.lower():
        case "file":
            return rest
        case "http" | "https":
            return _of_url(address)
    return _plain(rest.partition("/")[2])  # without the bucket


def _of_url(address: str) -> str:
    try:
        parts = urlsplit(address)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
    except ValueError:
        return _plain(address.rpartition("/")[2])
    path = parts.path.rstrip("/")
    if path.endswith("/data/local-files"):
        return _plain(query.get("d", ""))
    if path.endswith("/storage-data/uploaded"):
        return _plain(query.get("filepath", "").rpartition("/")[2])
    if re.search(r"/(tasks|projects)/[0-9]+/(presign|resolve)$", path):
        try:
            return image_name(base64.urlsafe_b64decode(query.get("fileuri", "")).decode(), local=False)
        except ValueError:  # no base64, or no text in it
            return ""
    return _plain(unquote(path.rpartition("/")[2]))


def _plain(name: str) -> str:
    """Return a name without empty, "." and ".." parts, since addresses of tasks are not trusted."""
    return "/".join(part for part in re.split(r"[/\\]", name) if part not in ("", ".", ".."))


def file_names(named: Callable[[], Iterable[tuple[str, str]]]) -> Iterator[str]:
    """Yield a unique name for each (name, address). Add a number if another address has the name."""
    taken = _Taken(name for name, _ in named())
    first: dict[str, str] = {}
    for name, address in named():
        if first.setdefault(name, address) == address:
            yield name
        else:
            yield taken.add(*posixpath.splitext(name))


def stems(names: Callable[[], Iterable[str]]) -> Iterator[str]:
    """Yield a unique stem for each image name. Add its folders or a number if several images share it."""
    counts = Counter(_same(_stem(posixpath.basename(name))) for name in names())
    # A stem that one image alone has is not given to another.
    taken = _Taken(stem for stem, count in counts.items() if count == 1)
    for name in names():
        stem = _stem(posixpath.basename(name))
        yield stem if counts[_same(stem)] == 1 else taken.add(_stem(name.strip("/").replace("/", "-")))


class _Taken:
    """File names in use. Names that differ only by case are equal."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {_same(name) for name in names}
        self._last: Counter[str] = Counter()

    def add(self, stem: str, suffix: str = "") -> str:
        """Add and return `stem` + `suffix`, with a number between them if that name is in use."""
        name = stem + suffix
        base = _same(name)
        while _same(name) in self._names:
            self._last[base] += 1
            name = f"{stem}-{self._last[base] + 1}{suffix}"
        self._names.add(_same(name))
        return name


def _same(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _stem(name: str) -> str:
    """Return a file's name without suffix, control characters, leading dot and excess length."""
    stem = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "_", posixpath.splitext(name)[0])
    # Patterns such as * skip names with a leading dot. The end of a long name is most specific.
    return re.sub(r"^\.", "_", stem.encode()[-LONGEST:].decode(errors="ignore")) or "image"
