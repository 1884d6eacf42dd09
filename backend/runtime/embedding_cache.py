"""The embedding cache: keeps what the segmenter made of an image, so that no image is encoded twice.

Two tiers are in memory, the device's and the host's; files are optional.
"""

import threading
from typing import Protocol, TypeVar

import torch
from cachetools import LRUCache

from backend.runtime.embedding_files import EmbeddingFiles
from backend.runtime.oom_retry import RetryingModel
from backend.runtime.single_flight import Flight, SingleFlight
from backend.telemetry.metrics import Metrics
from model.segmentation.embedding import Embedding
from model.types import Image
from model.weights.out_of_memory import Frugal

DEVICE_SHARE = 1 / 8  # of the capacity: device memory is scarce, and a copy from the host takes milliseconds


class Encoder(Frugal, Protocol):
    """The part of `model.pipeline.VLSAM` that makes embeddings."""

    def encode(self, image: Image) -> Embedding: ...


E = TypeVar("E", bound=Encoder)


def embedding_key(segmenter: str, content: str) -> str:
    """Return the key of the embedding that `segmenter` makes of the image with the hash `content`."""
    return f"{segmenter}-{content}"


class _Tier(LRUCache[str, Embedding]):
    """Embeddings in one kind of memory, of at most `capacity` bytes together.

    The least recently used one moves to the `next_tier` when another needs its room.
    """

    def __init__(self, name: str, capacity: float, metrics: Metrics, next_tier: "_Tier | None") -> None:
        super().__init__(capacity, getsizeof=lambda embedding: embedding.nbytes)
        self.next_tier = next_tier
        self.hits = metrics.embedding_hits.labels(name)
        self._evictions = metrics.embedding_evictions.labels(name)
        metrics.embedding_bytes.labels(name).set_function(lambda: self.currsize)

    def keep(self, key: str, embedding: Embedding) -> None:
        """Add an embedding; one that is larger than this tier goes to the next."""
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
    """Embeddings by the content of their image and the segmenter that made them. Thread-safe.

    `capacity` is in bytes of main memory; a GPU keeps an eighth of that besides. The least recently used
    embedding moves from the device to the host, and is dropped there. With `files` every new embedding is
    written, too.
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
        """Return a handle to the embedding of the image with the hash `content`.

        Reads the file, if there is one, in the calling thread: the thread of the models need not wait for it.
        """
        key = embedding_key(self._segmenter, content)
        with self._lock:
            cached = self._device.get(key) or self._host.get(key)
        read = self._files.read(key) if cached is None and self._files else None
        flight = self._encoding.flight(key)
        return EmbeddingHandle(self, key, cached or read, flight, from_file=read is not None)

    def take(self, key: str, device: torch.device) -> Embedding | None:
        """Return the embedding under `key`, on `device`; None if it is not cached."""
        with self._lock:
            for tier in (self._device, self._host):
                if key in tier:
                    embedding = tier.pop(key).to(device)
                    self._keep(key, embedding)
                    tier.hits.inc()
                    return embedding
        return None

    def add(self, key: str, embedding: Embedding) -> None:
        """Add an embedding in place of one under the same key."""
        with self._lock:
            for tier in (self._device, self._host):
                tier.pop(key, None)
            self._keep(key, embedding)

    def add_encoded(self, key: str, embedding: Embedding) -> None:
        """Add an embedding that was just made."""
        self._metrics.embedding_misses.inc()
        self.add(key, embedding)
        if self._files:
            self._files.write_later(key, embedding)

    def add_read(self, key: str, embedding: Embedding) -> None:
        """Add an embedding that was read from its file."""
        self._metrics.embedding_hits.labels("disk").inc()
        self.add(key, embedding)

    def leave_device(self) -> None:
        """Move all embeddings to the host, to free the device's memory."""
        with self._lock:
            for key in list(self._device):
                self._host.keep(key, self._device.pop(key).to("cpu"))

    def _keep(self, key: str, embedding: Embedding) -> None:
        (self._host if embedding.device.type == "cpu" else self._device).keep(key, embedding)


class EmbeddingHandle:
    """A handle to one cached embedding. Holds a reference, so that eviction cannot remove it meanwhile.

    Handles to the same image share one `encode`, or its error.
    """

    def __init__(
        self,
        cache: EmbeddingCache,
        key: str,
        cached: Embedding | None,
        flight: Flight[Embedding],
        *,
        from_file: bool = False,
    ) -> None:
        self._cache, self.key, self._cached, self._flight = cache, key, cached, flight
        self._from_file = from_file

    @property
    def ready(self) -> bool:
        """Whether `get` works without the image."""
        return self._cached is not None

    def get(self, model: RetryingModel[E], image: Image | None = None) -> Embedding:
        """Return the embedding on the model's device, encoded from `image` if it is not cached.

        Raises ValueError if it is not cached and there is no image, and what encoding raises; no error is
        cached.
        """
        cached = self._cache.take(self.key, model.device)
        return self._flight.run(lambda: self._made(model, image)) if cached is None else cached

    def _made(self, model: RetryingModel[E], image: Image | None) -> Embedding:
        if self._cached is not None:
            embedding = self._cached.to(model.device)
            # One that did not come from its file was evicted in the meantime.
            add = self._cache.add_read if self._from_file else self._cache.add
        elif image is not None:
            embedding = model.run("encode", lambda encoder: encoder.encode(image))
            add = self._cache.add_encoded
        else:
            raise ValueError("an embedding that is not cached needs the image")
        add(self.key, embedding)
        return embedding
