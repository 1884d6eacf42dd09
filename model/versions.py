"""Compute the model version: a hash of options, weights and how they are loaded. Loads no weights."""

import hashlib
from pathlib import Path

from model.options import Options
from model.profiles import Profile
from model.weights import hub
from model.weights.files import sample_hash
from model.weights.names import is_local, is_remote_sam
from model.weights.sam_checkpoints import CHECKPOINTS


def version_of(profile: Profile, options: Options | None = None, *more: str) -> str:
    """Return the model version. Equal versions mean equal results. Load no weights.

    It is a hash of settings, weights and `more`, other values that affect results. For weights on the hub
    that are not on this machine, fetch only the small files. Raises ModelLoadError if that fails.
    """
    # Options that were renamed keep their first names here, so that a new release keeps the versions.
    named = repr(options or Options()).replace("remote_vlm=", "listing=").replace("RemoteVLM(", "Endpoint(")
    digest = hashlib.sha256(named.encode())
    digest.update(repr((profile.dtype, profile.quantization, profile.pixels, *more)).encode())
    weights = [(profile.vlm, not is_local(profile.vlm)), _sam(profile)]
    if options and options.classifier:
        weights.append((options.classifier, not is_local(options.classifier)))
    for name, remote in weights:
        digest.update(_identity(name, profile.folder, remote=remote))
    return f"vlsam-{profile.name}-{digest.hexdigest()[:10]}"


def segmenter_version_of(profile: Profile, options: Options | None = None) -> str:
    """Return the version of embeddings. It depends on the segmenter alone, not on the VLM.

    The localizer `concept` has a version of its own, since its embeddings contain more.
    """
    concepts = options is not None and options.localizer == "concept"
    name, remote = _sam(profile)
    identity = _identity(name, profile.folder, remote=remote)
    return f"sam-{identity.hex()[:16]}{'-concepts' if concepts else ''}"


def _sam(profile: Profile) -> tuple[str, bool]:
    """Return the segmenter's name, and whether it is a hub id."""
    name = profile.sam
    return name, is_remote_sam(name) and name not in CHECKPOINTS


def _identity(name: str, folder: Path, *, remote: bool) -> bytes:
    """Return a hash of weights. `name` is a hub id if `remote`, else a file, a folder or another name.

    The hash covers names and content, since retrained files keep their name and size.
    """
    if remote:
        return hashlib.sha256(repr(sorted(hub.file_digests(name, folder).items())).encode()).digest()
    path = Path(name).expanduser()
    digest = hashlib.sha256(path.name.encode() if path.exists() else name.encode())
    for file in sorted(path.glob("[!.]*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(f"{file.name}:{sample_hash(file)}".encode())
    return digest.digest()
