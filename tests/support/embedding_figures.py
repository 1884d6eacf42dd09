"""Read the metrics of the embedding cache."""

from prometheus_client.parser import text_string_to_metric_families

from backend.telemetry.metrics import Metrics


def figures(metrics: Metrics) -> dict[str, float]:
    """Return the figures as Prometheus reads them; hits{tier="host"} is named `hits host`."""
    return {
        " ".join(
            [sample.name.removeprefix("vlsam_embedding_").removesuffix("_total"), *sample.labels.values()]
        ): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if sample.name.startswith("vlsam_embedding_") and not sample.name.endswith("_created")
    }
