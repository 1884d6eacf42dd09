"""Define the profiles: names for sets of weights and their precision."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from model.types import ModelLoadError

FOLDER = Path("~/.cache/vlsam")  # of fetched weights, unless MODEL_DIR names another one
BUILTIN = Path(__file__).parent / "builtin"
Dtype = Literal["auto", "float32", "bfloat16", "float16"]  #: "auto" is float32 on a CPU, else bfloat16
Quantization = Literal["none", "4bit", "8bit"]
PIXELS = 1_000_000  # some 1300 tokens of Qwen2.5-VL
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")  # of transformers, over several GPUs

# A hub id may get new content; a commit does not. Many public projects pin the same ones.
QWEN_3B = "Qwen/Qwen2.5-VL-3B-Instruct@66285546d2b821cf421d4f5eb2576359d3770cd3"
QWEN_7B = "Qwen/Qwen2.5-VL-7B-Instruct@cc594898137f460bfe9f0759e9844b3ce807cfb5"
QWEN_30B = "Qwen/Qwen3-VL-30B-A3B-Instruct@9c4b90e1e4ba969fd3b5378b57d966d725f1b86c"
SAM_2_1 = "facebook/sam2.1-hiera-large@665f8e2ad61cf5f53d65644ff27c8ee525124610"


@dataclass(frozen=True)
class Profile:
    """A named set of weights to load, with their precision.

    Example:
        >>> from dataclasses import replace
        >>> replace(PROFILES["gpu-8g"], vlm="/models/my-qwen", quantization="none").sam
        'sam_vit_b_01ec64.pth'
    """

    name: str
    #: a hub id, with @ and a revision if wanted, or a local folder
    vlm: str
    #: a published SAM file's name, a hub id, or a local file or folder
    sam: str
    #: of the VLM; the segmenter's is float32
    dtype: Dtype = "auto"
    #: of the VLM's decoder
    quantization: Quantization = "none"
    #: where downloaded weights are kept
    folder: Path = FOLDER
    #: the most pixels of an image that the VLM is shown, in all views together
    pixels: int = PIXELS
    #: whether the weights recognise only the 40 drawn objects of model/builtin/scenes.py
    demo: bool = False

    def __post_init__(self) -> None:
        for value, choices in ((self.dtype, get_args(Dtype)), (self.quantization, get_args(Quantization))):
            if value not in choices:
                raise ModelLoadError(f"profile {self.name!r}: {value!r} is none of {', '.join(choices)}")


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


def choose(name: str = "builtin", **changes: Any) -> Profile:
    """Return a profile by name, with fields replaced by those `changes` that are not empty.

    Raises:
        ModelLoadError: no profile has that name.
    """
    if name not in PROFILES:
        raise ModelLoadError(f"there is no profile {name!r}: choose one of {', '.join(PROFILES)}")
    profile = PROFILES[name]
    given = {field: value for field, value in changes.items() if value}
    return replace(profile, **{"demo": profile.demo and "vlm" not in given, **given})
