"""Split an image into views that are annotated separately, and map detections back to the image.

VL-SAM section 3.5, after SPHINX (arXiv 2311.07575): a VLM sees small objects better in a
quarter of the image.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.types import Box, Detection, Mask, Prompt


def corner_views(width: int, height: int) -> tuple[Box, ...]:
    """Return the box of the whole image, then those of its four quarters, rounded up, without duplicates."""
    x, y = (width + 1) // 2, (height + 1) // 2
    boxes = [
        (0, 0, width, height),
        (0, 0, x, y),
        (width - x, 0, width, y),
        (0, height - y, x, height),
        (width - x, height - y, width, height),
    ]
    return tuple((float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in dict.fromkeys(boxes))


def crop(image: NDArray[Any], view: Box) -> NDArray[Any]:
    """Return a view's pixels of an image (H, W, 3) or a mask (H, W). They share memory with `image`."""
    x0, y0, x1, y1 = (int(n) for n in view)
    return image[y0:y1, x0:x1]


def to_image(detection: Detection, view: Box, size: tuple[int, int]) -> Detection:
    """Move a detection from pixels of a view to pixels of the image of `size` (H, W).

    Move mask, points and boxes by the view's corner, and note the view in the evidence. Drop the prompt's
    logits: they fit only the square that the segmenter made of the view.
    """
    prompt, (x, y) = detection.evidence.prompt, view[:2]
    moved = Prompt(
        points=prompt.points + np.array([x, y], np.float32),
        labels=prompt.labels,
        box=prompt.box and (prompt.box[0] + x, prompt.box[1] + y, prompt.box[2] + x, prompt.box[3] + y),
        mask=None if prompt.mask is None else _placed(prompt.mask, view, size),
    )
    evidence = replace(detection.evidence, view=view, prompt=moved)
    return replace(detection, mask=_placed(detection.mask, view, size), evidence=evidence)


def _placed(mask: Mask, view: Box, size: tuple[int, int]) -> Mask:
    full = np.zeros(size, bool)
    crop(full, view)[:] = mask
    return full
