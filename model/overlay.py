"""Draw detections and attention maps over their image."""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from model.image_decoding import ImageLike, read_image
from model.types import Detection, Image, ImageError

Colour = tuple[int, int, int]


def draw(image: ImageLike, detections: Sequence[Detection]) -> Image:
    """Draw detections over their image: tinted, outlined masks, terms with scores, and prompt points.

    Discs are positive points, crosses negative ones. A term has the same colour in every image.

    Args:
        image: a path, a Pillow image, or uint8 (H, W, 3), RGB.
        detections: of this image.

    Returns:
        A new image, uint8 (H, W, 3), RGB.

    Raises:
        ImageError: the image cannot be read, or a mask has another size.

    Example:
        >>> from PIL import Image
        >>> from vlsam import VLSAM, draw
        >>> picture = draw("street.jpg", VLSAM.load().annotate("street.jpg"))
        >>> Image.fromarray(picture).save("street-annotated.png")
    """
    image = read_image(image)
    scale = max(1.0, max(image.shape[:2]) / 800)
    painted = image.astype(np.float32)
    # Large masks first, so that small ones stay visible.
    ordered = sorted(detections, key=lambda d: -int(d.mask.sum()))
    for detection in ordered:
        if detection.mask.shape != image.shape[:2]:
            raise ImageError(
                f"{detection!r} is not of this image, which is {image.shape[0]}x{image.shape[1]}."
            )
        tint = np.array(colour_of(detection.term), np.float32)
        painted[detection.mask] = painted[detection.mask] * 0.55 + tint * 0.45
    pixels = np.ascontiguousarray(painted.astype(np.uint8))
    for detection in ordered:
        rings, _ = cv2.findContours(
            detection.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        cv2.drawContours(pixels, rings, -1, (255, 255, 255), round(3 * scale), cv2.LINE_AA)
        cv2.drawContours(pixels, rings, -1, colour_of(detection.term), round(1.6 * scale), cv2.LINE_AA)
    canvas = PILImage.fromarray(pixels)
    pen = ImageDraw.Draw(canvas)
    for detection in ordered:
        _points(pen, detection, scale)
    font = ImageFont.load_default(15 * scale)
    for detection in ordered:
        _caption(pen, detection, font, canvas.size)
    return np.asarray(canvas)


def colour_of(term: str) -> Colour:
    """Return a bright colour for a term, the same on every machine."""
    hue = (sum((i + 1) * ord(c) for i, c in enumerate(term)) * 0.61803) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def _points(pen: ImageDraw.ImageDraw, detection: Detection, scale: float) -> None:
    prompt, r = detection.evidence.prompt, 5 * scale
    for (x, y), label in zip(prompt.points.tolist(), prompt.labels.tolist(), strict=True):
        if label:
            pen.ellipse((x - r, y - r, x + r, y + r), fill="white", outline="black", width=round(scale))
            r2 = r * 0.5
            pen.ellipse((x - r2, y - r2, x + r2, y + r2), fill=colour_of(detection.term))
        else:
            for sign in (1, -1):
                for width, colour in ((5, "white"), (2.5, colour_of(detection.term))):
                    ends = (x - r, y - sign * r, x + r, y + sign * r)
                    pen.line(ends, fill=colour, width=round(width * scale))


def _caption(
    pen: ImageDraw.ImageDraw,
    detection: Detection,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
) -> None:
    text = f"{detection.term} {detection.score:.2f}".strip()
    x0, y0, _, _ = detection.box
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 8, bottom - top + 6
    x = min(max(0.0, x0), max(0.0, size[0] - width))
    y = y0 - height if y0 >= height else min(y0, max(0.0, size[1] - height))
    red, green, blue = colour_of(detection.term)
    ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 140 else "white"
    pen.rounded_rectangle((x, y, x + width, y + height), 4, fill=(red, green, blue))
    pen.text((x + 4 - left, y + 3 - top), text, font=font, fill=ink)


def heat(image: Image, attention: NDArray[np.float32], title: str = "") -> Image:
    """Draw an attention map (rows, columns), 0..1, over its image: low values grey, high ones yellow."""
    height, width = image.shape[:2]
    strength = cv2.resize(attention, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    colour = cv2.applyColorMap((strength * 255).astype(np.uint8), cv2.COLORMAP_HOT)[..., ::-1]
    grey = image.mean(2, keepdims=True) * 0.6
    share = (0.25 + 0.6 * strength)[..., None]
    painted = (grey * (1 - share) + colour * share).astype(np.uint8)
    if not title:
        return np.asarray(painted, np.uint8)
    canvas = PILImage.fromarray(painted)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(max(12.0, height / 24))
    left, top, right, bottom = pen.textbbox((6, 4), title, font=font)
    pen.rectangle((left - 4, top - 3, right + 4, bottom + 3), fill="black")
    pen.text((6, 4), title, font=font, fill="white")
    return np.asarray(canvas)


def tiled(pictures: Sequence[Image], columns: int) -> Image:
    """Arrange pictures of one size (H, W, 3) in a grid, row by row. Empty places are white."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * columns, height, width, 3), 255, np.uint8)
    sheet[: len(pictures)] = pictures
    grid = sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    return np.asarray(grid.reshape(rows * height, columns * width, 3))
