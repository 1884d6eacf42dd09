"""Weights from elsewhere: fetched with resume, compared with published checksums, kept in one folder.

A model of the hub becomes plain files in FOLDER/<its id>, a SAM checkpoint a file in FOLDER, so that either
can as well be copied there by hand. What the hub's own library has in its cache already is used from there.
"""

import fcntl
import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote, urlsplit

import requests
from huggingface_hub import HfApi, get_token, snapshot_download
from tqdm import tqdm

from model.types import ModelLoadError

log = logging.getLogger(__name__)

FOLDER = Path("~/.cache/vlsam")
_BLOCK = 1 << 20  # bytes read from a file at one time
_PIECE = 1 << 16  # and from the network: what is lost, at most, when a connection breaks
_TIMEOUT = 30  # seconds without a byte
# What transformers reads; a repository often holds the same weights in other formats, too.
_TEXTS = ("*.json", "*.jinja", "*.txt", "*.model")
_WHOLE, _SHARDS, _INDEX = "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Remote:
    """A file to be had, and how it is known to be the right one."""

    name: str
    url: str
    size: int  # bytes
    digest: str  # in hex: SHA-256 (64 digits), or git's object id (40), which the hub has for small files

    def same(self, file: Path) -> bool:
        """Whether `file` exists and holds these very bytes. Reads it all: about a second per GB."""
        if not file.is_file() or file.stat().st_size != self.size:
            return False
        return _digest(file, git=len(self.digest) == 40) == self.digest


def _sam(name: str, size: int, digest: str) -> Remote:
    return Remote(name, f"https://dl.fbaipublicfiles.com/segment_anything/{name}", size, digest)


# Addresses: READMEs of facebookresearch/segment-anything and ChaoningZhang/MobileSAM, which give no
# checksums. SAM's are pinned alike by micro-sam, by 3D Slicer's extension and by many others; MobileSAM's by
# executorch's example and others.
CHECKPOINTS = {
    remote.name: remote
    for remote in (
        _sam(
            "sam_vit_b_01ec64.pth",
            375_042_383,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        _sam(
            "sam_vit_l_0b3195.pth",
            1_249_524_607,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        _sam(
            "sam_vit_h_4b8939.pth",
            2_564_550_879,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
        Remote(
            "mobile_sam.pt",
            "https://github.com/ChaoningZhang/MobileSAM/raw/f706ad9c4eb7f219c00d9050e46328518ffb65d2/weights/"
            "mobile_sam.pt",
            40_728_226,
            "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        ),
    )
}


def looks_local(name: str) -> bool:
    """Whether a model name is meant as a path: a hub id has one slash at most and starts with a word."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()


def is_remote_sam(name: str) -> bool:
    """Whether a segmenter's name is no path: one of CHECKPOINTS, or a hub id, which has a slash."""
    if looks_local(name):
        return False
    return name in CHECKPOINTS or ("/" in name and Path(name).suffix not in (".pth", ".pt", ".safetensors"))


def hub(name: str, folder: Path = FOLDER) -> Path:
    """The folder of a hub id's files, which are fetched where neither `folder` nor the hub's cache has them.

    Raises ModelLoadError with one sentence on what to copy where.
    """
    return _found(name, folder) or fetch_hub(name, folder)


def sam(name: str, folder: Path = FOLDER) -> Path:
    """The path that a segmenter's name means: of a published checkpoint in `folder`, or of a hub id's files,
    either fetched if it is missing; else the name itself. Raises ModelLoadError as `hub` does."""
    if not is_remote_sam(name):
        return Path(name).expanduser()
    if name not in CHECKPOINTS:
        return hub(name, folder)
    path = folder.expanduser() / name
    return path if path.is_file() else fetch_sam(name, folder)


def at_hand(name: str, folder: Path = FOLDER) -> Path | None:
    """Where the files are that a model's name means; None where they are not on this machine yet."""
    if name in CHECKPOINTS and (folder.expanduser() / name).is_file():
        return folder.expanduser() / name
    path = Path(name).expanduser()
    return path if path.exists() else _found(name, folder)


def fetch_hub(name: str, folder: Path = FOLDER) -> Path:
    """Fetch what is missing of a hub id and compare every file with its checksum; returns its folder.

    Raises ModelLoadError with one sentence on what to copy where.
    """
    here = folder.expanduser() / name
    found = _found(name, folder)
    if found and found != here:
        # The hub's cache names each file's content by the digest that the hub gave for it.
        blobs = [(file, file.resolve()) for file in found.iterdir() if file.is_file()]
        if all(Remote("", "", b.stat().st_size, b.name).same(file) for file, b in blobs):
            return found
    try:
        files = _hub_files(name)
    except ModelLoadError:
        raise
    except Exception as error:  # whichever the hub library's HTTP client raises
        if found == here:
            raise ModelLoadError(
                f"{here} is complete and will be loaded, but its checksums cannot be compared, for the hub "
                f"does not answer ({_why(error)})"
            ) from error
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403, 404):
            raise ModelLoadError(
                f"the hub does not give {name} ({_why(error)}): check the id; for a gated model accept its "
                "licence there and set HF_TOKEN"
            ) from error
        raise ModelLoadError(
            f"{name} cannot be fetched, for the hub does not answer ({_why(error)}): run `vlsam download` "
            f"where there is a network, or copy the model's {', '.join(_TEXTS)} and model*.safetensors files "
            f"into {here}"
        ) from error
    token = get_token()
    fetch(files, here, headers={"Authorization": f"Bearer {token}"} if token else None)
    return here


def fetch_sam(name: str, folder: Path = FOLDER) -> Path:
    """Fetch a hub id, or one of CHECKPOINTS unless `folder` has it with the right checksum; returns its path.

    Raises ModelLoadError with one sentence on what to copy where.
    """
    if name not in CHECKPOINTS:
        return fetch_hub(name, folder)
    fetch([CHECKPOINTS[name]], folder.expanduser())
    return folder.expanduser() / name


def check(file: Path) -> None:
    """Compare a checkpoint with its SHA-256: the published one of its name, else that in `<file>.sha256`.

    Where there is none the log says so. Raises ModelLoadError on another checksum.
    """
    beside = file.with_name(f"{file.name}.sha256")
    if file.name in CHECKPOINTS:
        wanted = CHECKPOINTS[file.name].digest
    elif beside.is_file():
        wanted = (beside.read_text("ascii", "replace").split() or [""])[0].lower()
    else:
        log.warning("%s is loaded without a checksum; %s would be compared.", file, beside)
        return
    given = _digest(file)
    if given != wanted:
        source = "the published file" if file.name in CHECKPOINTS else beside.name
        raise ModelLoadError(
            f"{file} has the SHA-256 {given}, {source} {wanted or 'none'}: delete it and run "
            "`vlsam download`, or give it another name if it is your own"
        )


def complete(folder: Path) -> bool:
    """Whether a folder holds a model's config and every file of weights that its index names."""
    index = folder / _INDEX
    weights = {_WHOLE}
    if index.is_file() and not (folder / _WHOLE).is_file():
        try:
            weights = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (ValueError, LookupError, TypeError, AttributeError):
            return False
    return all((folder / name).is_file() for name in ("config.json", *weights))


def fetch(files: Sequence[Remote], folder: Path, *, headers: Mapping[str, str] | None = None) -> None:
    """Bring files into a folder, one after the other; those that are there already stay.

    A file grows under the name `.part`, from where the next call goes on, and gets its own name once its
    checksum agrees. Of two processes the second waits for the first. Raises ModelLoadError.
    """
    try:
        missing = [remote for remote in files if not remote.same(folder / remote.name)]
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
            with _alone(folder):
                for remote in missing:
                    if not remote.same(folder / remote.name):
                        _fetch(remote, folder / remote.name, headers or {})
    except OSError as error:
        raise ModelLoadError(f"{folder} cannot be used for weights: {error.strerror or error}") from error


def _fetch(remote: Remote, target: Path, headers: Mapping[str, str]) -> None:
    part = target.with_name(f"{target.name}.part")
    part.touch()
    log.info("Fetching %s (%d MB) into %s.", remote.name, remote.size >> 20, target.parent)
    while (have := part.stat().st_size) < remote.size:
        broken = None
        try:
            _stream(remote, part, have, headers)
        except requests.RequestException as error:
            broken = error
        if part.stat().st_size <= have:  # as long as each try brings something, go on where it broke
            raise ModelLoadError(
                f"{remote.name} cannot be fetched from {urlsplit(remote.url).netloc} ({_why(broken)}): run "
                "`vlsam download` where there is a network, which goes on where this stopped, or copy "
                f"{remote.url} to {target}"
            ) from broken
    if not remote.same(part):
        part.unlink()
        raise ModelLoadError(
            f"{remote.url} came with another checksum than {remote.digest} and was deleted: try again, and "
            "if it stays so do not trust that address"
        )
    part.replace(target)


def _stream(remote: Remote, part: Path, have: int, headers: Mapping[str, str]) -> None:
    """Append to `part` what comes from byte `have` on, or all of it from a server that knows no ranges."""
    asked = {**headers, "Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with requests.get(remote.url, headers=asked, stream=True, timeout=_TIMEOUT) as response:
        response.raise_for_status()
        start = have if response.status_code == 206 else 0
        with part.open("ab" if start else "wb") as file, _bar(remote.name, remote.size, start) as bar:
            for block in response.iter_content(_PIECE):
                file.write(block)
                bar.update(len(block))
                if file.tell() > remote.size:  # the checksum will refuse it
                    return
            os.fsync(file.fileno())


def _hub_files(name: str) -> list[Remote]:
    """The files of a hub id that transformers needs, small ones first: weights complete a folder."""
    api = HfApi()
    info = api.model_info(name, files_metadata=True, timeout=_TIMEOUT)
    siblings = {file.rfilename: file for file in info.siblings or []}
    weights = _WHOLE if _WHOLE in siblings else _SHARDS
    if not any(fnmatch(file, weights) for file in siblings):
        raise ModelLoadError(f"{name} has no safetensors, and weights in other formats are not loaded")
    files = [
        Remote(
            file,
            f"{api.endpoint}/{name}/resolve/{info.sha}/{quote(file)}",
            about.size or 0,
            about.lfs.sha256 if about.lfs else about.blob_id or "",
        )
        for file, about in siblings.items()
        if "/" not in file and any(fnmatch(file, pattern) for pattern in (*_TEXTS, weights))
    ]
    return sorted(files, key=lambda remote: remote.size)


def _found(name: str, folder: Path) -> Path | None:
    """A complete copy of a hub id on this machine, in `folder` or in the hub's own cache."""
    here = folder.expanduser() / name
    if complete(here):
        return here
    try:
        cached = Path(
            snapshot_download(name, local_files_only=True, allow_patterns=[*_TEXTS, _WHOLE, _SHARDS])
        )
    except (OSError, ValueError):  # not there, there in part, or no hub id at all
        return None
    return cached if complete(cached) else None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one process at a time write into a folder."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("Another process fetches into %s; waiting for it.", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(file: Path, *, git: bool = False) -> str:
    """SHA-256 of a file, or git's id of it as an object."""
    size = file.stat().st_size
    state = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if git else hashlib.sha256()
    with file.open("rb") as opened, _bar(f"checksum of {file.name}", size, leave=False) as bar:
        while block := opened.read(_BLOCK):
            state.update(block)
            bar.update(len(block))
    return state.hexdigest()


def _bar(what: str, size: int, start: int = 0, *, leave: bool = True) -> "tqdm[NoReturn]":
    """A progress bar of bytes on standard error, if that is a terminal."""
    return tqdm(
        desc=what,
        total=size,
        initial=start,
        unit="B",
        unit_scale=True,
        leave=leave,
        file=sys.stderr,
        disable=None,
    )


def _why(error: Exception | None) -> str:
    """A short reason; not the message, which may hold a signed address."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP {response.status_code}"
    return type(error).__name__ if error else "nothing came"
