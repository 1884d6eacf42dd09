"""What a server counts, for Prometheus: the names and meanings of /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

MEDIA_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The figures of one engine, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.embedding_hits = Counter(
            "vlsam_embedding_hits",
            "Embeddings that were asked for and kept, by the tier that had them",
            ["tier"],
            registry=self._registry,
        )
        self.embedding_misses = Counter(
            "vlsam_embedding_misses",
            "Embeddings that were not kept, so that an image was encoded",
            registry=self._registry,
        )
        self.embedding_evictions = Counter(
            "vlsam_embedding_evictions",
            "Embeddings that left a tier for want of room: the device's for the host's, the others for good",
            ["tier"],
            registry=self._registry,
        )
        self.embedding_bytes = Gauge(
            "vlsam_embedding_bytes", "Size of the embeddings in a tier", ["tier"], registry=self._registry
        )

    def text(self) -> bytes:
        """All figures in Prometheus' text format, MEDIA_TYPE."""
        return generate_latest(self._registry)
