"""Build synthetic captures: causal attention of any depth, with heads that attend to a blob of the image."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model.attention.capture import Capture, Layer

WIDTH = 32  # of a head
BEFORE, AFTER, ANSWER = 4, 60, 10  # tokens before and after the image; of the latter, those that look at it
LOCAL = 3  # heads of each layer that localise


@dataclass(frozen=True, eq=False)
class Looking:
    """A capture of a decoder of so many layers while it named an object."""

    capture: Capture
    row: int  # of the name
    image: list[int]  # positions of the image's tokens
    truth: NDArray[np.bool_]  # (side, side): where the thing is


def looking(
    layers: int,
    side: int = 14,
    *,
    at: tuple[int, int] = (8, 8),
    size: int = 3,
    sink: float = 0.0,
    heads: int = 8,
    strength: float = 3.6,
    seed: int = 0,
) -> Looking:
    """Return a capture with noise in every head.

    In LOCAL heads of each layer the answer's rows attend to a square of `size` cells from `at`.

    `sink` is what is added to every score of the first token: with 6 it gets half of the attention and more.
    """
    noise = torch.Generator().manual_seed(seed)
    truth = np.zeros((side, side), bool)
    truth[at[0] : at[0] + size, at[1] : at[1] + size] = True
    blob = BEFORE + torch.from_numpy(np.flatnonzero(truth))
    count = BEFORE + side**2 + AFTER
    places, capture = torch.arange(count), Capture()
    spans = torch.stack([torch.zeros_like(places), places + 1], 1)
    pull = (sink * WIDTH**0.5) ** 0.5
    for index in range(layers):
        query, key = (torch.randn(heads, count, WIDTH, generator=noise) for _ in range(2))
        for head in range(heads):
            way = torch.nn.functional.normalize(torch.randn(WIDTH, generator=noise), dim=0)
            if head < LOCAL:
                key[head, blob] += strength * way
                query[head, -ANSWER:] += strength * way
            way = torch.nn.functional.normalize(torch.randn(WIDTH, generator=noise), dim=0)
            query[head] += pull * way
            key[head, 0] += pull * way
        capture.layers[index] = Layer(WIDTH**-0.5, [query], [key], [spans])
    return Looking(capture, count - 2, list(range(BEFORE, BEFORE + side**2)), truth)
