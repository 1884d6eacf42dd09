"""The parts of an image that are annotated on their own, and the way back to the image's pixels.

VL-SAM section 3.5, after SPHINX (arXiv 2311.07575): a VLM sees small objects better in a quarter
of the image.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from model.types import Box, Detection, Image, Mask, Prompt


def corner_views(width: int, height: int) -> tuple[Box, ...]:
    """The whole image, then its four corners of half its width and height; whole pixels, none twice.

    Halves of an odd number are rounded up, so that the corners cover the image.
    """
    x, y = (width + 1) // 2, (height + 1) // 2
    boxes = [
        (0, 0, width, height),
        (0, 0, x, y),
        (width - x, 0, width, y),
        (0, height - y, x, height),
        (width - x, height - y, width, height),
    ]
    return tuple((float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in dict.fromkeys(boxes))


def crop(image: Image, view: Box) -> Image:
    """The pixels of a view, (h, w, 3); shares the image's memory."""
    return image[_window(view)]


def to_image(detection: Detection, view: Box, size: tuple[int, int]) -> Detection:
    """A detection in pixels of a view as one in pixels of the image of `size` (height, width).

    Mask, points and boxes move with the view's corner, and the evidence says which view was looked at. A
    prompt's logits lie on the square that the segmenter made of the view and fit no other: they are dropped.
    """
    corner = np.array(view[:2], np.float32)
    prompt = detection.evidence.prompt
    moved = Prompt(
        points=prompt.points + corner,
        labels=prompt.labels,
        box=None if prompt.box is None else _shifted(prompt.box, view),
        mask=None if prompt.mask is None else _placed(prompt.mask, view, size),
    )
    evidence = replace(detection.evidence, view=view, prompt=moved)
    return replace(detection, mask=_placed(detection.mask, view, size), evidence=evidence)


def _window(view: Box) -> tuple[slice, slice]:
    x0, y0, x1, y1 = (int(n) for n in view)
    return slice(y0, y1), slice(x0, x1)


def _shifted(box: Box, view: Box) -> Box:
    return (box[0] + view[0], box[1] + view[1], box[2] + view[0], box[3] + view[1])


def _placed(mask: Mask, view: Box, size: tuple[int, int]) -> Mask:
    full: NDArray[np.bool_] = np.zeros(size, bool)
    full[_window(view)] = mask
    return full
