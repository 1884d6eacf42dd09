"""Choose colours of labels that people can tell apart, by their CIEDE2000 difference."""

from contextlib import suppress
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

Lab = NDArray[np.float64]  # (..., 3): CIELAB's L* 0..100, a*, b*
_FIRST = "#e11e4b"
_LIGHTNESS = (35, 90)  # darker ones hide the image, lighter ones do not show on it
_CHROMA = 25  # below it colours are grey, and masks hard to see


@lru_cache(maxsize=8)
def colours(count: int, taken: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return `count` colours as "#rrggbb", each as far as possible from those before it and from `taken`.

    A larger count never changes the first colours. The smallest CIEDE2000 difference is 28 among 10 colours,
    19 among 20, 14 among 40 and 10 among 80. `taken` are CSS colours; invalid ones are ignored.
    """
    steps = np.arange(0, 256, 15)
    rgb: NDArray[np.int_] = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3)
    lab = lab_of(rgb)
    fit = (lab[:, 0] >= _LIGHTNESS[0]) & (lab[:, 0] <= _LIGHTNESS[1])
    fit &= np.hypot(lab[:, 1], lab[:, 2]) >= _CHROMA
    rgb, lab = rgb[fit], lab[fit]
    names = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in rgb.tolist()]
    known: list[tuple[int, ...]] = []
    for name in taken:
        with suppress(ValueError):
            known.append(ImageColor.getrgb(name)[:3])
    before = lab_of(np.array(known).reshape(-1, 3))
    nearest = np.full(len(lab), np.inf)  # distance of each candidate to the chosen and taken colours
    for colour in before:
        nearest = np.minimum(nearest, ciede2000(lab, colour))
    chosen: list[int] = []
    while len(chosen) < count:
        # Rounded, so that the last bits of other processors' cosines choose no other colour.
        first = not chosen and not len(before)
        chosen.append(names.index(_FIRST) if first else int(nearest.round(3).argmax()))
        nearest = np.minimum(nearest, ciede2000(lab, lab[chosen[-1]]))
    return tuple(names[index] for index in chosen)


def lab_of(rgb: NDArray[np.integer]) -> Lab:
    """Convert sRGB (n, 3), 0..255, to CIELAB (n, 3)."""
    if not len(rgb):
        return np.zeros((0, 3))
    unit = (rgb / 255).astype(np.float32)
    return np.asarray(cv2.cvtColor(unit[None], cv2.COLOR_RGB2LAB)[0], np.float64)


def ciede2000(one: Lab, other: Lab) -> NDArray[np.float64]:
    """Return the CIEDE2000 differences of colours that broadcast (Sharma, Wu and Dalal, 2005)."""
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(one, -1, 0), np.moveaxis(other, -1, 0)
    mean = ((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2) ** 7
    stretch = 1 + 0.5 * (1 - np.sqrt(mean / (mean + 25.0**7)))
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = np.degrees(np.arctan2(b1, a1)) % 360, np.degrees(np.arctan2(b2, a2)) % 360
    turn = (h2 - h1 + 180) % 360 - 180
    light, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    grey = c1 * c2 == 0
    hue = np.radians(np.where(grey, h1 + h2, (h1 + turn / 2) % 360))
    weight = (
        1
        - 0.17 * np.cos(hue - np.radians(30))
        + 0.24 * np.cos(2 * hue)
        + 0.32 * np.cos(3 * hue + np.radians(6))
        - 0.20 * np.cos(4 * hue - np.radians(63))
    )
    d_light = (l2 - l1) / (1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2))
    d_chroma = (c2 - c1) / (1 + 0.045 * chroma)
    d_hue = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * chroma * weight)
    twist = np.radians(60 * np.exp(-(((np.degrees(hue) - 275) / 25) ** 2)))
    rotation = -2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7)) * np.sin(twist)
    return np.asarray(np.sqrt(d_light**2 + d_chroma**2 + d_hue**2 + rotation * d_chroma * d_hue))
