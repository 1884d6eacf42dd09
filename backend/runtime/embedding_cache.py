"""Cache image embeddings in the memory of the device, in main memory and, optionally, in files."""

import threading
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from cachetools import LRUCache

from backend.runtime.embedding_files import EmbeddingFiles
from backend.runtime.retrying_model import RetryingModel
from backend.runtime.single_flight import Flight, SingleFlight
from backend.telemetry.metrics import Metrics
from model.segmentation.embedding import Embedding
from model.types import Image
from model.weights.out_of_memory import Frugal

DEVICE_SHARE = 1 / 8  # of the capacity: device memory is scarce, and a copy from the host takes milliseconds


class Encoder(Frugal, Protocol):
    """The interface of a model that makes embeddings, such as `model.pipeline.VLSAM`."""

    def encode(self, image: Image) -> Embedding: ...


E = TypeVar("E", bound=Encoder)


def embedding_key(segmenter: str, content: str) -> str:
    return f"{segmenter}-{content}"


class _Tier(LRUCache[str, Embedding]):
    """A cache in one kind of memory. If it is full, move the least recently used to `next_tier`, if any."""

    def __init__(self, name: str, capacity: float, metrics: Metrics, next_tier: "_Tier | None") -> None:
        super().__init__(capacity, getsizeof=lambda embedding: embedding.nbytes)
        self.next_tier = next_tier
        self.hits = metrics.embedding_hits.labels(name)
        self._evictions = metrics.embedding_evictions.labels(name)
        metrics.embedding_bytes.labels(name).set_function(lambda: self.currsize)

    def keep(self, key: str, embedding: Embedding) -> None:
        """Add an embedding. If it is larger than this tier, add it to `next_tier`, or drop it."""
        if embedding.nbytes <= self.maxsize:
            self[key] = embedding
        elif self.next_tier is not None:
            self.next_tier.keep(key, embedding.to("cpu"))

    def popitem(self) -> tuple[str, Embedding]:
        key, embedding = super().popitem()
        self._evictions.inc()
        if self.next_tier is not None:
            self.next_tier.keep(key, embedding.to("cpu"))
        return key, embedding


class EmbeddingCache:
    """A cache of embeddings, by the hash of the image and the segmenter. Thread-safe.

    `capacity` is the number of bytes in main memory. An eighth of it is used in GPU memory as well. When that
    is full, the least recently used embedding moves to main memory. There it is dropped when memory is full.
    New embeddings are also written to `files`.
    """

    def __init__(
        self, segmenter: str, capacity: float, metrics: Metrics, files: EmbeddingFiles | None = None
    ) -> None:
        self._segmenter, self._metrics, self._files = segmenter, metrics, files
        self._lock = threading.Lock()
        self._encoding: SingleFlight[Embedding] = SingleFlight()
        self._host = _Tier("host", capacity, metrics, None)
        self._device = _Tier("device", capacity * DEVICE_SHARE, metrics, self._host)

    def handle(self, content: str) -> "EmbeddingHandle":
        """Return a handle to the embedding of the image of hash `content`. Read its file if it has one."""
        key = embedding_key(self._segmenter, content)
        with self._lock:
            cached = self._device.get(key) or self._host.get(key)
        if cached is None and self._files:
            cached = self._files.read(key)
        return EmbeddingHandle(self, key, cached, self._encoding.flight(key))

    def take(self, key: str, device: torch.device) -> Embedding | None:
        """Return the embedding under `key`, moved to `device`; None if it is not in memory."""
        with self._lock:
            for tier in (self._device, self._host):
                if key in tier:
                    embedding = tier.pop(key).to(device)
                    self._keep(key, embedding)
                    tier.hits.inc()
                    return embedding
        return None

    def add(self, key: str, embedding: Embedding, *, encoded: bool) -> None:
        """Add an embedding. If it was just `encoded`, also write it to a file, in the background."""
        with self._lock:
            for tier in (self._device, self._host):
                tier.pop(key, None)
            self._keep(key, embedding)
        if encoded:
            self._metrics.embedding_misses.inc()
            if self._files:
                self._files.write_later(key, embedding)

    def leave_device(self) -> None:
        """Move all embeddings to main memory, to free the device's memory."""
        with self._lock:
            for key in list(self._device):
                self._host.keep(key, self._device.pop(key).to("cpu"))

    def _keep(self, key: str, embedding: Embedding) -> None:
        (self._host if embedding.device.type == "cpu" else self._device).keep(key, embedding)


@dataclass(frozen=True, eq=False)
class EmbeddingHandle:
    """A reference to the embedding of one image. Concurrent calls of `get` for an image encode it once."""

    _cache: EmbeddingCache
    key: str
    _cached: Embedding | None
    _flight: Flight[Embedding]

    @property
    def ready(self) -> bool:
        """Whether `get` needs no image, since the embedding is cached."""
        return self._cached is not None

    def get(self, model: RetryingModel[E], image: Image | None = None) -> Embedding:
        """Return the embedding on the model's device. If it is not cached, encode `image`.

        Raises ValueError if it is not cached and `image` is None. Raises the errors of encoding.
        """

        def made() -> Embedding:
            if self._cached is not None:  # read from its file, or evicted in the meantime
                embedding = self._cached.to(model.device)
            elif image is not None:
                embedding = model.run("encode", lambda encoder: encoder.encode(image))
            else:
                raise ValueError("an embedding that is not cached needs the image")
            self._cache.add(self.key, embedding, encoded=self._cached is None)
            return embedding

        return self._cache.take(self.key, model.device) or self._flight.run(made)
