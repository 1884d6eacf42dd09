"""Find, name and mask the objects of images with VL-SAM.

Importing this package loads no model library. Each name is imported at its first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vlsam._shadowing import check_package

if TYPE_CHECKING:
    from model.image_decoding import ImageLike, read_image
    from model.options import Options
    from model.overlay import draw
    from model.pipeline import VLSAM
    from model.profiles import PROFILES, Profile
    from model.recipes import RECIPES, Recipe
    from model.segmentation.embedding import Embedding
    from model.types import (
        AttentionError,
        Box,
        Detection,
        Evidence,
        GroundingError,
        Image,
        ImageError,
        ImageRefused,
        Mask,
        ModelLoadError,
        OutOfMemory,
        Prompt,
        PromptError,
        RemoteVLMError,
        VLSAMError,
    )
    from model.vlm.remote_vlm import RemoteVLM

    __version__: str

__all__ = [
    "PROFILES", "RECIPES", "VLSAM", "AttentionError", "Box", "Detection", "Embedding", "Evidence",
    "GroundingError", "Image", "ImageError", "ImageLike", "ImageRefused", "Mask", "ModelLoadError",
    "Options", "OutOfMemory", "Profile", "Prompt", "PromptError", "Recipe", "RemoteVLM",
    "RemoteVLMError", "VLSAMError", "__version__", "draw", "read_image",
]  # fmt: skip

# Modules of `model`; every other name is in `model.types`.
_MODULES = {
    "ImageLike": "image_decoding", "read_image": "image_decoding", "Options": "options", "draw": "overlay",
    "Recipe": "recipes", "RECIPES": "recipes", "VLSAM": "pipeline", "Profile": "profiles",
    "PROFILES": "profiles", "Embedding": "segmentation.embedding", "RemoteVLM": "vlm.remote_vlm",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "__version__":
        value: Any = import_module("importlib.metadata").version("vlsam")
    else:
        check_package("model")
        value = getattr(import_module(f"model.{_MODULES.get(name, 'types')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
