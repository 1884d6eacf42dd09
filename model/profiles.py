"""Which weights to load and how: named choices, a person's own, and a name for what they give."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from model import download
from model.recipes import Options
from model.types import ModelLoadError

BUILTIN = Path(__file__).parent / "builtin"
Dtype = Literal["auto", "float32", "bfloat16", "float16"]  # auto: float32 on a CPU, else bfloat16
Quantization = Literal["none", "4bit", "8bit"]
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")  # transformers' own: over several GPUs


@dataclass(frozen=True)
class Profile:
    name: str
    vlm: str  # hub id or local folder
    sam: str  # published file's name, hub id, local folder or file, see model/sams
    dtype: Dtype = "auto"  # of the VLM; the segmenter's is float32
    quantization: Quantization = "none"  # of the VLM's decoder
    folder: Path = download.FOLDER  # where weights are kept that are given by a name
    demo: bool = False  # knows the 40 drawn objects of model/builtin/scenes.py and nothing else


PROFILES = {
    p.name: p
    for p in (
        Profile("builtin", str(BUILTIN / "vlm"), str(BUILTIN / "segmenter"), demo=True),
        Profile("gpu-8g", "Qwen/Qwen2.5-VL-3B-Instruct", "sam_vit_b_01ec64.pth", quantization="4bit"),
        Profile("gpu-24g", "Qwen/Qwen2.5-VL-7B-Instruct", "sam_vit_h_4b8939.pth"),
        # The largest that 80 GB hold with an image of any size, and free to fetch: docs/decisions/0011.
        Profile("gpu-80g", "Qwen/Qwen3-VL-30B-A3B-Instruct", "facebook/sam2.1-hiera-large"),
    )
}


def choose(
    name: str = "builtin",
    vlm: str | None = None,
    sam: str | None = None,
    *,
    dtype: Dtype | None = None,
    quantization: Quantization | None = None,
    folder: Path | None = None,
) -> Profile:
    """A profile by name, with whatever else is given in place of its own.

    Raises ModelLoadError for a name that is none of PROFILES.
    """
    if name not in PROFILES:
        raise ModelLoadError(f"there is no profile {name!r}: choose one of {', '.join(PROFILES)}")
    profile = PROFILES[name]
    return replace(
        profile,
        vlm=vlm or profile.vlm,
        sam=sam or profile.sam,
        dtype=dtype or profile.dtype,
        quantization=quantization or profile.quantization,
        folder=folder or profile.folder,
        demo=profile.demo and not vlm,
    )


_TAIL = 65_536  # bytes: more than any config, and milliseconds to read


def version_of(profile: Profile, options: Options | None = None, *more: str) -> str:
    """A name for what decides the results, from settings and file identities; loads no weights.

    `more` is what else decides them. Trained anew, weights keep their name and size, so the end of each file
    counts as well.
    """
    digest = hashlib.sha256(repr(options or Options()).encode())
    digest.update(repr((profile.dtype, profile.quantization, *more)).encode())
    for name in (profile.vlm, profile.sam):
        digest.update(_identity(name))
    return f"vlsam-{profile.name}-{digest.hexdigest()[:10]}"


def segmenter_version_of(profile: Profile, options: Options | None = None) -> str:
    """The same for what decides an embedding: the segmenter alone, so that another VLM keeps them.

    By concept an embedding holds more, which one made for clicks alone lacks.
    """
    concepts = options is not None and options.localizer == "concept"
    return f"sam-{_identity(profile.sam).hex()[:16]}{'-concepts' if concepts else ''}"


def _identity(name: str) -> bytes:
    """Of weights given as a file, a folder or a name."""
    path = Path(name).expanduser()
    digest = hashlib.sha256(path.name.encode() if path.exists() else name.encode())
    files = (
        sorted(f for f in path.glob("*") if f.is_file())
        if path.is_dir()
        else [path]
        if path.is_file()
        else []
    )
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as opened:
            opened.seek(max(0, size - _TAIL))
            digest.update(opened.read(_TAIL))
    return digest.digest()
