"""Out of memory as each library says it: the texts are from their sources and from people's reports."""

import errno
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch

from model.types import AttentionError, ModelLoadError, OutOfMemory
from model.weights.out_of_memory import out_of_memory, with_less_memory

GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee documentation ...")
SAID = [
    GPU,
    torch.OutOfMemoryError(
        "HIP out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ..."
    ),
    torch.OutOfMemoryError(
        "XPU out of memory. Tried to allocate 59.61 GiB. GPU 0 has a total capacity of ..."
    ),
    torch.OutOfMemoryError("Allocation on device"),
    torch.AcceleratorError(
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported ..."
    ),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("cuda runtime error (2) : out of memory at /pytorch/aten/src/THC/THCGeneral.cpp:50"),
    RuntimeError("HIP error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    RuntimeError(
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/CUDACachingAllocator.cpp":1154, '
        "please report a bug to PyTorch."
    ),
    RuntimeError('!handles_.at(i) INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":430'),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.21 GiB, max allowed: 20.13 GiB)"),
    RuntimeError("Invalid buffer size: 24.00 GiB"),
    RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    RuntimeError("Native API failed. Native API returns: -5 (PI_ERROR_OUT_OF_RESOURCES)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: ..."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: not enough memory: you ..."),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    OutOfMemory("The device has too little memory."),
]
OTHERS = [
    RuntimeError("a defect"),
    RuntimeError("CUDA error: device-side assert triggered"),
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    RuntimeError('false INTERNAL ASSERT FAILED at "../aten/src/ATen/native/Convolution.cpp":7'),
    ValueError("out of memory"),  # a text alone, as of a model or a person
    AttentionError("no token spells characters 3 to 9 of the answer"),
    OSError(errno.ENOENT, "No such file or directory"),
]


@pytest.mark.parametrize("error", SAID, ids=lambda error: str(error)[:40])
def test_f4_memory_that_ran_out_is_known(error: Exception) -> None:
    assert out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: str(error)[:40])
def test_f4_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not out_of_memory(error)


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(10**16, dtype=torch.uint8),
        lambda: np.empty(10**16, np.uint8),
        lambda: cv2.resize(np.zeros((9, 9, 3), np.uint8), (300_000, 900_000)),
    ],
    ids=["torch", "numpy", "OpenCV"],
)
def test_f4_as_the_libraries_say_it_here(allocate: Callable[[], object]) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011  # each has its own
        allocate()
    assert out_of_memory(raised.value)


def test_f4_an_opencv_error_of_another_kind_is_none() -> None:
    with pytest.raises(cv2.error) as raised:
        cv2.resize(np.zeros((0, 0, 3), np.uint8), (2, 2))
    assert not out_of_memory(raised.value)


def wrapped(how: str) -> Exception:
    try:
        try:
            raise GPU
        except RuntimeError as error:
            if how == "cause":
                raise ModelLoadError("the image cannot be processed") from error
            if how == "context":
                raise KeyError("pixel_values")  # noqa: B904
            raise ValueError("another matter") from None
    except Exception as error:
        return error


def test_f4_an_error_because_of_it_is_known_by_its_cause() -> None:
    assert out_of_memory(wrapped("cause"))
    assert out_of_memory(wrapped("context"))
    assert not out_of_memory(wrapped("none"))
    circular = ValueError("a")
    circular.__cause__, circular.__suppress_context__ = circular, True
    assert not out_of_memory(circular)


class Model:
    """Has no memory for `needs` of 2 or more."""

    def __init__(self, needs: int, device: str = "cpu", error: Exception = GPU) -> None:
        self.needs, self.device, self.error = needs, torch.device(device), error
        self.tries = [needs]

    def work(self) -> str:
        if self.needs > 1:
            raise self.error
        return f"done with {self.needs}"

    def smaller(self) -> "Model":
        other = Model(self.needs // 2, self.device.type, self.error)
        other.tries = self.tries
        self.tries.append(other.needs)
        return other


@pytest.mark.parametrize(("needs", "done"), [(1, ("done with 1", False)), (2, ("done with 1", True))])
def test_f4_it_is_tried_again_with_less_and_said(needs: int, done: tuple[str, bool]) -> None:
    freed: list[int] = []
    assert with_less_memory(Model(needs), Model.work, free=lambda: freed.append(1)) == done
    assert len(freed) == done[1]


def test_f4_once() -> None:
    model = Model(4)
    with pytest.raises(OutOfMemory, match="too little memory for this image"):
        with_less_memory(model, Model.work)
    assert model.tries == [4, 2]


def test_f4_another_error_is_raised_at_once() -> None:
    model = Model(2, error=RuntimeError("a defect"))
    with pytest.raises(RuntimeError, match="a defect"):
        with_less_memory(model, Model.work)
    assert model.tries == [2]


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cuda", "mps", "xpu"])
def test_f4_a_devices_cache_is_emptied_before_the_second_try(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(2, device)
    monkeypatch.setattr(getattr(torch, device), "empty_cache", lambda: model.tries.append(0))
    assert with_less_memory(model, Model.work) == ("done with 1", True)
    assert model.tries == [2, 0, 1]
