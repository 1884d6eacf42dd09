"""Which weights to load: named choices, and a person's own."""

from dataclasses import dataclass, replace
from pathlib import Path

from model.types import ModelLoadError

BUILTIN = Path(__file__).parent / "builtin"


@dataclass(frozen=True)
class Profile:
    name: str
    vlm: str  # hub id or local folder
    sam: str  # local folder or file, see model/segmenter.py
    four_bit: bool = False
    demo: bool = False  # knows the 40 drawn objects of model/builtin/scenes.py and nothing else


PROFILES = {
    p.name: p
    for p in (
        Profile("builtin", str(BUILTIN / "vlm"), str(BUILTIN / "segmenter"), demo=True),
        Profile("gpu-8g", "Qwen/Qwen2.5-VL-3B-Instruct", "sam_vit_b_01ec64.pth", four_bit=True),
        Profile("gpu-24g", "Qwen/Qwen2.5-VL-7B-Instruct", "sam_vit_h_4b8939.pth"),
    )
}


def choose(name: str = "builtin", vlm: str | None = None, sam: str | None = None) -> Profile:
    """A profile by name, with the VLM or the segmenter replaced where given.

    Raises ModelLoadError for a name that is none of PROFILES.
    """
    if name not in PROFILES:
        raise ModelLoadError(f"there is no profile {name!r}: choose one of {', '.join(PROFILES)}")
    profile = PROFILES[name]
    return replace(profile, vlm=vlm or profile.vlm, sam=sam or profile.sam, demo=profile.demo and not vlm)
