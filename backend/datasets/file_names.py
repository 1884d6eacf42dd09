"""What files are called: an image, from its address, and what is written beside it."""

import base64
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import parse_qs, unquote, urlsplit

LONGEST = 200  # bytes of a stem: file systems take 255 with its suffix


def image_name(address: str, *, local: bool) -> str:
    """The name of the file that an address leads to, with folders where they tell one file from another.

    `local`: an address that begins with a slash is a path of this machine, not one of Label Studio. A path is
    its own name. A URI of a storage, and Label Studio's local files, have their path in there. An upload to
    Label Studio and any other URL have the last part of their path. "" where an address has no name, as data:
    addresses.
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
    """A name that leads nowhere but into the folder that it is put in: addresses of tasks are hostile."""
    return "/".join(part for part in re.split(r"[/\\]", name) if part not in ("", ".", ".."))


def file_names(named: Callable[[], Iterable[tuple[str, str]]]) -> Iterator[str]:
    """For (name, address) of images: the name, with a number where it stands for another address already."""
    taken = _Taken(name for name, _ in named())
    first: dict[str, str] = {}
    for name, address in named():
        if first.setdefault(name, address) == address:
            yield name
        else:
            yield taken.add(*posixpath.splitext(name))


def stems(names: Callable[[], Iterable[str]]) -> Iterator[str]:
    """Names of files, without folder and suffix, for images of these names: no two are the same.

    That is the stem of the image's own file. Where several images share one, their folders stand in front of
    it, and where that is not enough a number behind it.
    """
    times = Counter(_same(_stem(posixpath.basename(name))) for name in names())
    # What one image alone is called is not for another.
    taken = _Taken(stem for stem, count in times.items() if count == 1)
    for name in names():
        stem = _stem(posixpath.basename(name))
        yield stem if times[_same(stem)] == 1 else taken.add(_stem(name.strip("/").replace("/", "-")))


class _Taken:
    """Names that are in use, as file systems compare them that tell no capitals from small letters."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {_same(name) for name in names}
        self._last: Counter[str] = Counter()

    def add(self, stem: str, suffix: str = "") -> str:
        """`stem` and `suffix`, with a number between them where that is in use."""
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
    """A file's name without suffix, and without what the next reader might take for something else."""
    stem = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "_", posixpath.splitext(name)[0])
    # Patterns such as * leave out what begins with a dot. Of a long name the end is the file's own.
    return re.sub(r"^\.", "_", stem.encode()[-LONGEST:].decode(errors="ignore")) or "image"
