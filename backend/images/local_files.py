"""List the image files of a folder, pattern or name, each once, with the reasons why others are skipped."""

import errno
import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.types import ImageError

IMAGES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".avif", ".heic", ".heif", ".hif",
)  # fmt: skip
NO_IMAGE = "no image by its name"
REASONS = 100  # counted apart; files may have any suffix


@dataclass(frozen=True)
class Listing:
    """Images below a root, and counts of the files that were skipped."""

    root: str  # prefix of each name: "" or with a final slash
    names: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)  # by reason


def text(name: str) -> str:
    r"""Return a file's name as valid Unicode. Bytes that are not UTF-8 become escapes such as \xff."""
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that encodes no byte
        raw = name.encode("utf-8", "surrogatepass")
    return raw.decode("utf-8", "backslashreplace")


def with_text(value: Any) -> Any:
    """Return a JSON value with `text` applied to all strings, since JSON may contain lone surrogates."""
    match value:
        case str():
            return text(value)
        case dict():
            return {text(str(name)): with_text(item) for name, item in value.items()}
        case list():
            return [with_text(item) for item in value]
    return value


def listed(source: str) -> Listing:
    """List the images below a folder, the images that match a pattern, or one file.

    A path that exists is not read as a pattern. Links to folders are followed. Each file is listed once.
    Raises ValueError for an invalid pattern.
    """
    if os.path.isdir(source):
        root = source.rstrip("/") + "/"
        return chosen(root, *_walk(root, None))
    if os.path.lexists(source) or not is_pattern(source):
        root = source[: source.rfind("/") + 1]
        return chosen(root, [source[len(root) :]] if os.path.lexists(source) else [])
    root, pattern = split_pattern(source)
    if not os.path.isdir(root or "."):
        return Listing(root)
    return chosen(root, *_walk(root, depth_of(pattern)), pattern=pattern)


def is_pattern(source: str) -> bool:
    return re.search(r"[*?\[]", source) is not None


def split_pattern(source: str) -> tuple[str, str]:
    """Split a pattern into the folder before its first wildcard, with a final slash, and the rest."""
    fixed = re.split(r"[*?\[]", source)[0]
    root = fixed[: fixed.rfind("/") + 1]
    return root, source[len(root) :]


def depth_of(pattern: str) -> int | None:
    """Return the folder depth at which a pattern matches; None for any depth."""
    return None if "**" in pattern else pattern.count("/") + 1


def chosen(
    root: str,
    files: Iterable[str],
    links: Iterable[str] = (),
    skipped: Counter[str] | None = None,
    *,
    pattern: str | None = None,
) -> Listing:
    """Return the images that match `pattern`, sorted. Count other matching files in `skipped`, by reason."""
    matches = _compiled(pattern).fullmatch if pattern is not None else lambda name: True
    listing = Listing(root, skipped=skipped if skipped is not None else Counter())

    def is_image(name: str) -> bool:
        reason = _no_image(name)
        if reason is not None:
            listing.skipped[reason if len(listing.skipped) < REASONS else NO_IMAGE] += 1
        return reason is None

    listing.names.extend(name for name in files if matches(name) and is_image(name))
    if linked := sorted(name for name in links if matches(name) and is_image(name)):
        seen = {identity(root + name) for name in listing.names}
        for name in linked:
            file = identity(root + name)
            if file is not None and file in seen:
                listing.skipped["link to a file that is listed already"] += 1
            else:
                seen.add(file)
                listing.names.append(name)  # a broken link, too, which then fails with that reason
    listing.names.sort()
    return listing


def read(path: str, most: int) -> bytes:
    """Read at most `most` bytes of a file. Raises OSError, and ImageError for a pipe, socket or device."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise ImageError("It is not a file, but a pipe, a socket or a device.")
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # it may have become a pipe
        return file.read(most)


def _no_image(name: str) -> str | None:
    """Return why a file's name is not that of an image; None if it is."""
    base = posixpath.basename(name)
    if base.startswith("._"):
        return "macOS's shadow of a file (._)"
    ending = posixpath.splitext(base)[1].lower()
    if ending in IMAGES:
        return None
    return f"{NO_IMAGE}: {ending}" if re.fullmatch(r"\.[a-z0-9]{1,9}", ending) else NO_IMAGE


def _walk(root: str, depth: int | None) -> tuple[list[str], list[str], Counter[str]]:
    """Return the files and the links to files below `root`, as relative paths, and counts of skips."""
    files: list[str] = []
    links: list[str] = []
    skipped: Counter[str] = Counter()
    seen = {identity(root or ".")}

    def enter(folder: str) -> None:
        waiting = [folder]
        while waiting:
            folder = waiting.pop()
            try:
                with os.scandir((root + folder) or ".") as entries:
                    inside = list(entries)
            except OSError as error:
                skipped[f"folder that cannot be read ({error.strerror}): {text(folder or root)}"] += 1
                continue
            for entry in inside:
                name = folder + entry.name
                if entry.is_symlink():
                    links.append(name)
                elif not entry.is_dir(follow_symlinks=False):
                    files.append(name)
                elif is_new(name):
                    waiting.append(f"{name}/")

    def is_new(folder: str) -> bool:
        if depth is not None and folder.count("/") + 1 >= depth:
            return False
        # The state or the YOLO folder of a run.
        kept = {".state": "run.json", ".yolo": "data.yaml"}.get(posixpath.splitext(folder)[1])
        if kept is not None and os.path.isfile(f"{root}{folder}/{kept}"):
            skipped["results of an earlier run"] += 1
            return False
        entered = identity(root + folder)
        if entered in seen:
            skipped["folder that is listed already"] += 1
            return False
        seen.add(entered)
        return True

    enter("")
    to_files: list[str] = []
    while links:
        # Folders come before links to them, so that their files have their own names; then links by name.
        now, links[:] = sorted(links), []
        for name in now:
            if not os.path.isdir(root + name):
                to_files.append(name)
            elif is_new(name):
                enter(f"{name}/")
    return files, to_files, skipped


def identity(path: str | Path) -> tuple[int, int] | None:
    """Return a file's device and inode, which all paths to it share; None if it does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _compiled(pattern: str) -> re.Pattern[str]:
    """Compile a glob. `*` and `?` match no slash, `**` any text, `[ab]`, `[!ab]` a set. Raises ValueError."""
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = []
    for part in re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]]+\])", pattern):
        if part.startswith("[") and part.endswith("]"):
            inside = re.sub(r"([\\^\[&~|])", r"\\\1", part[1:-1].removeprefix("!"))
            parts.append(f"[^/{inside}]" if part.startswith("[!") else f"[{inside}]")
        else:
            parts.append(known.get(part) or re.escape(part))
    try:
        return re.compile("".join(parts), re.DOTALL)
    except re.error:
        raise ValueError(f"{pattern!r} is not a pattern") from None
