"""Define the protocol of every SAM, independent of its library."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from model.types import Image

# Labels of a prompt's tokens. NOTHING is padding: SAM was trained with one after the points.
NOTHING, OUTSIDE, INSIDE, TOP_LEFT, BOTTOM_RIGHT = range(-1, 4)


@dataclass(frozen=True, eq=False)
class Tokens:
    """n prompts of equal length as the decoder takes them."""

    points: Tensor  # (n, k, 2) float32 xy on the encoder's square
    labels: Tensor  # (n, k) int64, as above
    masks: Tensor | None = None  # (n, 1, low, low) float32 logits

    def embedded(self, places: Tensor, kinds: Tensor) -> Tensor:
        """Add to each encoding of `places` (n, k, C), 0 for NOTHING, its label's row of `kinds` (5, C)."""
        return places * (self.labels >= 0)[..., None] + kinds[self.labels + 1]


class SamFamily(Protocol):
    """A SAM. Holds weights and no state of any image."""

    side: int  # pixels of the encoder's square
    low: int  # pixels of the square of mask logits, as input and output
    stretched: bool  # the image is stretched to the square; else scaled by its long side and padded
    ends_boxes: bool  # NOTHING also ends a prompt with a box
    device: torch.device

    def features(self, image: Image) -> dict[str, Tensor]:
        """Encode an image, uint8 (H, W, 3): tensors by name."""

    def decode(
        self, features: Mapping[str, Tensor], prompts: Tokens, *, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """Return mask logits (n, 3 or 1, low, low) and predicted IoU (n, 3 or 1)."""


@runtime_checkable
class TakesPhrases(SamFamily, Protocol):
    """A family that also finds all objects that a noun phrase names."""

    def concepts(
        self, features: Mapping[str, Tensor], phrases: Sequence[str], boxes: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield per phrase its candidates' mask logits (q, h, w) over the image, and scores (q,) 0..1.

        `boxes`, float32 (n, 4): an example per phrase, as centre x, y, width, height in shares of the image.
        """
