"""Run the stages of a model: time each, and retry it once with less memory."""

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
    """A model whose stages are retried if memory runs out. `free` releases device memory before a retry."""

    model: M
    metrics: Metrics
    free: Callable[[], None]

    @property
    def device(self) -> torch.device:
        return self.model.device

    def run(self, stage: str, work: Callable[[M], T]) -> T:
        """Return the result of `work` for the model, or for its `smaller` one if memory runs out.

        The time counts for `stage` in /metrics. Do not nest stages. Raises OutOfMemory if both run out.
        """

        def free() -> None:
            self.metrics.errors.labels("OutOfMemory").inc()
            self.free()

        with self.metrics.stage(stage):
            result, _ = with_less_memory(self.model, work, free=free)
        return result

    def computes(self) -> bool:
        """Return whether the device computes correctly. Raises what the device raises."""
        return bool((torch.ones(8, device=self.device) * 2).sum().item() == 16)
