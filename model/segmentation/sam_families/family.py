"""What the segmenter asks of every SAM, whichever library it comes from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from model.types import Image

# What a token of a prompt stands for. The first is no point: SAM was trained with one after the points.
NOTHING, OUTSIDE, INSIDE, TOP_LEFT, BOTTOM_RIGHT = range(-1, 4)


@dataclass(frozen=True, eq=False)
class Tokens:
    """n prompts of one length as the decoder takes them."""

    points: Tensor  # (n, k, 2) float32 xy on the encoder's square
    labels: Tensor  # (n, k) int64, as above
    masks: Tensor | None = None  # (n, 1, low, low) float32 logits

    def embedded(self, places: Tensor, kinds: Tensor) -> Tensor:
        """(n, k, C) from the points' encoding (n, k, C) and a vector (5, C) for each label from -1 on."""
        return places * (self.labels >= 0)[..., None] + kinds[self.labels + 1]


class SamFamily(Protocol):
    """Holds weights and nothing of any image."""

    side: int  # pixels: of the square that the encoder sees
    low: int  # pixels: of the square of mask logits, both ways
    stretched: bool  # whether the image fills the square, or its long side is scaled and the rest padded
    ends_boxes: bool  # whether NOTHING also ends a prompt that has a box
    device: torch.device

    def features(self, image: Image) -> dict[str, Tensor]:
        """The image (H, W, 3), resized and normalised as the family wants, encoded: tensors by name."""

    def decode(
        self, features: Mapping[str, Tensor], prompts: Tokens, *, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """Logits (n, 3 or 1, low, low) and predicted IoU (n, 3 or 1)."""


@runtime_checkable
class TakesPhrases(SamFamily, Protocol):
    """A family that also finds everything that a noun phrase names."""

    def concepts(
        self, features: Mapping[str, Tensor], phrases: Sequence[str], boxes: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each phrase in turn: its candidates' logits (q, h, w) over the image, and scores (q,) 0..1.

        `boxes` (n, 4) float32, if given, shows an example for each phrase: centre x and y, width and
        height, in shares of the image.
        """
