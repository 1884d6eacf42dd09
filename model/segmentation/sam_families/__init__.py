"""Load a SAM of any family, behind the protocol `SamFamily` (family.py).

segment_anything_sam.py  segment-anything: SAM ViT-B/L/H, the built-in model, MobileSAM
mobile_sam.py            MobileSAM's image encoder
transformers_sam.py      transformers: SAM, SAM-HQ, SAM 2 and 2.1, EdgeTAM, SAM 3 by clicks and by phrases
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.segmentation.sam_families import segment_anything_sam, transformers_sam
from model.segmentation.sam_families.family import SamFamily
from model.types import ModelLoadError


def check(config: Mapping[str, Any], *, name: str, concepts: bool = False) -> None:
    """Raise ModelLoadError for a config.json of a segmenter that cannot be used; a file's is {}."""
    kind = config.get("model_type")
    if kind is not None and kind not in transformers_sam.KINDS:
        raise ModelLoadError(
            f"{name} holds a model of the kind {kind!r}, which is not a supported segmenter: take one of "
            f"{', '.join(transformers_sam.KINDS)}"
        )
    if concepts and kind != transformers_sam.WITH_DETECTOR:
        raise ModelLoadError(
            f"the segmenter {name} takes no noun phrases, which the localizer `concept` gives it: take "
            "SAM 3 (facebook/sam3), or another localizer"
        )


def load(path: Path, device: str, *, concepts: bool = False) -> SamFamily:
    """Load a checkpoint file of segment-anything, or a folder. Raises ModelLoadError.

    A folder is transformers' own, with a model_type in config.json, or has segment-anything's sizes there, as
    model/builtin/segmenter. `concepts`: also load what takes noun phrases (family.TakesPhrases).
    """
    library = "segment-anything"
    try:
        config = dict(json.loads((path / "config.json").read_text("utf-8"))) if path.is_dir() else {}
        if path.exists():
            check(config, name=str(path), concepts=concepts)
        if not path.is_dir():
            return segment_anything_sam.load(path, {}, device)
        if "model_type" not in config:
            return segment_anything_sam.load(path / "model.safetensors", config, device)
        library = "transformers"
        return transformers_sam.load(path, config["model_type"], device, concepts=concepts)
    except ModelLoadError:
        raise
    except KeyError as error:
        raise ModelLoadError(f"{path} is not a checkpoint of {library}: it has no {error}") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelLoadError(f"{path} is not a checkpoint of {library}: {reason}") from error
