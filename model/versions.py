"""Version names for what decides results: options, weights and how they are loaded. Loads no weights."""

import hashlib
from pathlib import Path

from model.options import Options
from model.profiles import Profile
from model.weights import hub
from model.weights.files import sample_hash
from model.weights.names import is_local, is_remote_sam
from model.weights.sam_checkpoints import CHECKPOINTS


def version_of(profile: Profile, options: Options | None = None, *more: str) -> str:
    """A name for what decides the results, from settings and file identities; loads no weights.

    `more` is what else decides them. Of weights on the hub that are not on this machine yet, the small files
    are fetched. Raises ModelLoadError where that fails.
    """
    # Options that were renamed keep their first names here, so that a new release keeps the versions.
    named = repr(options or Options()).replace("remote_vlm=", "listing=").replace("RemoteVLM(", "Endpoint(")
    digest = hashlib.sha256(named.encode())
    digest.update(repr((profile.dtype, profile.quantization, profile.pixels, *more)).encode())
    for name, remote in ((profile.vlm, not is_local(profile.vlm)), _sam(profile)):
        digest.update(_identity(name, profile.folder, remote=remote))
    if options and options.classifier:
        name = options.classifier
        digest.update(_identity(name, profile.folder, remote=not is_local(name)))
    return f"vlsam-{profile.name}-{digest.hexdigest()[:10]}"


def segmenter_version_of(profile: Profile, options: Options | None = None) -> str:
    """The same for what decides an embedding: the segmenter alone, so that another VLM keeps them.

    By concept an embedding holds more, which one made for clicks alone lacks.
    """
    concepts = options is not None and options.localizer == "concept"
    name, remote = _sam(profile)
    identity = _identity(name, profile.folder, remote=remote)
    return f"sam-{identity.hex()[:16]}{'-concepts' if concepts else ''}"


def _sam(profile: Profile) -> tuple[str, bool]:
    """The segmenter's name, and whether it is a hub id. Published checkpoints are known by their names."""
    name = profile.sam
    return name, is_remote_sam(name) and name not in CHECKPOINTS


def _identity(name: str, folder: Path, *, remote: bool) -> bytes:
    """Of weights given as a hub id (`remote`), a file, a folder or a name.

    Trained anew, files keep their name and size, so what is in them counts as well.
    """
    if remote:
        return hashlib.sha256(repr(sorted(hub.file_digests(name, folder).items())).encode()).digest()
    path = Path(name).expanduser()
    digest = hashlib.sha256(path.name.encode() if path.exists() else name.encode())
    files = (
        sorted(f for f in path.glob("[!.]*") if f.is_file())
        if path.is_dir()
        else [path]
        if path.is_file()
        else []
    )
    for file in files:
        digest.update(f"{file.name}:{sample_hash(file)}".encode())
    return digest.digest()
