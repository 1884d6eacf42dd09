"""Limit the size of a VLM's input image, and so its number of tokens, for every model family.

Tokens cost memory, also in the attention flow. Their number depends on the image's size, on the number of
tiles, or on neither, by family. The limit counts the pixels of all views together. If a vision tower takes
one square of a fixed size, only the longest side of the image is limited.
"""

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
from transformers.image_processing_utils import select_best_resolution

Size = tuple[int, int]  # height, width

AREA = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v"}
TILES = {"internvl", "aya_vision", "cohere2_vision"}
SPLIT = {"idefics3", "smolvlm"}
CANVAS = {"llava_next", "llava_onevision"}
SIDE = 4096  # longest side for a tower that takes one square: some processors pad images to squares
RATIO = 400  # largest ratio of sides: some processors enlarge a line of pixels until it fills their square


def bounded(processor: Any, config: Any, pixels: int) -> Any:
    """Return a copy of a processor, limited to `pixels` pixels per image if it has a setting for that."""
    kind, limited = config.model_type, copy.copy(processor)
    limited.image_processor = images = copy.deepcopy(processor.image_processor)
    if kind in AREA:
        # GLM counts a picture as several frames.
        frames = images.temporal_patch_size if kind == "glm4v" else 1
        most = min(images.size.longest_edge, pixels * frames)
        least = min(images.size.shortest_edge, most)
        images.size = replace(images.size, longest_edge=most, shortest_edge=least)
    elif kind in TILES:
        # The tiles, and one more for the whole image.
        count = pixels // (images.size.height * images.size.width) - 1
        images.max_patches = max(1, min(images.max_patches, count))
        images.min_patches = min(images.min_patches, images.max_patches)
    elif kind in SPLIT:
        # Any image is resized to the longest edge and cut into squares.
        tile = images.max_image_size["longest_edge"]
        rows = math.isqrt(max(1, pixels // tile**2 - 1))
        images.size = replace(images.size, longest_edge=min(images.size.longest_edge, rows * tile))
    return limited


def takes(processor: Any, size: tuple[int, ...]) -> bool:
    """Return whether a processor can take an image of `size`: false if it is too long and thin."""
    images = processor.image_processor
    filled = getattr(images, "do_center_crop", None) and getattr(images.size, "shortest_edge", None)
    padded = getattr(images, "do_pad", None)
    return not filled or bool(padded) or max(size) <= RATIO * min(size)


def fitted(config: Any, size: Size, pixels: int) -> Size:
    """Return the (height, width) to which an image of `size` is reduced before the processor is called.

    `pixels` applies to the families in CANVAS and to Pixtral's tower. For other families `bounded` sets the
    limit, or the longest side is limited to SIDE. A size within the limit is returned unchanged.
    """
    kind, (height, width) = config.model_type, size
    scale = 1.0
    if kind in CANVAS:
        base = config.vision_config.image_size**2  # the whole image, as one more square
        shapes = [tuple(shape) for shape in config.image_grid_pinpoints]
        small = [shape for shape in shapes if math.prod(shape) + base <= pixels]
        canvas = select_best_resolution(size, small or [min(shapes, key=math.prod)])
        scale = min(canvas[0] / height, canvas[1] / width)
    elif kind == "mistral3" or getattr(config.vision_config, "model_type", "") == "pixtral":
        cell = int(np.max(config.vision_config.patch_size)) * getattr(config, "spatial_merge_size", 1)
        # Sides are padded to whole cells: the larger root of (h s + cell)(w s + cell) = pixels.
        area, sides, rest = height * width, cell * (height + width), cell**2 - pixels
        scale = (math.sqrt(max(0, sides**2 - 4 * area * rest)) - sides) / (2 * area)
    elif kind not in AREA | TILES | SPLIT:
        scale = SIDE / max(size)
    if scale >= 1:
        return size
    return max(1, int(height * scale)), max(1, int(width * scale))
