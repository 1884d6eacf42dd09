"""What is kept between requests, so that no image is encoded twice: embeddings, and what addresses show.

Nothing here is the only copy of anything: whatever is dropped is made again.
"""

import hashlib
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

import torch

from backend.images.studio_urls import Server
from backend.labelstudio.results import image_hash
from backend.runtime.embedding_files import Disk
from backend.telemetry.metrics import Metrics
from model.segmentation.segmenter import Embedding
from model.types import Image

T = TypeVar("T")

SOURCE_SECONDS = 600.0  # a file may be replaced, and the right to see it be withdrawn
MAX_SOURCES = 10_000
DEVICE_SHARE = 1 / 8  # a device's memory is scarce, and from the host's an embedding is there in milliseconds


class Once(Generic[T]):
    """Work that all who hold this share; whoever comes to it first does it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcome: Future[T] = Future()

    @property
    def done(self) -> bool:
        return self._outcome.done()

    def __call__(self, work: Callable[[], T], deadline: float = math.inf) -> T:
        """What `work` gave or raised, for the first caller as for those who wait meanwhile.

        Work that failed after its own caller's `deadline` (of time.monotonic) says nothing to the others: the
        next of them does it. Raises TimeoutError when `deadline` passes while another works.
        """
        left = max(0.0, deadline - time.monotonic())
        if not self._lock.acquire(timeout=min(left, threading.TIMEOUT_MAX)):
            raise TimeoutError
        try:
            if not self.done:
                try:
                    self._outcome.set_result(work())
                except Exception as error:
                    if time.monotonic() >= deadline:
                        raise
                    self._outcome.set_exception(error)
        finally:
            self._lock.release()
        return self._outcome.result()


class Flights(Generic[T]):
    """Work in progress by key. Forgotten when it is done or nobody holds it any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now: WeakValueDictionary[Hashable, Once[T]] = WeakValueDictionary()

    def of(self, key: Hashable) -> Once[T]:
        """The work for `key` that is not done yet."""
        with self._lock:
            once = self._now.get(key)
            if once is None or once.done:
                self._now[key] = once = Once()
            return once


class Encoder(Protocol):
    """What is needed of `model.pipeline.VLSAM`."""

    @property
    def device(self) -> torch.device: ...

    def encode(self, image: Image) -> Embedding: ...


@dataclass
class _Tier:
    """Embeddings in one kind of memory, the longest unused first."""

    name: str
    capacity: float  # bytes
    size: int = 0
    entries: OrderedDict[str, Embedding] = field(default_factory=OrderedDict)


def embedding_key(segmenter: str, content: str) -> str:
    """Names what `segmenter` makes of the image that results.image_hash calls `content`."""
    return f"{segmenter}-{content}"


class Embeddings:
    """Embeddings by the pixels that they show and the segmenter that made them, for any number of threads.

    `capacity` bytes in main memory, and on a GPU an eighth of it there, too: what is longest unused moves
    from the device to the host, and from there out. A `disk` has whatever was encoded, as far as it has room.
    """

    def __init__(self, segmenter: str, capacity: float, metrics: Metrics, disk: Disk | None = None) -> None:
        self._segmenter, self._metrics, self._disk = segmenter, metrics, disk
        self._lock = threading.Lock()
        self._flights: Flights[Embedding] = Flights()
        self._host = _Tier("host", capacity)
        self._device = _Tier("device", capacity * DEVICE_SHARE)
        for tier in (self._device, self._host):
            metrics.embedding_hits.labels(tier.name)
            metrics.embedding_evictions.labels(tier.name)
            metrics.embedding_bytes.labels(tier.name)

    def hold(self, content: str) -> "Held":
        """A claim on the embedding of the image that results.image_hash calls `content`.

        Reads the disk where it must, so that whoever has the models need not.
        """
        key = embedding_key(self._segmenter, content)
        with self._lock:
            found = next((t.entries[key] for t in (self._device, self._host) if key in t.entries), None)
        read = self._disk.read(key) if found is None and self._disk else None
        return Held(self, key, found or read, self._flights.of(key), from_disk=read is not None)

    def take(self, key: str, device: torch.device) -> Embedding | None:
        """What is kept under `key`, now the most recently used, and on `device`."""
        with self._lock:
            for tier in (self._device, self._host):
                if key in tier.entries:
                    embedding = self._remove(tier, key).to(device)
                    self._keep(key, embedding)
                    self._metrics.embedding_hits.labels(tier.name).inc()
                    return embedding
        return None

    def add(self, key: str, embedding: Embedding) -> None:
        with self._lock:
            for tier in (self._device, self._host):
                if key in tier.entries:
                    self._remove(tier, key)
            self._keep(key, embedding)

    def leave_device(self) -> None:
        """Moves to the host whatever a device other than it holds, which needs the room."""
        with self._lock:
            for key in list(self._device.entries):
                self._keep(key, self._remove(self._device, key).to("cpu"))

    def made(self, key: str, embedding: Embedding) -> None:
        """Adds what was encoded just now."""
        self._metrics.embedding_misses.inc()
        self.add(key, embedding)
        if self._disk:
            self._disk.keep(key, embedding)

    def read(self, key: str, embedding: Embedding) -> None:
        """Adds what the disk had."""
        self._metrics.embedding_hits.labels("disk").inc()
        self.add(key, embedding)

    def _keep(self, key: str, embedding: Embedding) -> None:
        tier = self._host if embedding.device.type == "cpu" else self._device
        while tier.entries and tier.size + embedding.nbytes > tier.capacity >= embedding.nbytes:
            oldest = next(iter(tier.entries))
            dropped = self._remove(tier, oldest)
            self._metrics.embedding_evictions.labels(tier.name).inc()
            if tier is self._device:
                self._keep(oldest, dropped.to("cpu"))
        if embedding.nbytes <= tier.capacity:
            tier.entries[key] = embedding
            tier.size += embedding.nbytes
            self._metrics.embedding_bytes.labels(tier.name).set(tier.size)
        elif tier is self._device:
            self._keep(key, embedding.to("cpu"))

    def _remove(self, tier: _Tier, key: str) -> Embedding:
        embedding = tier.entries.pop(key)
        tier.size -= embedding.nbytes
        self._metrics.embedding_bytes.labels(tier.name).set(tier.size)
        return embedding


class Held:
    """A request's claim on an embedding: what was kept when it was made stays within reach.

    Requests that claim the embedding of one image at the same time share one encode, or its error.
    """

    def __init__(
        self,
        cache: Embeddings,
        key: str,
        found: Embedding | None,
        flight: Once[Embedding],
        *,
        from_disk: bool = False,
    ) -> None:
        self._cache, self._key, self._found, self._flight = cache, key, found, flight
        self._from_disk = from_disk

    @property
    def ready(self) -> bool:
        """Whether `get` needs no image."""
        return self._found is not None

    def get(self, model: Encoder, image: Image | None = None) -> Embedding:
        """The embedding, on the model's device: as it is kept, or encoded now from `image`.

        Raises what encoding raises; that is not kept.
        """
        kept = self._cache.take(self._key, model.device)
        return self._flight(lambda: self._made(model, image)) if kept is None else kept

    def _made(self, model: Encoder, image: Image | None) -> Embedding:
        if self._found is not None:
            embedding = self._found.to(model.device)
            # If not from the disk, it was dropped in the meantime.
            add = self._cache.read if self._from_disk else self._cache.add
        elif image is not None:
            embedding, add = model.encode(image), self._cache.made
        else:
            raise ValueError("an embedding that is not kept needs the image")
        add(self._key, embedding)
        return embedding


@dataclass(frozen=True)
class Known:
    """What an address shows: a picture by its content (results.image_hash), and its size (H, W)."""

    content: str
    size: tuple[int, int]


class Sources:
    """What the addresses in tasks show, for ten minutes from the time they were fetched.

    So a click on an image that was seen lately needs neither its file nor its pixels.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, tuple[float, Known]] = OrderedDict()  # the oldest first
        self._flights: Flights[tuple[Image, Known]] = Flights()

    def find(self, key: bytes | None) -> Known | None:
        if key is None:
            return None
        with self._lock:
            until, known = self._known.get(key, (0.0, None))
        return known if time.monotonic() < until else None

    def load(self, key: bytes | None, fetch: Callable[[], Image], deadline: float) -> tuple[Image, Known]:
        """The image that `fetch` gives, once for all who ask for `key` meanwhile; None is nobody else's.

        Raises what `fetch` raises, and TimeoutError at `deadline`.
        """
        if key is None:
            return self._fetched(fetch)
        image, known = self._flights.of(key)(lambda: self._fetched(fetch), deadline)
        now = time.monotonic()
        with self._lock:
            self._known.pop(key, None)
            self._known[key] = (now + SOURCE_SECONDS, known)
            while len(self._known) > MAX_SOURCES or next(iter(self._known.values()))[0] < now:
                self._known.popitem(last=False)
        return image, known

    @staticmethod
    def _fetched(fetch: Callable[[], Image]) -> tuple[Image, Known]:
        image = fetch()
        return image, Known(image_hash(image), (image.shape[0], image.shape[1]))


def source_key(server: Server | None, project: str, task: object, source: str) -> bytes | None:
    """Names an address as one project of one Label Studio may see it; None where the project is not known.

    Two projects never share a key, so that nobody is shown by one what only the other may fetch.
    """
    if not project:
        return None
    seen_as = (server and (server.url, server.token), project, task, source)
    return hashlib.blake2b(repr(seen_as).encode(), digest_size=16).digest()
