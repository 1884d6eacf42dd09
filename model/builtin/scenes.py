"""Draw scenes of everyday objects with exact masks, to train and measure the built-in models.

Sprites (Noto Color Emoji, see NOTICE) are pasted on procedural backgrounds with scale, rotation,
flip and overlap, so names, visible masks and hidden parts are known to the pixel.

The samples that ship, which the demo imports, were drawn by

    python -m model.builtin.scenes model/builtin/samples
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

EMOJI = {
    "dog": "🐶", "cat": "🐱", "mouse": "🐭", "bear": "🐻", "frog": "🐸", "monkey": "🐵",
    "chicken": "🐔", "penguin": "🐧", "fish": "🐟", "octopus": "🐙", "butterfly": "🦋",
    "turtle": "🐢", "apple": "🍎", "banana": "🍌", "pizza": "🍕", "donut": "🍩", "car": "🚗",
    "bus": "🚌", "bicycle": "🚲", "house": "🏠", "tree": "🌳", "ball": "⚽", "guitar": "🎸",
    "boat": "⛵", "cup": "☕", "book": "📕", "key": "🔑", "clock": "⏰", "lamp": "💡",
    "umbrella": "☔", "cactus": "🌵", "flower": "🌻", "horse": "🐴", "pig": "🐷", "rabbit": "🐰",
    "lion": "🦁", "rocket": "🚀", "train": "🚂", "hat": "🎩", "shoe": "👟",
}  # fmt: skip
NAMES = tuple(EMOJI)
SHEET = Path(__file__).with_name("sprites.png")
SHEET_COLUMNS, TILE_WIDTH, TILE_HEIGHT = 8, 136, 128

Image8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class SceneObject:
    name: str
    visible: Mask  # (H, W): the pixels of the image that show it
    whole: Mask  # (H, W): also the pixels that others hide


@dataclass(frozen=True, eq=False)
class Scene:
    image: Image8  # (H, W, 3) RGB
    objects: tuple[SceneObject, ...]  # back to front


@cache
def sprites() -> dict[str, Image8]:
    """Return the sprites by name: RGBA uint8 (h, w, 4), cropped to their opaque part."""
    sheet = np.asarray(Image.open(SHEET).convert("RGBA"))
    found = {}
    for index, name in enumerate(NAMES):
        row, column = divmod(index, SHEET_COLUMNS)
        tile = sheet[row * TILE_HEIGHT :, column * TILE_WIDTH :][:TILE_HEIGHT, :TILE_WIDTH]
        ys, xs = np.nonzero(tile[..., 3])
        found[name] = tile[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    return found


def draw_scene(
    rng: np.random.Generator,
    *,
    width: int,
    height: int,
    count: int,
    scale: tuple[float, float] = (0.15, 0.5),
    min_visible: float = 0.35,
    degrade: bool = True,
    names: tuple[str, ...] = NAMES,
) -> Scene:
    """Draw a random scene of `count` objects, or fewer if there is no free place.

    Eight parameters, since scripts vary each one on its own.
    `scale` is the range of an object's longer side, before rotation, as a share of the image's shorter side.
    `min_visible` is the least share of an object that later ones leave uncovered.
    """
    image = _background(rng, width, height).astype(np.float32)
    placed: list[tuple[str, Mask, Mask]] = []
    for _ in range(count * 4):
        if len(placed) == count:
            break
        name = str(rng.choice(names))
        size = rng.uniform(*scale) * min(width, height)
        paint, rows, columns = _place(rng, sprites()[name], size, width, height)
        alpha = paint[..., 3:]
        whole = np.zeros((height, width), np.bool_)
        whole[rows, columns] = alpha[..., 0] > 0.5
        if whole.sum() < 16:
            continue
        left = [visible & ~whole for _, visible, _ in placed]
        if any(v.sum() < min_visible * w.sum() for v, (_, _, w) in zip(left, placed, strict=True)):
            continue
        image[rows, columns] = image[rows, columns] * (1 - alpha) + paint[..., :3]
        placed = [(n, v, w) for v, (n, _, w) in zip(left, placed, strict=True)]
        placed.append((name, whole, whole))
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    pixels = _degrade(rng, pixels) if degrade else pixels
    return Scene(pixels, tuple(SceneObject(*p) for p in placed))


def _place(
    rng: np.random.Generator, sprite: Image8, size: float, width: int, height: int
) -> tuple[NDArray[np.float32], slice, slice]:
    """Turn a sprite at random. Return float RGBA, premultiplied by alpha 0..1, and its rows and columns."""
    h, w = sprite.shape[:2]
    zoom = size / max(h, w)
    angle = rng.uniform(-30, 30) if rng.random() < 0.7 else rng.uniform(-180, 180)
    flip = -1.0 if rng.random() < 0.5 else 1.0
    stretch = np.exp(rng.uniform(-0.1, 0.1))
    c, s = np.cos(np.deg2rad(angle)) * zoom, np.sin(np.deg2rad(angle)) * zoom
    linear = np.array([[c, -s], [s, c]]) @ np.diag([flip * stretch, 1 / stretch])
    rx, ry = np.abs(linear) @ np.array([w / 2, h / 2])
    # Place it wholly inside the image if it fits, so that no named object is a narrow strip at the edge.
    x = rng.uniform(min(rx, width / 2), max(width - rx, width / 2))
    y = rng.uniform(min(ry, height / 2), max(height - ry, height / 2))
    x0, y0 = max(int(x - rx) - 1, 0), max(int(y - ry) - 1, 0)
    x1, y1 = min(int(x + rx) + 2, width), min(int(y + ry) + 2, height)
    offset = np.array([x - x0, y - y0]) - linear @ np.array([w / 2, h / 2])
    matrix = np.hstack([linear, offset[:, None]]).astype(np.float32)
    source = sprite.astype(np.float32)
    source[..., 3] /= 255
    source[..., :3] *= source[..., 3:]
    if zoom < 0.7:  # warpAffine does not average: blur first, or small sprites turn to noise
        source = cv2.GaussianBlur(source, (0, 0), 0.35 / zoom).astype(np.float32)
    canvas = cv2.warpAffine(source, matrix, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR)
    return canvas.astype(np.float32), slice(y0, y1), slice(x0, x1)


def _background(rng: np.random.Generator, width: int, height: int) -> Image8:
    base = _PAINTERS[int(rng.integers(len(_PAINTERS)))](rng, width, height)
    if rng.random() < 0.35:
        base = _clutter(rng, base)
    if rng.random() < 0.4:
        base = base + _grain(rng, width, height, rng.uniform(2, 12))
    return np.clip(base, 0, 255).astype(np.uint8)


def _grain(rng: np.random.Generator, width: int, height: int, deviation: float) -> NDArray[np.float32]:
    return rng.standard_normal((height, width, 1), np.float32) * np.float32(deviation)


def _colour(rng: np.random.Generator) -> NDArray[np.float32]:
    if rng.random() < 0.5:
        pastel = rng.uniform(150, 255) + rng.uniform(-45, 45, 3)
        return np.clip(pastel, 0, 255).astype(np.float32)
    return rng.uniform(0, 255, 3).astype(np.float32)


def _blend(rng: np.random.Generator, ramp: NDArray[Any]) -> NDArray[np.float32]:
    one, other, share = _colour(rng), _colour(rng), ramp[..., None].astype(np.float32)
    return np.asarray(one * (1 - share) + other * share, np.float32)


def _plain(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    return np.broadcast_to(_colour(rng), (height, width, 3)).copy()


def _gradient(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    ramp = np.cos(angle) * x / width + np.sin(angle) * y / height
    ramp = (ramp - ramp.min()) / np.ptp(ramp)
    return _blend(rng, ramp)


def _clouds(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    total = np.zeros((height, width, 3), np.float32)
    cells = int(rng.integers(2, 6))
    weight = 1.0
    for _ in range(int(rng.integers(1, 5))):
        noise = rng.uniform(-1, 1, (cells, cells, 3)).astype(np.float32)
        total += weight * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        cells, weight = cells * 2, weight * 0.6
    return _colour(rng) + total * rng.uniform(10, 80)


def _stripes(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    angle, period = rng.uniform(0, np.pi), rng.uniform(8, 90)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    wave = np.sin((np.cos(angle) * x + np.sin(angle) * y) * 2 * np.pi / period)
    ramp = (wave > 0).astype(np.float32) if rng.random() < 0.5 else (wave + 1) / 2
    return _blend(rng, ramp)


def _checks(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    period = int(rng.integers(8, 80))
    y, x = np.mgrid[0:height, 0:width] // period
    odd = ((x + y) % 2).astype(np.float32)
    return _blend(rng, odd)


def _clutter(rng: np.random.Generator, base: NDArray[np.float32]) -> NDArray[np.float32]:
    """Draw discs, boxes and lines, which are not objects and must not be named."""
    height, width = base.shape[:2]
    layer = np.ascontiguousarray(base)
    for _ in range(int(rng.integers(3, 20))):
        colour = tuple(float(c) for c in _colour(rng))
        x, y = int(rng.integers(width)), int(rng.integers(height))
        a, b = (int(v) for v in rng.integers(4, max(6, min(width, height) // 4), 2))
        kind = rng.integers(3)
        if kind == 0:
            cv2.ellipse(layer, (x, y), (a, b), float(rng.uniform(0, 180)), 0, 360, colour, -1)
        elif kind == 1:
            cv2.rectangle(layer, (x, y), (x + a, y + b), colour, -1)
        else:
            end = (int(rng.integers(width)), int(rng.integers(height)))
            cv2.line(layer, (x, y), end, colour, int(rng.integers(1, 8)))
    if rng.random() < 0.4:
        layer = cv2.GaussianBlur(layer, (0, 0), float(rng.uniform(1, 6)))
    return layer


_PAINTERS: tuple[Callable[[np.random.Generator, int, int], NDArray[np.float32]], ...] = (
    _plain, _gradient, _clouds, _clouds, _stripes, _checks,
)  # fmt: skip


def _degrade(rng: np.random.Generator, image: Image8) -> Image8:
    """Degrade an image as cameras and uploads do: exposure, blur, grain, JPEG."""
    if rng.random() < 0.3:
        gain, lift = rng.uniform(0.75, 1.2), rng.uniform(-20, 20)
        image = np.clip(image * gain + lift, 0, 255).astype(np.uint8)
    if rng.random() < 0.15:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.3, 1.2)))
    if rng.random() < 0.25:
        grain = _grain(rng, image.shape[1], image.shape[0], rng.uniform(1, 8))
        image = np.clip(image + grain, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 95))]
        done, data = cv2.imencode(".jpg", image, quality)
        again = cv2.imdecode(data, cv2.IMREAD_COLOR) if done else None
        if again is not None:
            image = again.astype(np.uint8)
    return image


def main(folder: str) -> None:
    rng = np.random.default_rng(2024)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number in range(1, 13):
        width, height = (int(n) for n in rng.integers(420, 721, 2))
        scene = draw_scene(
            rng,
            width=width,
            height=height,
            count=2 + number % 4,
            scale=(0.25, 0.5),
            min_visible=0.6,
            degrade=False,
        )
        Image.fromarray(scene.image).save(Path(folder) / f"scene-{number:02}.jpg", quality=92)


if __name__ == "__main__":
    main(sys.argv[1])
