"""What a server counts, for Prometheus: the names and meanings of /metrics."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

MEDIA_TYPE = CONTENT_TYPE_LATEST

# Seconds. From a warm click's decoder to what Label Studio waits for at most.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)


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

        self.stages = Histogram(
            "vlsam_stage_seconds",
            "Time of a step: image (fetch and decode it), wait (for the models), encode, annotate, find, "
            "refine, results (masks to Label Studio's JSON)",
            ["stage"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self.requests = Histogram(
            "vlsam_request_seconds",
            "Time of a whole request, by what it asked for and the status of its answer",
            ["route", "status"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self.terms = Counter(
            "vlsam_terms",
            "Objects that the model named, by what became of them: labelled, or dropped for want of a label",
            ["fate"],
            registry=self._registry,
        )
        self.cut_answers = Counter(
            "vlsam_cut_answers",
            "Answers of the VLM that came to their most tokens before their end: what they named last may be "
            "missing",
            registry=self._registry,
        )
        self.errors = Counter("vlsam_errors", "What went wrong, by kind", ["kind"], registry=self._registry)
        self._queue = Gauge(
            "vlsam_queue_depth", "Jobs that wait for the models, by kind", ["kind"], registry=self._registry
        )
        self._inside = Gauge(
            "vlsam_predictions_inside",
            "Predictions that wait or run; VLSAM_QUEUE is the most",
            registry=self._registry,
        )
        for fate in ("labelled", "dropped"):
            self.terms.labels(fate)

    def watch_queue(self, inside: Callable[[], int], **depths: Callable[[], int]) -> None:
        """Has a queue's figures read when /metrics is."""
        self._inside.set_function(inside)
        for kind, depth in depths.items():
            self._queue.labels(kind).set_function(depth)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time of what is done inside, whether it succeeds or not."""
        since = perf_counter()
        try:
            yield
        finally:
            self.stages.labels(name).observe(perf_counter() - since)

    def text(self) -> bytes:
        """All figures in Prometheus' text format, MEDIA_TYPE."""
        return generate_latest(self._registry)
