"""A stand-in for the models of a server."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from model.segmentation.embedding import Embedding
from model.types import Detection, Image, Level, Prompt
from model.vlm.questions import RemoteAnswer
from tests.support.detections import detection, disc


@dataclass
class StandIn:
    """Replaces the models: finds the given detections, and waits or fails on demand.

    A click gives a disc around its first positive point, joined with the mask that it starts from.
    """

    found: list[Detection] = field(default_factory=list)
    seconds: float = 0.0
    fail_on: set[int] = field(default_factory=set)  # numbers of annotate calls
    prompts: list[Prompt] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    hold: threading.Event | None = None
    vocabularies: list[tuple[str, ...]] = field(default_factory=list)
    said: list[Sequence[Sequence[RemoteAnswer]] | None] = field(default_factory=list)
    encoded: list[int] = field(default_factory=list)  # the first number of each encoded image
    fail_to_encode: int = 0  # so many times
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    def encode(self, image: Image) -> Embedding:
        self.encoded.append(int(image[0, 0, 0]))
        if self.fail_to_encode:
            self.fail_to_encode -= 1
            raise RuntimeError("made to fail to encode")
        height, width = image.shape[:2]
        return Embedding({"image": torch.tensor(image)}, (height, width), (height, width))

    def annotate(
        self,
        image: Image,
        *,
        embedding: Embedding | None = None,
        vocabulary: Sequence[str] = (),
        remote_answers: Sequence[Sequence[RemoteAnswer]] | None = None,
    ) -> list[Detection]:
        self.order.append("batch")
        self.said.append(remote_answers)
        self.vocabularies.append(tuple(vocabulary))
        self.images.append(image)
        self._wait()
        if len(self.images) - 1 in self.fail_on:
            raise RuntimeError("made to fail")
        embedding or self.encode(image)
        return self.found

    def similarity(self, terms: Sequence[str], names: Sequence[str]) -> NDArray[np.float32]:
        """Return the share of letters that two names have in common."""
        shared = [[len({*t} & {*name}) / max(1, len({*t} | {*name})) for name in names] for t in terms]
        return np.array(shared, np.float32).reshape(len(terms), len(names))

    def find(
        self,
        image: Image,
        phrase: str,
        *,
        embedding: Embedding | None = None,
        level: Level = "auto",
    ) -> list[Detection]:
        """Return the given detections whose term is in the phrase."""
        self.order.append("phrase")
        self.levels.append(level)
        self._wait()
        embedding or self.encode(image)
        return [detection for detection in self.found if detection.term in phrase]

    def refine(self, embedding: Embedding, prompt: Prompt, level: Level = "auto") -> Detection:
        self.order.append("click")
        self.levels.append(level)
        self.prompts.append(prompt)
        self._wait()
        height, width = embedding.size
        positive = prompt.points[prompt.labels == 1]
        mask = np.zeros((height, width), bool) if prompt.mask is None else prompt.mask
        for x, y in positive:
            mask = mask | disc(x, y, 5, width=width, height=height)
        if prompt.box:
            x0, y0, x1, y1 = (round(side) for side in prompt.box)
            mask = mask.copy()
            mask[y0:y1, x0:x1] = True
        return detection("", mask, prompt)

    def smaller(self) -> "StandIn":
        self.order.append("smaller")
        return self

    def _wait(self) -> None:
        if self.hold is not None:
            assert self.hold.wait(10)
        time.sleep(self.seconds)
