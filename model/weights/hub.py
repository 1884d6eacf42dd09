"""Weights from elsewhere: fetched with resume, compared with published checksums, kept in one folder.

A model of the hub becomes plain files in FOLDER/<its id>, a SAM checkpoint a file in FOLDER, so that either
can as well be copied there by hand. What the hub's own library has in its cache already is used from there.
A model stays at the revision that its name ends in ("owner/name@commit"), or else that was fetched first.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit

import requests
from huggingface_hub import HfApi, get_token, snapshot_download
from tqdm import tqdm

from model import connections
from model.types import ModelLoadError
from model.weights import FOLDER

log = logging.getLogger(f"vlsam.{__name__}")

_BLOCK = 1 << 20  # bytes read from a file at one time
_PIECE = 1 << 16  # and from the network: what is lost, at most, when a connection breaks
_TIMEOUT = 30  # seconds without a byte
_PATIENCE = 10  # seconds until the hub says which files a model has; a server may wait for it to start
# What transformers reads; a repository often holds the same weights in other formats, too.
_TEXTS = ("*.json", "*.jinja", "*.txt", "*.model")
_WHOLE, _SHARDS, _INDEX = "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"

_NOTE = ".revision"  # beside a model's files: what is known about them
_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_SAMPLES, _SAMPLE = 256, 4096  # so many pieces of so many bytes tell two large files apart

Accept = Callable[[Mapping[str, Any]], None]  # raises ModelLoadError for a config.json that cannot be used


def _anything(config: Mapping[str, Any]) -> None:
    pass


@dataclass(frozen=True)
class Remote:
    """A file to be had, and how it is known to be the right one."""

    name: str
    url: str
    size: int  # bytes
    digest: str  # in hex: SHA-256 (64 digits), or git's object id (40), which the hub has for small files

    @property
    def large(self) -> bool:
        """Whether it is weights of which the SHA-256 is known ahead."""
        return _is_weights(self.name) and len(self.digest) == 64

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
    return name.startswith((".", "/", "~")) or _split(name)[0].count("/") > 1 or Path(name).exists()


def is_remote_sam(name: str) -> bool:
    """Whether a segmenter's name is no path: one of CHECKPOINTS, or a hub id, which has a slash."""
    if looks_local(name):
        return False
    return name in CHECKPOINTS or ("/" in name and Path(name).suffix not in (".pth", ".pt", ".safetensors"))


def hub(name: str, folder: Path = FOLDER, accept: Accept = _anything) -> Path:
    """The folder of a hub id's files, which are fetched where neither `folder` nor the hub's cache has them.

    `name` may end in a revision: "owner/name@commit". `accept` is asked with config.json before anything
    large is fetched, and raises ModelLoadError for what cannot be used. Raises ModelLoadError with one
    sentence on what to copy where, and where the folder holds another commit than the name says.
    """
    return _found(name, folder) or fetch_hub(name, folder, accept)


def sam(name: str, folder: Path = FOLDER, accept: Accept = _anything) -> Path:
    """The path that a segmenter's name means: of a published checkpoint in `folder`, or of a hub id's files,
    either fetched if it is missing; else the name itself. Raises ModelLoadError as `hub` does."""
    if not is_remote_sam(name):
        return Path(name).expanduser()
    if name not in CHECKPOINTS:
        return hub(name, folder, accept)
    path = folder.expanduser() / name
    return path if path.is_file() else fetch_sam(name, folder)


def at_hand(name: str, folder: Path = FOLDER) -> Path | None:
    """Where the files are that a model's name means; None where they are not on this machine yet.

    Raises ModelLoadError where the folder holds another commit than the name says.
    """
    if name in CHECKPOINTS and (folder.expanduser() / name).is_file():
        return folder.expanduser() / name
    path = Path(name).expanduser()
    return path if path.exists() else _found(name, folder)


def revision(name: str, folder: Path = FOLDER) -> str:
    """The commit of a hub id's files on this machine; "" where nobody noted it, as for hand copies."""
    found = _found(name, folder)
    if found is None:
        return ""
    return found.name if found.parent.name == "snapshots" else _Note.of(found).revision


def identity(name: str, folder: Path = FOLDER) -> dict[str, str]:
    """The SHA-256 of each file of a hub id that decides what the model does.

    They are the same wherever the files came from, and before and after they came: where they are not on this
    machine, the hub says those of the weights, and the small files are fetched. Weights that were copied by
    hand are read once. Raises ModelLoadError as `hub` does.
    """
    found = _found(name, folder)
    if found is None:
        listed, here = _ask(name, folder), folder.expanduser() / _split(name)[0]
        with _usable(here), _alone(here):
            small = [file for file in listed.files if not file.large]
            _bring(listed, here, small)
            weights = {file.name: file.digest for file in listed.files if file.large}
            return weights | {file.name: _digest(here / file.name) for file in small}
    note = _Note.of(found)
    names = {f.name for f in found.iterdir() if any(fnmatch(f.name, text) for text in _TEXTS)}
    return {file: _known(found / file, note) for file in sorted(names | _weights_of(found))}


def in_cache(name: str) -> tuple[str, str | None]:
    """A hub id that transformers itself fetches into the hub's cache, and the commit that is there."""
    base, wanted = _split(name)
    with suppress(OSError, ValueError):
        return base, Path(snapshot_download(base, revision=wanted, local_files_only=True)).name
    return base, None


def commit(name: str) -> str:
    """The commit of such a hub id: in the hub's cache, or as the hub says. Raises ModelLoadError."""
    base, wanted = _split(name)
    if there := in_cache(name)[1]:
        return there
    try:
        return str(HfApi().model_info(base, revision=wanted, timeout=_PATIENCE).sha)
    except Exception as error:  # whichever the hub library's HTTP client raises
        unanswered = f"{name} cannot be fetched, for the hub does not answer ({_why(error)})"
        raise ModelLoadError(_refusal(name, error) or unanswered) from error


def fetch_hub(name: str, folder: Path = FOLDER, accept: Accept = _anything) -> Path:
    """Fetch what is missing of a hub id and compare every file with its checksum; returns its folder.

    Without a revision in its name it stays at the one that was fetched first. `accept` as in `hub`. Raises
    ModelLoadError with one sentence on what to copy where.
    """
    base, _ = _split(name)
    here = folder.expanduser() / base
    cached = None if complete(here) else _cached(name)
    if cached:
        # The hub's cache names each file's content by the digest that the hub gave for it.
        blobs = [(file, file.resolve()) for file in cached.iterdir() if file.is_file()]
        if all(Remote("", "", b.stat().st_size, b.name).same(file) for file, b in blobs):
            return cached
    listed = _ask(name, folder)
    if all(file.same(here / file.name) for file in listed.files):
        accept(_config(here))
        if _Note.of(here).revision != listed.revision:
            known = {
                file.name: [sampled(here / file.name), file.digest] for file in listed.files if file.large
            }
            with suppress(OSError):  # a folder that is read-only has all that is needed
                _Note(listed.revision, known).write(here)
        return here
    with _usable(here), _alone(here):
        _bring(listed, here, [file for file in listed.files if file.name == "config.json"])
        accept(_config(here))
        _bring(listed, here, listed.files)
    return here


def fetch_sam(name: str, folder: Path = FOLDER, accept: Accept = _anything) -> Path:
    """Fetch a hub id, or one of CHECKPOINTS unless `folder` has it with the right checksum; returns its path.

    Raises ModelLoadError with one sentence on what to copy where.
    """
    if name not in CHECKPOINTS:
        return fetch_hub(name, folder, accept)
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
    return (folder / "config.json").is_file() and all(
        (folder / name).is_file() for name in _weights_of(folder)
    )


def _weights_of(folder: Path) -> set[str]:
    """The files of weights that a folder has, or should have by its index."""
    index = folder / _INDEX
    if index.is_file() and not (folder / _WHOLE).is_file():
        with suppress(ValueError, LookupError, TypeError, AttributeError):
            return set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    return {_WHOLE}


def sampled(file: Path) -> str:
    """A hash of a file's size and of pieces from all over it: quick, and another one for other weights."""
    size = file.stat().st_size
    state = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        if size <= _SAMPLES * _SAMPLE:
            state.update(opened.read())
        else:
            for number in range(_SAMPLES):  # the first and the last piece included
                opened.seek(number * (size - _SAMPLE) // (_SAMPLES - 1))
                state.update(opened.read(_SAMPLE))
    return state.hexdigest()


def fetch(files: Sequence[Remote], folder: Path) -> None:
    """Bring files into a folder, one after the other; those that are there already stay.

    A file grows under the name `.part`, from where the next call goes on, and gets its own name once its
    checksum agrees. Of two processes the second waits for the first. Raises ModelLoadError.
    """
    if all(remote.same(folder / remote.name) for remote in files):
        return
    with _usable(folder), _alone(folder):
        for remote in files:
            if not remote.same(folder / remote.name):
                _fetch(remote, folder / remote.name, {})


def _fetch(remote: Remote, target: Path, headers: Mapping[str, str]) -> None:
    part = _part(target)
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


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _stream(remote: Remote, part: Path, have: int, headers: Mapping[str, str]) -> None:
    """Append to `part` what comes from byte `have` on, or all of it from a server that knows no ranges."""
    asked = {**headers, "Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with connections.request("GET", remote.url, headers=asked, stream=True, timeout=_TIMEOUT) as response:
        response.raise_for_status()
        start = have if response.status_code == 206 else 0
        with part.open("ab" if start else "wb") as file, _bar(remote.name, remote.size, start) as bar:
            for block in response.iter_content(_PIECE):
                file.write(block)
                bar.update(len(block))
                if file.tell() > remote.size:  # the checksum will refuse it
                    return
            os.fsync(file.fileno())


@dataclass(frozen=True)
class _Listed:
    """What the hub has of a model at one commit: the files that transformers needs."""

    name: str
    revision: str
    files: tuple[Remote, ...]  # small ones first: weights complete a folder


@dataclass
class _Note:
    """What is known about the files in a model's folder."""

    revision: str = ""  # the commit that they are of
    weights: dict[str, list[str]] = field(default_factory=dict)  # file -> [as `sampled`, its SHA-256]

    @classmethod
    def of(cls, folder: Path) -> "_Note":
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            read = json.loads((folder / _NOTE).read_text("utf-8"))
            weights = {str(name): [str(each) for each in pair] for name, pair in read["weights"].items()}
            return cls(str(read["revision"]), {n: pair for n, pair in weights.items() if len(pair) == 2})
        return cls()

    def write(self, folder: Path) -> None:
        part = folder / f"{_NOTE}.{os.getpid()}.part"
        part.write_text(json.dumps(vars(self)), "utf-8")
        part.replace(folder / _NOTE)


def _split(name: str) -> tuple[str, str | None]:
    """A hub id without its revision, and that."""
    base, _, wanted = name.partition("@")
    return (base, wanted or None) if "/" in base else (name, None)


def _is_weights(file: str) -> bool:
    return file == _WHOLE or fnmatch(file, _SHARDS)


def _ask(name: str, folder: Path) -> _Listed:
    """What the hub says about an id, at its revision or the noted one. Raises ModelLoadError."""
    base, wanted = _split(name)
    here = folder.expanduser() / base
    wanted = wanted or _Note.of(here).revision or None
    connections.use_for_hub()
    api = HfApi()
    try:
        info = api.model_info(base, revision=wanted, files_metadata=True, timeout=_PATIENCE)
    except Exception as error:  # whichever the hub library's HTTP client raises
        if complete(here):
            raise ModelLoadError(
                f"{here} is complete and will be loaded, but its checksums cannot be compared, for the hub "
                f"does not answer ({_why(error)})"
            ) from error
        if refusal := _refusal(f"{base}@{wanted}" if wanted else base, error):
            raise ModelLoadError(refusal) from error
        raise ModelLoadError(
            f"{name} cannot be fetched, for the hub does not answer ({_why(error)}): run `vlsam download` "
            f"where there is a network, or copy the model's {', '.join(_TEXTS)} and model*.safetensors files "
            f"into {here}"
        ) from error
    siblings = {file.rfilename: file for file in info.siblings or []}
    weights = _WHOLE if _WHOLE in siblings else _SHARDS
    if not any(fnmatch(file, weights) for file in siblings):
        raise ModelLoadError(f"{name} has no safetensors, and weights in other formats are not loaded")
    if "config.json" not in siblings:
        raise ModelLoadError(f"{name} has no config.json, so it is no model that transformers loads")
    files = [
        Remote(
            file,
            f"{api.endpoint}/{base}/resolve/{info.sha}/{quote(file)}",
            about.size or 0,
            about.lfs.sha256 if about.lfs else about.blob_id or "",
        )
        for file, about in siblings.items()
        if "/" not in file and any(fnmatch(file, pattern) for pattern in (*_TEXTS, weights))
    ]
    return _Listed(base, str(info.sha), tuple(sorted(files, key=lambda remote: remote.size)))


def _bring(listed: _Listed, here: Path, files: Sequence[Remote]) -> None:
    """Fetch what is missing of `files` into a folder, which thereby is of the listed revision.

    Files of another revision go first, so that a folder that looks complete never mixes two.
    """
    note = _Note.of(here)
    if note.revision != listed.revision:
        old = {file.name for file in here.iterdir() if _is_weights(file.name)}
        for name in old - {remote.name for remote in listed.files}:
            (here / name).unlink()
        for remote in listed.files:
            if not remote.same(here / remote.name):
                (here / remote.name).unlink(missing_ok=True)
            if note.revision:
                _part(here / remote.name).unlink(missing_ok=True)
        note = _Note(listed.revision)
        note.write(here)
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    for remote in files:
        target = here / remote.name
        if not remote.same(target):
            try:
                _fetch(remote, target, headers)
            except ModelLoadError as error:
                refusal = _refusal(listed.name, error.__cause__, remote.url)
                raise (ModelLoadError(refusal) if refusal else error) from error.__cause__
        if remote.large:
            note.weights[remote.name] = [sampled(target), remote.digest]
    note.write(here)


def _refusal(name: str, error: BaseException | None, url: str = "") -> str:
    """What to do where the hub refuses a model, or its file at `url`; "" where it does not."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if response is None or status not in (401, 403, *(() if url else (404,))):
        return ""
    if url and urlsplit(str(response.url)).netloc != urlsplit(url).netloc:  # of where the hub keeps files
        return ""
    base, wanted = _split(name)
    token = get_token()
    page, code = f"{HfApi().endpoint}/{base}", response.headers.get("X-Error-Code", "")
    said = response.headers.get("X-Error-Message", "").lower()
    refused = f"the hub does not give {name} (HTTP {status})"
    if code == "RevisionNotFound":
        return f"{refused}: the model has no revision {wanted}; {page}/commits/main lists those it has"
    if token and ("expired" in said or "invalid credentials" in said):
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


def _config(here: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((here / "config.json").read_text("utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"{here / 'config.json'} is no JSON") from error
    return config if isinstance(config, dict) else {}


def _known(file: Path, note: _Note) -> str:
    """The SHA-256 of a file, without reading it all where it is weights and was read before."""
    if not _is_weights(file.name):
        return _digest(file)
    blob = file.resolve().name
    if file.is_symlink() and re.fullmatch("[0-9a-f]{64}", blob):  # the hub's cache names it so
        return blob
    sample = sampled(file)
    if note.weights.get(file.name, [""])[0] != sample:
        log.info("Reading all of %s once, for its checksum.", file)
        note.weights[file.name] = [sample, _digest(file)]
        with suppress(OSError):  # a folder that is read-only is read again next time
            note.write(file.parent)
    return note.weights[file.name][1]


def _found(name: str, folder: Path) -> Path | None:
    """A complete copy of a hub id on this machine, in `folder` or in the hub's own cache.

    Raises ModelLoadError where `folder` holds another commit than the name says.
    """
    base, wanted = _split(name)
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


def _cached(name: str) -> Path | None:
    """A complete copy in the hub's own cache."""
    base, wanted = _split(name)
    try:
        cached = Path(
            snapshot_download(
                base, revision=wanted, local_files_only=True, allow_patterns=[*_TEXTS, _WHOLE, _SHARDS]
            )
        )
    except (OSError, ValueError):  # not there, there in part, or no hub id at all
        return None
    return cached if complete(cached) else None


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Makes a folder; raises ModelLoadError for whatever the disk has against it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ModelLoadError(f"{folder} cannot be used for weights: {error.strerror or error}") from error


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
    if error is None:
        return "nothing came"
    known = isinstance(error, connections.ProxyError)  # whose message has no secret
    return connections.distrust(error) or (str(error) if known else type(error).__name__)
