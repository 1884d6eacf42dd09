"""Distinguish kinds of model names: a path, a published SAM checkpoint, or an id of the hub."""

from pathlib import Path

from model.profiles import FOLDER
from model.weights import hub
from model.weights.hub import Accept, split_revision
from model.weights.sam_checkpoints import CHECKPOINTS, fetch


def is_local(name: str) -> bool:
    """Return whether a model's name is a path. A hub id starts with a word and has at most one slash."""
    return name.startswith((".", "/", "~")) or split_revision(name)[0].count("/") > 1 or Path(name).exists()


def is_remote_sam(name: str) -> bool:
    """Return whether a segmenter's name is a published checkpoint or a hub id, which has a slash."""
    if is_local(name):
        return False
    return name in CHECKPOINTS or ("/" in name and Path(name).suffix not in (".pth", ".pt", ".safetensors"))


def sam_path(name: str, folder: Path = FOLDER, accept: Accept | None = None) -> Path:
    """Return the path of a segmenter, and download it if it is missing. Raises ModelLoadError."""
    if not is_remote_sam(name):
        return Path(name).expanduser()
    if name not in CHECKPOINTS:
        return hub.ensure(name, folder, accept)
    path = folder.expanduser() / name
    return path if path.is_file() else fetch(CHECKPOINTS[name], folder)


def fetch_sam(name: str, folder: Path = FOLDER, accept: Accept | None = None) -> Path:
    """Download the missing files of a segmenter, verify them, and return its path. Raises ModelLoadError."""
    if name in CHECKPOINTS:
        return fetch(CHECKPOINTS[name], folder)
    return hub.fetch(name, folder, accept)


def local_path(name: str, folder: Path = FOLDER) -> Path | None:
    """Return the path of a model's files on this machine, or None. Raises ModelLoadError as `hub.find`."""
    if name in CHECKPOINTS and (folder.expanduser() / name).is_file():
        return folder.expanduser() / name
    path = Path(name).expanduser()
    return path if path.exists() else hub.find(name, folder)
