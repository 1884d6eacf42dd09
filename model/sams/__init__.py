"""The families of SAM, each behind `Family` (family.py), by the library that has them.

original.py  segment-anything: SAM ViT-B/L/H, the built-in model, MobileSAM
mobile.py    MobileSAM's image encoder
hub.py       transformers: SAM, SAM-HQ, SAM 2 and 2.1, SAM 3's tracker, EdgeTAM
"""

import json
from pathlib import Path

from model.sams import hub, original
from model.sams.family import Family
from model.types import ModelLoadError


def load(path: Path, device: str) -> Family:
    """Load a checkpoint file of segment-anything, or a folder: transformers' own, whose config.json has a
    model_type, or one with segment-anything's sizes in config.json, such as model/builtin/segmenter.

    Raises ModelLoadError with one sentence on what is wrong.
    """
    library = "segment-anything"
    try:
        if not path.is_dir():
            return original.load(path, {}, device)
        config = dict(json.loads((path / "config.json").read_text("utf-8")))
        if "model_type" not in config:
            return original.load(path / "model.safetensors", config, device)
        library = "transformers"
        return hub.load(path, config["model_type"], device)
    except ModelLoadError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelLoadError(f"{path} is no checkpoint of {library}: {reason}") from error
