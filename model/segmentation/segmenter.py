"""Encode an image once and decode prompts into masks, by Segment Anything.

Stateless: `embedding = encode(image)`, `decode(embedding, prompts)`. There is no current image that callers
could confuse. The families of SAM are in sam_families/.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from model.profiles import DEVICE_MAPS, FOLDER
from model.segmentation import sam_families
from model.segmentation.embedding import Embedding
from model.segmentation.mask_cleanup import without_specks_and_holes
from model.segmentation.sam_families.family import (
    BOTTOM_RIGHT,
    NOTHING,
    TOP_LEFT,
    SamFamily,
    TakesPhrases,
    Tokens,
)
from model.types import Box, Image, Mask, Prompt, PromptError, refused
from model.weights import devices
from model.weights.names import sam_path

# Logit of a given mask's pixels: well inside the range of SAM's own answers.
MASK_LOGIT = 8.0
# Least score of a candidate for a noun phrase: SAM 3's model card and its authors' code.
CONCEPT_SCORE = 0.5
# Prompts in one call of the decoder: more outgrow a CPU's caches (docs/decisions/0009-sam-families.md).
CHUNK, CHUNK_CPU = 32, 2


@dataclass(frozen=True, eq=False)
class Levels:
    """A sequence of k masks (H, W). Each is computed from its logits when indexed: most callers need one."""

    logits: NDArray[np.float32]  # (k, h, w) low resolution, of the encoder's square
    size: tuple[int, int]  # H, W of the image
    side: int  # of the square that the logits are resized to first
    inside: tuple[int, int]  # H, W of the image on it; the rest is padding

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, level: int) -> Mask:
        # Bilinear twice, as the libraries do; cv2 takes a fifth of torch's time and differs by rounding.
        square = cv2.resize(self.logits[level], (self.side, self.side))
        return np.asarray(cv2.resize(square[: self.inside[0], : self.inside[1]], self.size[::-1]) > 0)

    def __iter__(self) -> Iterator[Mask]:
        return (self[level] for level in range(len(self)))


@dataclass(frozen=True, eq=False)
class Answer:
    """A mask, with the prompt that gives it."""

    mask: Mask  # in image pixels
    predicted_iou: float  # 0..1
    logits: NDArray[np.float32]  # (h, w) low resolution, of the encoder's square
    prompt: Prompt


@dataclass(frozen=True, eq=False)
class Masks:
    """The masks for one prompt: k is 3 levels (multimask) or 1."""

    masks: Levels  # k masks in image pixels
    predicted_iou: NDArray[np.float32]  # (k,) clipped to 0..1
    logits: NDArray[np.float32]  # (k, h, w) low resolution, of the encoder's square
    prompt: Prompt

    def at(self, level: int) -> Answer:
        return Answer(self.masks[level], float(self.predicted_iou[level]), self.logits[level], self.prompt)

    def best(self) -> Answer:
        """Return the mask with the highest predicted IoU."""
        return self.at(int(self.predicted_iou.argmax()))


@dataclass(frozen=True, eq=False)
class Concept:
    """The k objects that a noun phrase names in an image, unordered, with scores (k,) of 0..1."""

    masks: Levels
    scores: NDArray[np.float32]


class Segmenter:
    """A SAM of any family, which encodes images and decodes prompts into masks."""

    def __init__(self, family: SamFamily, chunk: int | None = None) -> None:
        self.family = family
        # Prompts per call of the decoder.
        self._chunk = chunk or (CHUNK_CPU if family.device.type == "cpu" else CHUNK)

    def smaller(self) -> "Segmenter":
        """Return the same segmenter with one prompt per call, which needs less memory."""
        return Segmenter(self.family, 1)

    @classmethod
    def load(cls, name: str, *, device: str, folder: Path = FOLDER, concepts: bool = False) -> "Segmenter":
        """Load a SAM by its published checkpoint's name, a hub id, a local file or folder (sam_families/).

        Download missing weights into `folder`. `concepts` also loads what `concepts()` needs, which few
        families have. Raises ModelLoadError.
        """
        device = devices.choose("auto" if device in DEVICE_MAPS else device)  # too small to be spread
        path = sam_path(name, folder, partial(sam_families.check, name=name, concepts=concepts))
        return cls(sam_families.load(path, device, concepts=concepts))

    @property
    def device(self) -> torch.device:
        return self.family.device

    @torch.inference_mode()
    def encode(self, image: Image) -> Embedding:
        """Encode an image, uint8 (H, W, 3), for all its prompts. Raises ImageRefused if it is too narrow."""
        height, width = image.shape[:2]
        side = self.family.side
        scaled = (side, side)
        if not self.family.stretched:
            scale = side / max(height, width)
            scaled = (int(height * scale + 0.5), int(width * scale + 0.5))  # as every SAM rounds
            if not all(scaled):
                left = f"scaled to {scaled[1]} x {scaled[0]} pixels nothing is left of it"
                raise refused("the segmenter", image, left)
        return Embedding(self.family.features(image), (height, width), scaled)

    @torch.inference_mode()
    def decode(self, embedding: Embedding, prompts: Sequence[Prompt], *, multimask: bool) -> list[Masks]:
        """Return the masks for every prompt, in order. Prompts of equal length are decoded together.

        `multimask`: three masks per prompt (whole, part, subpart) instead of one. Raises PromptError for a
        prompt that is empty, or has numbers that are not finite, or a mask or logits of a wrong size.
        """
        device = self.family.device
        embedding = embedding.to(device)
        rows = [self._tokens(embedding, prompt) for prompt in prompts]
        # No padding to one length: one more token of any kind changes the answer.
        groups: dict[tuple[int, bool], list[int]] = {}
        for index, row in enumerate(rows):
            groups.setdefault((row.labels.shape[1], row.masks is not None), []).append(index)
        decoded: dict[int, Masks] = {}
        for members in groups.values():
            for start in range(0, len(members), self._chunk):
                chunk = members[start : start + self._chunk]
                masks = [low for i in chunk if (low := rows[i].masks) is not None]
                tokens = Tokens(
                    torch.cat([rows[i].points for i in chunk]).to(device),
                    torch.cat([rows[i].labels for i in chunk]).to(device),
                    torch.cat(masks).to(device) if masks else None,
                )
                logits, quality = self.family.decode(embedding.tensors, tokens, multimask=multimask)
                scores, lows = quality.clamp(0, 1).cpu().numpy(), logits.float().cpu().numpy()
                for i, score, low in zip(chunk, scores, lows, strict=True):
                    decoded[i] = Masks(self.levels(embedding, low), score, low, prompts[i])
        return [decoded[i] for i in range(len(prompts))]

    @torch.inference_mode()
    def concepts(
        self, embedding: Embedding, phrases: Sequence[str], boxes: Sequence[Box] | None = None
    ) -> list[Concept]:
        """Return all objects that each noun phrase names, in the phrases' order.

        `boxes`: one example per phrase, in pixels. Raises PromptError if loaded without `concepts`.
        """
        family = self.family
        if not isinstance(family, TakesPhrases):
            raise PromptError("this segmenter was loaded without the part that takes noun phrases")
        embedding = embedding.to(family.device)
        shares = None
        if boxes is not None:
            height, width = embedding.size
            x0, y0, x1, y1 = (torch.tensor(boxes) / torch.tensor([width, height, width, height])).T
            shares = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], 1).to(family.device)
        concepts = []
        for logits, scores in family.concepts(embedding.tensors, phrases, shares):
            kept = scores > CONCEPT_SCORE
            # Enlarge the probabilities, not the logits, then cut at a half, as the library does.
            probabilities = logits[kept].sigmoid().cpu().numpy() - np.float32(0.5)
            concepts.append(Concept(self.levels(embedding, probabilities), scores[kept].cpu().numpy()))
        return concepts

    def _tokens(self, embedding: Embedding, prompt: Prompt) -> Tokens:
        """Convert a prompt to tokens in the encoder's coordinates, on the CPU. Raises PromptError."""
        _check(prompt)
        points, labels = [prompt.points], [prompt.labels]
        if prompt.box is not None:
            points.append(np.array(prompt.box, np.float32).reshape(2, 2))
            labels.append(np.array([TOP_LEFT, BOTTOM_RIGHT]))
        if prompt.box is None or self.family.ends_boxes:
            points.append(np.zeros((1, 2), np.float32))
            labels.append(np.array([NOTHING]))
        (height, width), (scaled_height, scaled_width) = embedding.size, embedding.scaled
        xy = np.concatenate(points) * np.array([scaled_width / width, scaled_height / height])
        low = prompt.logits
        if prompt.mask is not None:
            if prompt.mask.shape != embedding.size:
                raise PromptError(f"the prompt's mask is {prompt.mask.shape}, the image {embedding.size}")
            low = self.hint(embedding, prompt.mask.astype(np.float32)) if low is None else low
        if low is not None:
            self._check_logits(low)
        return Tokens(
            torch.from_numpy(xy.astype(np.float32))[None],
            torch.from_numpy(np.concatenate(labels).astype(np.int64))[None],
            None if low is None else torch.tensor(low, dtype=torch.float32)[None, None],
        )

    def levels(self, embedding: Embedding, logits: NDArray[np.float32]) -> Levels:
        if self.family.stretched:  # libraries do not resize to the encoder's square first
            side = self.family.low
            return Levels(logits, embedding.size, side, (side, side))
        return Levels(logits, embedding.size, self.family.side, embedding.scaled)

    def mask(self, embedding: Embedding, logits: NDArray[np.float32]) -> Mask:
        """Return the mask (H, W) of an answer's logits (h, w) on this image. Raises PromptError."""
        self._check_logits(logits)
        return self.levels(embedding, logits[None])[0]

    def clean(self, embedding: Embedding, answer: Answer) -> Answer:
        """Remove specks and holes (mask_cleanup.py) by flipping logits; return `answer` if it has none."""
        height, width = self._inside(embedding)
        inside, prompt = answer.logits[:height, :width], answer.prompt
        points = prompt.points * (np.array([width, height]) / embedding.size[::-1]).astype(np.float32)
        shown = inside > 0
        tidy = without_specks_and_holes(shown, Prompt(points, prompt.labels))
        if tidy is shown:
            return answer
        logits = answer.logits.copy()
        logits[:height, :width] = np.where(tidy == shown, inside, -inside)
        return replace(answer, mask=self.mask(embedding, logits), logits=logits)

    def _inside(self, embedding: Embedding) -> tuple[int, int]:
        """Return H, W of the part of the low-resolution logits that the image covers; the rest is padding."""
        height, width = (max(1, round(n * self.family.low / self.family.side)) for n in embedding.scaled)
        return height, width

    def _check_logits(self, logits: NDArray[np.float32]) -> None:
        side = self.family.low
        if logits.shape != (side, side):
            raise PromptError(f"the prompt's logits are {logits.shape}, this segmenter's {(side, side)}")

    def hint(self, embedding: Embedding, share: NDArray[np.float32]) -> NDArray[np.float32]:
        """Convert an object's share of each cell, 0..1 on any grid over the image, to logits for a prompt."""
        side, (height, width) = self.family.low, self._inside(embedding)
        # Average when shrinking; interpolate when enlarging, or a coarse grid's edges would show.
        interpolation = cv2.INTER_AREA if share.shape[0] > height else cv2.INTER_LINEAR
        share = cv2.resize(share, (width, height), interpolation=interpolation)
        low = np.full((side, side), -MASK_LOGIT, np.float32)
        low[:height, :width] = (2 * share - 1) * MASK_LOGIT
        return low


def _check(prompt: Prompt) -> None:
    if not len(prompt.points) and prompt.box is None:
        raise PromptError("a prompt needs at least one point or a box")
    if prompt.points.shape != (len(prompt.labels), 2):
        raise PromptError(f"{prompt.points.shape} points do not fit {len(prompt.labels)} labels")
    given = (prompt.points, prompt.logits, prompt.box)
    if not all(each is None or (np.abs(each) <= np.finfo(np.float32).max).all() for each in given):
        raise PromptError("a prompt holds a number that is not finite")
    if not np.isin(prompt.labels, (0, 1)).all():
        raise PromptError("point labels are 1 (inside) or 0 (outside)")
