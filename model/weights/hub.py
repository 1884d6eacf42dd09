"""Download models of the hub to plain files in FOLDER/<id>, and verify their checksums.

The files can also be copied there by hand. A complete copy in the hub's own cache is used from there. A
model stays at the revision in its name ("owner/name@commit"), or else at the one that was fetched first.
"""

import glob
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import HfApi, get_token, snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils.tqdm import tqdm

from model import connections
from model.profiles import FOLDER
from model.types import ModelLoadError
from model.weights.files import digest_of, exclusive, is_intact, reason_of, response_of, sample_hash

log = logging.getLogger(f"vlsam.{__name__}")

_PATIENCE = 10  # seconds until the hub lists a model's files; a server may wait for it to start
# What transformers reads; a repository often holds the same weights in other formats, too.
_TEXTS = ("*.json", "*.jinja", "*.txt", "*.model")
_WHOLE, _SHARDS, _INDEX = "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"
_NOTE = ".revision"  # file beside a model's files, see _Note
_COMMIT = re.compile(r"[0-9a-f]{7,40}")
# Files at a time. The library drops what it has of a file when it is interrupted, so few are under way.
_WORKERS = 2

Accept = Callable[[Mapping[str, Any]], None]  # raises ModelLoadError for a config.json that cannot be used


def split_revision(name: str) -> tuple[str, str | None]:
    """Split "owner/name@revision" into id and revision. The revision is None if the name has none."""
    base, _, revision = name.partition("@")
    return (base, revision or None) if "/" in base else (name, None)


def ensure(name: str, folder: Path = FOLDER, accept: Accept | None = None) -> Path:
    """Return the folder of a hub id's files. Download missing ones. Raises ModelLoadError."""
    return find(name, folder) or fetch(name, folder, accept)


def find(name: str, folder: Path = FOLDER) -> Path | None:
    """Return a complete copy of a hub id on this machine, in `folder` or in the hub's cache, or None.

    Raises ModelLoadError if `folder` holds another commit than the one in the name.
    """
    base, wanted = split_revision(name)
    here = folder.expanduser() / base
    if not complete(here):
        return _cached(name)
    have = _Note.of(here).revision
    if wanted is None or not have or not _COMMIT.fullmatch(wanted) or have.startswith(wanted):
        return here
    if cached := _cached(name):
        return cached
    raise ModelLoadError(
        f"{here} holds {base} at {have}, and {wanted} is asked for: run `vlsam download` to fetch that, or "
        f"name {base}@{have} to stay (VLSAM_VLM, VLSAM_SAM)"
    )


def fetch(name: str, folder: Path = FOLDER, accept: Accept | None = None) -> Path:
    """Download the missing files of a hub id, verify all checksums, and return the folder.

    Without a revision in its name, the model stays at the one that was fetched first. `accept` gets
    config.json before the weights are fetched, and raises ModelLoadError for a model that cannot be used.
    Raises ModelLoadError.
    """
    here = folder.expanduser() / split_revision(name)[0]
    cached = None if complete(here) else _cached(name)
    # The hub's cache names each file's content by the hub's digest.
    if cached and all(is_intact(file, file.resolve().name) for file in cached.iterdir() if file.is_file()):
        return cached
    listing = _list(name, here)
    if not listing.damaged(listing.digests):
        _check_config(here, accept)
        if _Note.of(here).revision != listing.revision:
            with suppress(OSError):  # a read-only folder has all that is needed
                listing.note()
        return here
    with exclusive(here):
        listing.download(["config.json"])
        _check_config(here, accept)
        listing.download(file for file in listing.digests if not _is_weights(file))
        listing.download(listing.digests)  # last: weights complete a folder
    return here


def revision(name: str, folder: Path = FOLDER) -> str:
    """Return the commit of a hub id's files on this machine; "" if it is unknown, as for copies by hand."""
    found = find(name, folder)
    if found is None:
        return ""
    return found.name if found.parent.name == "snapshots" else _Note.of(found).revision


def file_digests(name: str, folder: Path = FOLDER) -> dict[str, str]:
    """Return the SHA-256 of each weight, config and tokenizer file of a hub id. Raises ModelLoadError.

    The hub's listing has the digests of missing weights, and missing small files are downloaded. So the
    digests are the same before and after a download. Weights that were copied by hand are read once.
    """
    found = find(name, folder)
    if found is None:
        here = folder.expanduser() / split_revision(name)[0]
        listing = _list(name, here)
        small = listing.digests.keys() - listing.weights.keys()
        with exclusive(here):
            listing.download(small)
        return {**listing.weights, **{file: digest_of(here / file) for file in small}}
    note = _Note.of(found)
    texts = {file.name for file in found.iterdir() if any(fnmatch(file.name, text) for text in _TEXTS)}
    return {file: _local_digest(found / file, note) for file in sorted(texts | _weights_of(found))}


def complete(folder: Path) -> bool:
    """Return whether a folder holds a model's config and every file of weights that its index names."""
    return all(os.path.isfile(folder / name) for name in ("config.json", *_weights_of(folder)))


def _weights_of(folder: Path) -> set[str]:
    """Return the names of the weight files that a model's folder needs, by its index if it has one."""
    index = folder / _INDEX
    if index.is_file() and not (folder / _WHOLE).is_file():
        with suppress(ValueError, RecursionError, LookupError, TypeError, AttributeError):
            names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
            return {str(name) for name in names} or {_WHOLE}
    return {_WHOLE}


def _is_weights(file: str) -> bool:
    return file == _WHOLE or fnmatch(file, _SHARDS)


@dataclass
class _Note:
    """The commit of a model's files, and per file of weights its `sample_hash` and SHA-256."""

    revision: str = ""
    weights: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> "_Note":
        """Read a folder's note. Return an empty one if the file is missing or damaged."""
        with suppress(OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
            note = json.loads((folder / _NOTE).read_text("utf-8"))
            weights = {name: [str(sample), str(digest)] for name, (sample, digest) in note["weights"].items()}
            return cls(str(note["revision"]), weights)
        return cls()

    def write(self, folder: Path) -> None:
        part = folder / f"{_NOTE}.{os.getpid()}.part"
        part.write_text(json.dumps(vars(self)), "utf-8")
        part.replace(folder / _NOTE)


@dataclass(frozen=True)
class _Listing:
    """The files that transformers needs of a model at one commit, with the hub's digests."""

    name: str
    here: Path
    revision: str
    digests: Mapping[str, str]

    @property
    def weights(self) -> dict[str, str]:
        """The files of weights with their SHA-256. The hub lists no SHA-256 for small files in git."""
        return {file: d for file, d in self.digests.items() if _is_weights(file) and len(d) == 64}

    def damaged(self, files: Iterable[str]) -> list[str]:
        """Return those of `files` that are missing in the folder or have another digest."""
        return [file for file in files if not is_intact(self.here / file, self.digests[file])]

    def note(self) -> None:
        """Write the folder's note: the revision, and the digests of its weights."""
        have = {file: digest for file, digest in self.weights.items() if (self.here / file).is_file()}
        samples = {file: [sample_hash(self.here / file), digest] for file, digest in have.items()}
        _Note(self.revision, samples).write(self.here)

    def download(self, files: Iterable[str]) -> None:
        """Download those of `files` that are missing or damaged, at this revision. Raises ModelLoadError.

        Delete files of another revision first, so that a folder that looks complete never mixes two.
        """
        here = self.here
        if _Note.of(here).revision != self.revision:
            stale = {f.name for f in here.iterdir() if _is_weights(f.name)} - self.digests.keys()
            for name in (*stale, *self.damaged(self.digests)):
                (here / name).unlink(missing_ok=True)
            _Note(self.revision).write(here)
        missing = self.damaged(files)
        for file in missing:  # the library does not check existing files
            (here / file).unlink(missing_ok=True)
        if missing:
            # Files of a process that was killed.
            for orphan in here.glob(".cache/huggingface/download/*.incomplete"):
                orphan.unlink(missing_ok=True)
            log.info("Downloading %d files of %s into %s.", len(missing), self.name, here)
            try:
                snapshot_download(
                    self.name,
                    revision=self.revision,
                    local_dir=here,
                    cache_dir=here / ".cache",  # not the usual one, whose damaged files it would copy
                    allow_patterns=[glob.escape(file) for file in missing],
                    max_workers=_WORKERS,
                    tqdm_class=_TerminalBar,
                )
            except Exception as error:
                if isinstance(error, OSError) and error.errno:  # of the disk
                    raise
                raise _failure(self.name, here, error) from error
        for file in missing:
            if not (here / file).is_file():  # the library returns a folder that it could not complete
                raise _failure(self.name, here, None)
            if self.damaged([file]):
                (here / file).unlink()
                raise ModelLoadError(
                    f"{file} of {self.name} came with another checksum than {self.digests[file]} and was "
                    "deleted: try again, and if it stays so do not trust the address in HF_ENDPOINT"
                )
        self.note()


class _TerminalBar(tqdm):
    """The library's progress bar, on terminals only."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "disable": None})  # type: ignore[no-untyped-call]


def _list(name: str, here: Path) -> _Listing:
    """Fetch the hub's list of a model's files, at its revision or the noted one. Raises ModelLoadError."""
    base, wanted = split_revision(name)
    wanted = wanted or _Note.of(here).revision or None
    connections.use_for_hub()
    try:
        info = HfApi().model_info(base, revision=wanted, files_metadata=True, timeout=_PATIENCE)
    except HFValidationError as error:
        raise ModelLoadError(
            f"{base!r} is malformed as an id of the hub: an id is owner/name, such as "
            "Qwen/Qwen2.5-VL-3B-Instruct, of letters, digits, '-', '_' and '.', and may end with @ and a "
            "revision; a path begins with / or ./"
        ) from error
    except Exception as error:  # whichever the hub library's HTTP client raises
        if complete(here):
            raise ModelLoadError(
                f"{here} is complete and will be loaded, but its checksums cannot be compared, for the hub "
                f"does not answer ({reason_of(error)})"
            ) from error
        raise _failure(f"{base}@{wanted}" if wanted else base, here, error) from error
    files = {file.rfilename: file for file in info.siblings or []}
    weights = _WHOLE if _WHOLE in files else _SHARDS
    if not any(fnmatch(file, weights) for file in files):
        raise ModelLoadError(f"{name} has no safetensors, and weights in other formats are not loaded")
    if "config.json" not in files:
        raise ModelLoadError(f"{name} has no config.json, so it is no model that transformers loads")
    digests = {
        file: about.lfs.sha256 if about.lfs else about.blob_id or ""
        for file, about in files.items()
        if not set("/\\\0") & set(file) and any(fnmatch(file, pattern) for pattern in (*_TEXTS, weights))
    }
    return _Listing(base, here, str(info.sha), digests)


def _failure(name: str, here: Path, error: BaseException | None) -> ModelLoadError:
    return ModelLoadError(
        _refusal(name, error)
        or f"{name} cannot be fetched, for the hub does not answer ({reason_of(error)}): run `vlsam "
        "download` where there is a network, which goes on with the missing files, or copy the model's "
        f"{', '.join(_TEXTS)} and model*.safetensors files into {here}"
    )


def _refusal(name: str, error: BaseException | None) -> str:
    """Return a sentence of advice if `error` is the hub's refusal of a model; "" for any other error."""
    response, endpoint = response_of(error), HfApi().endpoint
    if response is None or response.status_code not in (401, 403, 404):
        return ""
    if urlsplit(str(response.url)).netloc != urlsplit(endpoint).netloc:  # the storage that the hub points to
        return ""
    base, wanted = split_revision(name)
    token = get_token()
    page, code = f"{endpoint}/{base}", response.headers.get("X-Error-Code", "")
    message = response.headers.get("X-Error-Message", "").lower()
    refused = f"the hub does not give {name} (HTTP {response.status_code})"
    if code == "RevisionNotFound":
        return f"{refused}: the model has no revision {wanted}; {page}/commits/main lists those it has"
    if token and ("expired" in message or "invalid credentials" in message):
        return f"{refused}: the token in HF_TOKEN is wrong or has expired; set a new one, or none"
    if code == "GatedRepo" and token:
        return (
            f"{refused}: it is gated, and the account of the token in HF_TOKEN has no access; accept its "
            f"licence at {page} with that account, and let the token read gated repositories"
        )
    if code == "GatedRepo":
        return f"{refused}: it is gated; accept its licence at {page}, and set HF_TOKEN to a token of yours"
    return (
        f"{refused}: check the id; for a gated model accept its licence at {page} and set HF_TOKEN to a "
        "token of yours, for a private one to a token that may read it; a token that is set may have expired"
    )


def _check_config(here: Path, accept: Accept | None) -> None:
    try:
        config = json.loads((here / "config.json").read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{here / 'config.json'} is not JSON") from error
    if accept:
        accept(config if isinstance(config, dict) else {})


def _local_digest(file: Path, note: _Note) -> str:
    """Return a file's SHA-256. Take that of weights from the hub cache's file name or the note if known."""
    if not _is_weights(file.name):
        return digest_of(file)
    blob = file.resolve().name
    if file.is_symlink() and re.fullmatch("[0-9a-f]{64}", blob):  # the hub's cache names it so
        return blob
    sample = sample_hash(file)
    if note.weights.get(file.name, [""])[0] != sample:
        log.info("Reading all of %s once, for its checksum.", file)
        note.weights[file.name] = [sample, digest_of(file)]
        with suppress(OSError):  # a read-only folder is read again next time
            note.write(file.parent)
    return note.weights[file.name][1]


def _cached(name: str) -> Path | None:
    """Return the folder of a complete copy in the hub's own cache; None if there is none."""
    base, wanted = split_revision(name)
    patterns = [*_TEXTS, _WHOLE, _SHARDS]
    try:
        cached = snapshot_download(base, revision=wanted, local_files_only=True, allow_patterns=patterns)
    except (OSError, ValueError):  # missing, incomplete, or no hub id at all
        return None
    return Path(cached) if complete(Path(cached)) else None
