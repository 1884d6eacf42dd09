"""Download SAM's published checkpoint files, with resume, and compare them with their pinned SHA-256.

Addresses: READMEs of facebookresearch/segment-anything and ChaoningZhang/MobileSAM, which give no checksums.
The same SHA-256 are in micro-sam and 3D Slicer's extension (SAM), and in executorch's example (MobileSAM).
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests

from model import connections
from model.profiles import FOLDER
from model.types import ModelLoadError
from model.weights.files import digest_of, exclusive, is_intact, progress_bar, reason_of

log = logging.getLogger(f"vlsam.{__name__}")

_PIECE = 1 << 16  # bytes from the network at a time: at most these are lost when a connection breaks
_TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True)
class Checkpoint:
    """A file to download, with the size in bytes and the SHA-256 in hex that it must have."""

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


_SAM = "https://dl.fbaipublicfiles.com/segment_anything"
_MOBILE_SAM = (
    "https://github.com/ChaoningZhang/MobileSAM/raw/f706ad9c4eb7f219c00d9050e46328518ffb65d2/weights"
)
CHECKPOINTS = {
    checkpoint.name: checkpoint
    for checkpoint in (
        Checkpoint(f"{_SAM}/sam_vit_b_01ec64.pth", 375_042_383,
                   "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
        Checkpoint(f"{_SAM}/sam_vit_l_0b3195.pth", 1_249_524_607,
                   "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
        Checkpoint(f"{_SAM}/sam_vit_h_4b8939.pth", 2_564_550_879,
                   "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
        Checkpoint(f"{_MOBILE_SAM}/mobile_sam.pt", 40_728_226,
                   "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f"),
    )
}  # fmt: skip


def fetch(checkpoint: Checkpoint, folder: Path = FOLDER) -> Path:
    """Download a checkpoint into a folder unless an intact copy is there. Return its path.

    Write to a `.part` file, which a later call resumes. Rename it after its checksum is verified. A second
    process waits for the first. Raises ModelLoadError.
    """
    folder = folder.expanduser()
    target = folder / checkpoint.name
    if not is_intact(target, checkpoint.sha256):
        with exclusive(folder):
            if not is_intact(target, checkpoint.sha256):
                _download(checkpoint, target)
    return target


def _download(checkpoint: Checkpoint, target: Path) -> None:
    part = target.with_name(f"{target.name}.part")
    part.touch()
    log.info("Downloading %s (%d MB) into %s.", target.name, checkpoint.size >> 20, target.parent)
    while (before := part.stat().st_size) < checkpoint.size:
        broken = None
        try:
            _resume(checkpoint, part)
        except requests.RequestException as error:
            broken = error
        if part.stat().st_size <= before:  # go on as long as each try brings something
            raise ModelLoadError(
                f"{target.name} cannot be fetched from {urlsplit(checkpoint.url).netloc} "
                f"({reason_of(broken)}): run `vlsam download` where there is a network, which goes on where "
                f"this stopped, or copy {checkpoint.url} to {target}"
            ) from broken
    if not is_intact(part, checkpoint.sha256):
        part.unlink()
        raise ModelLoadError(
            f"{checkpoint.url} came with another checksum than {checkpoint.sha256} and was deleted: try "
            "again, and if it stays so do not trust that address"
        )
    part.replace(target)


def _resume(checkpoint: Checkpoint, part: Path) -> None:
    """Append the rest of a file to `part`. Start over if the server has no byte ranges."""
    start = part.stat().st_size
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    with connections.request(
        "GET", checkpoint.url, headers=headers, stream=True, timeout=_TIMEOUT
    ) as response:
        response.raise_for_status()
        start = start if response.status_code == 206 else 0
        with (
            part.open("ab" if start else "wb") as file,
            progress_bar(checkpoint.name, checkpoint.size, start) as bar,
        ):
            for block in response.iter_content(_PIECE):
                file.write(block)
                bar.update(len(block))
                if file.tell() > checkpoint.size:  # the checksum will refuse it
                    return
            os.fsync(file.fileno())


def verify(file: Path) -> None:
    """Compare a checkpoint with its published SHA-256, or with that in `<file>.sha256`.

    Log a warning if there is neither. Raises ModelLoadError if the checksums differ.
    """
    beside = file.with_name(f"{file.name}.sha256")
    if file.name in CHECKPOINTS:
        wanted, source = CHECKPOINTS[file.name].sha256, "the published file"
    elif beside.is_file():
        wanted, source = (beside.read_text("ascii", "replace").split() or [""])[0].lower(), beside.name
    else:
        log.warning("%s is loaded without a checksum; %s would be compared.", file, beside)
        return
    if (digest := digest_of(file)) != wanted:
        raise ModelLoadError(
            f"{file} has the SHA-256 {digest}, {source} {wanted or 'none'}: delete it and run "
            "`vlsam download`, or give it another name if it is your own"
        )
