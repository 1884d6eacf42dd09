"""Which weights to load and how: named choices, a person's own, and a name for what they give."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from model.options import Options
from model.types import ModelLoadError
from model.weights import download

BUILTIN = Path(__file__).parent / "builtin"
Dtype = Literal["auto", "float32", "bfloat16", "float16"]  # auto: float32 on a CPU, else bfloat16
Quantization = Literal["none", "4bit", "8bit"]
PIXELS = 1_000_000  # of an image, that a VLM is shown: some 1300 tokens of Qwen2.5-VL
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")  # transformers' own: over several GPUs

# The hub's ids change what they hold; these commits do not. Each is pinned alike by many public projects.
QWEN_3B = "Qwen/Qwen2.5-VL-3B-Instruct@66285546d2b821cf421d4f5eb2576359d3770cd3"
QWEN_7B = "Qwen/Qwen2.5-VL-7B-Instruct@cc594898137f460bfe9f0759e9844b3ce807cfb5"
QWEN_30B = "Qwen/Qwen3-VL-30B-A3B-Instruct@9c4b90e1e4ba969fd3b5378b57d966d725f1b86c"
SAM_2_1 = "facebook/sam2.1-hiera-large@665f8e2ad61cf5f53d65644ff27c8ee525124610"


@dataclass(frozen=True)
class Profile:
    name: str
    vlm: str  # hub id, which may end in @ and a revision, or local folder
    sam: str  # published file's name, hub id, local folder or file, see model/sams
    dtype: Dtype = "auto"  # of the VLM; the segmenter's is float32
    quantization: Quantization = "none"  # of the VLM's decoder
    folder: Path = download.FOLDER  # where weights are kept that are given by a name
    pixels: int = PIXELS  # the most of an image that the VLM is shown, in all views together
    demo: bool = False  # knows the 40 drawn objects of model/builtin/scenes.py and nothing else


PROFILES = {
    p.name: p
    for p in (
        Profile("builtin", str(BUILTIN / "vlm"), str(BUILTIN / "segmenter"), demo=True),
        Profile("gpu-8g", QWEN_3B, "sam_vit_b_01ec64.pth", quantization="4bit"),
        Profile("gpu-24g", QWEN_7B, "sam_vit_h_4b8939.pth", pixels=2_000_000),
        # The largest that 80 GB hold with an image of any size, and free to fetch: docs/decisions/0011.
        Profile("gpu-80g", QWEN_30B, SAM_2_1, pixels=2_000_000),
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
    pixels: int | None = None,
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
        pixels=pixels or profile.pixels,
        demo=profile.demo and not vlm,
    )


def version_of(profile: Profile, options: Options | None = None, *more: str) -> str:
    """A name for what decides the results, from settings and file identities; loads no weights.

    `more` is what else decides them. Of weights on the hub that are not on this machine yet, the small files
    are fetched. Raises ModelLoadError where that fails.
    """
    digest = hashlib.sha256(repr(options or Options()).encode())
    digest.update(repr((profile.dtype, profile.quantization, profile.pixels, *more)).encode())
    for name, remote in ((profile.vlm, not download.looks_local(profile.vlm)), _sam(profile)):
        digest.update(_identity(name, profile.folder, remote=remote))
    if options and options.classifier:
        digest.update(_classifier(options.classifier))
    return f"vlsam-{profile.name}-{digest.hexdigest()[:10]}"


def segmenter_version_of(profile: Profile, options: Options | None = None) -> str:
    """The same for what decides an embedding: the segmenter alone, so that another VLM keeps them.

    By concept an embedding holds more, which one made for clicks alone lacks.
    """
    concepts = options is not None and options.localizer == "concept"
    name, remote = _sam(profile)
    identity = _identity(name, profile.folder, remote=remote)
    return f"sam-{identity.hex()[:16]}{'-concepts' if concepts else ''}"


def _classifier(name: str) -> bytes:
    if download.looks_local(name):
        return _identity(name, download.FOLDER, remote=False)
    return download.commit(name).encode()


def _sam(profile: Profile) -> tuple[str, bool]:
    """The segmenter's name, and whether it is a hub id. Published checkpoints are known by their names."""
    name = profile.sam
    return name, download.is_remote_sam(name) and name not in download.CHECKPOINTS


def _identity(name: str, folder: Path, *, remote: bool) -> bytes:
    """Of weights given as a hub id (`remote`), a file, a folder or a name.

    Trained anew, files keep their name and size, so what is in them counts as well.
    """
    if remote:
        return hashlib.sha256(repr(sorted(download.identity(name, folder).items())).encode()).digest()
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
        digest.update(f"{file.name}:{download.sampled(file)}".encode())
    return digest.digest()
