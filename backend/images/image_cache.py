"""Cache the content hash of each image address for ten minutes.

A click on a recently loaded image then needs only the embedding. Pixels are not kept.
"""

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from cachetools import TTLCache

from backend.images.studio_urls import Server
from backend.runtime.single_flight import SingleFlight
from model.deadline import Deadline
from model.types import Image

SECONDS = 600.0  # the file may be replaced, and the right to see it withdrawn
MAX_ENTRIES = 10_000


def image_hash(image: Image) -> str:
    """Return a hash of the size and pixels of an image, uint8 (H, W, 3), as 32 hex digits."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class CachedImage:
    """The content hash and size of the image at an address."""

    content: str  # image_hash
    size: tuple[int, int]  # H, W


class ImageCache:
    """Cache of image hashes and sizes by `cache_key`. Entries expire after SECONDS. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, entries: int = MAX_ENTRIES) -> None:
        self._lock = threading.Lock()
        self._cached: TTLCache[bytes, CachedImage] = TTLCache(entries, SECONDS, clock)
        self._loading: SingleFlight[tuple[Image, CachedImage]] = SingleFlight()

    def find(self, key: bytes | None) -> CachedImage | None:
        """Return the hash and size cached under `key`; None if there are none or `key` is None."""
        with self._lock:
            return None if key is None else self._cached.get(key)

    def load(
        self, key: bytes | None, load: Callable[[], Image], deadline: Deadline
    ) -> tuple[Image, CachedImage]:
        """Load an image, and cache its hash and size. Concurrent calls with one `key` share one load.

        If `key` is None, nothing is shared or cached. Raises TimeoutError, and what `load` raises.
        """

        def identified() -> tuple[Image, CachedImage]:
            image = load()
            return image, CachedImage(image_hash(image), (image.shape[0], image.shape[1]))

        if key is None:
            return identified()
        image, cached = self._loading.flight(key).run(identified, deadline)
        with self._lock:
            self._cached[key] = cached
        return image, cached


def cache_key(server: Server | None, project: str, task: object, source: str) -> bytes | None:
    """Return the cache key of an image address; None if `project` is empty. Projects share no keys."""
    if not project:
        return None
    # One project may be allowed to fetch an image that another may not.
    seen_as = (server and (server.url, server.token), project, task, source)
    return hashlib.blake2b(repr(seen_as).encode(), digest_size=16).digest()
