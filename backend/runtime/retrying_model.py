"""Run the stages of a model, measure their times, and retry a stage when memory runs out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from backend.telemetry.metrics import Metrics
from model.weights.out_of_memory import Frugal, with_less_memory

M = TypeVar("M", bound=Frugal)
T = TypeVar("T")


@dataclass(frozen=True)
class RetryingModel(Generic[M]):
    """A model whose stages are retried if memory runs out. Before a retry, `free` releases device memory."""

    model: M
    metrics: Metrics
    free: Callable[[], None]

    @property
    def device(self) -> torch.device:
        return self.model.device

    def run(self, stage: str, work: Callable[[M], T]) -> T:
        """Return `work(model)`; if memory runs out, return `work(model.smaller())`.

        The time is recorded for `stage` in /metrics. A stage must not run another. Raises OutOfMemory if the
        retry fails, too.
        """

        def free() -> None:
            self.metrics.errors.labels("OutOfMemory").inc()
            self.free()

        with self.metrics.stage(stage):
            result, _ = with_less_memory(self.model, work, free=free)
        return result

    def computes(self) -> bool:
        """Return whether the device computes correctly. Raises the errors of the device."""
        return bool((torch.ones(8, device=self.device) * 2).sum().item() == 16)
