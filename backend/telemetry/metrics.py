"""Count and time events. Prometheus reads the metrics at /metrics."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

MEDIA_TYPE = CONTENT_TYPE_LATEST

# Seconds, from the decoder's time for a warm click to the time after which Label Studio gives up.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)


class Metrics:
    """The metrics of one server process, in a separate registry."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        counter = partial(Counter, registry=self._registry)
        gauge = partial(Gauge, registry=self._registry)
        histogram = partial(Histogram, buckets=_BUCKETS, registry=self._registry)

        self.embedding_hits = counter(
            "vlsam_embedding_hits", "Embeddings found in the cache, by the tier that had them", ["tier"]
        )
        self.embedding_misses = counter(
            "vlsam_embedding_misses", "Embeddings not found in the cache, so that an image was encoded"
        )
        self.embedding_evictions = counter(
            "vlsam_embedding_evictions",
            "Embeddings that a tier had no room for: the device's move to the host, others are dropped",
            ["tier"],
        )
        self.embedding_bytes = gauge("vlsam_embedding_bytes", "Size of the embeddings in a tier", ["tier"])

        self.stages = histogram(
            "vlsam_stage_seconds",
            "Time of a stage: image (fetch and decode it), wait (for the models), encode, annotate, find, "
            "refine, similarity, results (masks to Label Studio's JSON)",
            ["stage"],
        )
        self.requests = histogram(
            "vlsam_request_seconds", "Time of a request, by route and status", ["route", "status"]
        )
        self.terms = counter(
            "vlsam_terms", "Objects that the model named: labelled, or dropped for want of a label", ["fate"]
        )
        self.cut_answers = counter(
            "vlsam_cut_answers",
            "Answers of the VLM cut at the token limit: objects that it would name last may be missing",
        )
        self.errors = counter("vlsam_errors", "Errors, by kind", ["kind"])
        self._queue = gauge("vlsam_queue_depth", "Jobs that wait for the models, by kind", ["kind"])
        self._inside = gauge(
            "vlsam_predictions_inside", "Predictions that wait or run; VLSAM_QUEUE is the limit"
        )
        for fate in ("labelled", "dropped"):
            self.terms.labels(fate)

    def watch_queue(self, inside: Callable[[], int], **depths: Callable[[], int]) -> None:
        """Set the functions that return the queue's figures. They are called when /metrics is read."""
        self._inside.set_function(inside)
        for kind, depth in depths.items():
            self._queue.labels(kind).set_function(depth)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record the duration of the `with` block as stage `name`, also if the block raises an error."""
        since = perf_counter()
        try:
            yield
        finally:
            self.stages.labels(name).observe(perf_counter() - since)

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus, whose media type is MEDIA_TYPE."""
        return generate_latest(self._registry)
