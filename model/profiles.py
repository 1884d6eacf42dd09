"""Profiles: which weights to load, and how. By name, or with other weights in their place."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from model.types import ModelLoadError
from model.weights import FOLDER

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
    folder: Path = FOLDER  # where weights are kept that are given by a name
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
