"""Out of memory, as torch says it on a GPU and on a CPU."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from backend.answers.ml_backend import VLSAMBackend
from backend.answers.resources import Resources
from backend.runtime.retrying_model import RetryingModel
from backend.telemetry.metrics import Metrics
from model.types import Detection, Image, OutOfMemory
from tests.support.detections import detection, disc
from tests.support.images import data_url
from tests.support.labeling_configs import CONFIG
from tests.support.stand_in import StandIn

GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee documentation ...")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: ...")


class Tight(StandIn):
    """Has no memory, until it is to take less; or not even then."""

    error: Exception = GPU
    hopeless = False
    tight = True

    def smaller(self) -> "Tight":
        other = type(self)(self.found, order=self.order, encoded=self.encoded)
        other.error, other.hopeless, other.tight = self.error, self.hopeless, self.hopeless
        self.order.append("smaller")
        return other

    def annotate(self, image: Image, **options: object) -> list[Detection]:
        if self.tight:
            raise self.error
        return super().annotate(image, **options)  # type: ignore[arg-type]


@pytest.fixture
def tight() -> Tight:
    return Tight([detection("cat", disc(20, 30, 12))])


def annotate(model: StandIn) -> list[Detection]:
    return model.annotate(np.zeros((60, 80, 3), np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("error", [GPU, CPU, MemoryError()])
def test_f4_what_has_too_little_memory_frees_it_and_is_tried_smaller(tight: Tight, error: Exception) -> None:
    freed, tight.error, metrics = list[int](), error, Metrics()
    model = RetryingModel(tight, metrics, lambda: freed.append(1))
    assert model.run("annotate", annotate) == tight.found
    assert freed == [1]
    assert tight.order == ["smaller", "batch"]
    assert 'vlsam_errors_total{kind="OutOfMemory"} 1.0' in metrics.text().decode()


@pytest.mark.slow
def test_f4_once(tight: Tight) -> None:
    tight.hopeless = True
    with pytest.raises(OutOfMemory, match="too little memory"):
        RetryingModel(tight, Metrics(), lambda: None).run("annotate", annotate)
    assert tight.order == ["smaller"]


def test_f4_other_errors_are_not_tried_again(tight: Tight) -> None:
    tight.error = RuntimeError("a defect")
    with pytest.raises(RuntimeError, match="a defect"):
        RetryingModel(tight, Metrics(), lambda: None).run("annotate", annotate)
    assert tight.order == []


@pytest.mark.slow
def test_f4_a_task_without_memory_is_empty_and_the_next_is_not(
    make_resources: Callable[..., Resources], caplog: pytest.LogCaptureFixture, tight: Tight
) -> None:
    tight.hopeless = True
    resources = make_resources(lambda: tight)
    task = {"id": 1, "data": {"image": data_url()}}
    assert VLSAMBackend(CONFIG, resources=resources).predict([task]) == [{}]
    assert "too little memory for this image" in caplog.text
    assert resources.readiness()["device"] == "ok"
    tight.tight = False
    (prediction,) = VLSAMBackend(CONFIG, resources=resources).predict([task])
    assert prediction["result"]
