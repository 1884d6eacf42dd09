"""The models as a server uses them: what they do is timed, and tried again where memory ran out."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from backend.runtime.embedding_cache import Encoder
from backend.telemetry.metrics import Metrics
from model.segmentation.embedding import Embedding
from model.types import Detection, Image, Level, Prompt
from model.vlm.questions import RemoteAnswer
from model.weights.out_of_memory import with_less

T = TypeVar("T")


class Model(Encoder, Protocol):
    """What a server needs of `model.pipeline.VLSAM`."""

    def annotate(
        self,
        image: Image,
        *,
        encode: Callable[[Image], Embedding] | None = None,
        vocabulary: Sequence[str] = (),
        remote_answers: Sequence[Sequence[RemoteAnswer]] | None = None,
    ) -> list[Detection]: ...

    def similarity(self, terms: Sequence[str], names: Sequence[str]) -> NDArray[np.float32]: ...

    def find(
        self,
        image: Image,
        phrase: str,
        *,
        encode: Callable[[Image], Embedding] | None = None,
        level: Level = "auto",
    ) -> list[Detection]: ...

    def refine(self, embedding: Embedding, prompt: Prompt, level: Level = "auto") -> Detection: ...

    def smaller(self) -> "Model": ...


class Served:
    """A `Model` whose methods are timed and, where memory runs out, free what they can and try once more.

    `free` gives back what of the device's memory can be made again. Its methods raise OutOfMemory where that
    was not enough.
    """

    def __init__(self, model: Model, metrics: Metrics, free: Callable[[], None]) -> None:
        self._model, self._metrics, self._free = model, metrics, free

    @property
    def device(self) -> torch.device:
        return self._model.device

    def encode(self, image: Image) -> Embedding:
        return self._twice("encode", lambda model: model.encode(image))

    def annotate(
        self,
        image: Image,
        *,
        encode: Callable[[Image], Embedding] | None = None,
        vocabulary: Sequence[str] = (),
        remote_answers: Sequence[Sequence[RemoteAnswer]] | None = None,
    ) -> list[Detection]:
        encode = encode or self.encode
        return self._twice(
            "annotate",
            lambda model: model.annotate(
                image, encode=encode, vocabulary=vocabulary, remote_answers=remote_answers
            ),
        )

    def similarity(self, terms: Sequence[str], names: Sequence[str]) -> NDArray[np.float32]:
        return self._twice("similarity", lambda model: model.similarity(terms, names))

    def find(
        self,
        image: Image,
        phrase: str,
        *,
        encode: Callable[[Image], Embedding] | None = None,
        level: Level = "auto",
    ) -> list[Detection]:
        encode = encode or self.encode
        return self._twice("find", lambda model: model.find(image, phrase, encode=encode, level=level))

    def refine(self, embedding: Embedding, prompt: Prompt, level: Level = "auto") -> Detection:
        return self._twice("refine", lambda model: model.refine(embedding, prompt, level))

    def smaller(self) -> Model:
        return self._model.smaller()

    def answers(self) -> bool:
        """Whether the device computes; raises what it raises where it does not."""
        return bool((torch.ones(8, device=self.device) * 2).sum().item() == 16)

    def _twice(self, stage: str, work: Callable[[Model], T]) -> T:
        def free() -> None:
            self._metrics.errors.labels("OutOfMemory").inc()
            self._free()

        with self._metrics.stage(stage):
            done, _ = with_less(self._model, work, free=free)
        return done
