"""Which input token stands for which rectangle of the image, per model family."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.types import AttentionError, ModelLoadError


@dataclass(frozen=True, eq=False)
class Grid:
    """Image tokens as `rows` x `columns` equal rectangles of the whole image, row by row."""

    tokens: NDArray[np.int64]  # (rows * columns,) positions in the input sequence
    rows: int
    columns: int


def _merged_patches(model: Any, inputs: Any) -> Grid:
    """Qwen2-VL and Qwen2.5-VL: patches merged 2 x 2, of an image stretched to whole patches."""
    merge = model.config.vision_config.spatial_merge_size
    _, height, width = (int(n) for n in inputs["image_grid_thw"][0])
    tokens = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten()
    return Grid(tokens.cpu().numpy(), height // merge, width // merge)


FAMILIES = {"qwen2_vl": _merged_patches, "qwen2_5_vl": _merged_patches}


def check_family(kind: str) -> None:
    """Raise ModelLoadError for a model type whose token grid is not in the table."""
    if kind not in FAMILIES:
        raise ModelLoadError(
            f"the token grid of {kind!r} models is not known: add a function to FAMILIES in "
            f"model/grids.py, or use one of {', '.join(FAMILIES)}"
        )


def grid_of(model: Any, inputs: Any) -> Grid:
    """The grid of the one image in a processor's output."""
    grid = FAMILIES[model.config.model_type](model, inputs)
    if len(grid.tokens) != grid.rows * grid.columns:
        raise AttentionError(
            f"{len(grid.tokens)} image tokens do not fill a grid of {grid.rows} x {grid.columns}"
        )
    return grid
