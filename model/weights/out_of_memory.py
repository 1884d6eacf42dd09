"""Recognise out-of-memory errors of all libraries, and retry once with a model that needs less.

Importing this loads no torch.
"""

import errno
import gc
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from model.types import OutOfMemory, first_line

if TYPE_CHECKING:
    import torch

log = logging.getLogger(f"vlsam.{__name__}")

T = TypeVar("T")

# Only torch's allocators raise a class of their own, and not always. Other parts of torch and the drivers'
# libraries raise RuntimeError, recognised by its text.
_TEXT = re.compile(
    r"\bout of (device |host )?memory\b"  # CUDA, HIP, XPU and MPS; drivers; Triton
    r"|can't allocate memory|not enough memory|\bbad_?\s?alloc"  # torch and C++ on a CPU
    r"|\b(CU|HIP|ROC)(BLAS|SOLVER|SPARSE|FFT)(_STATUS)?_(ALLOC_FAILED|NOT_INITIALIZED|INSUFFICIENT_RESOURCES)"
    r"|rocblas_status_memory_error|miopenStatusAllocFailed"
    r"|CUDNN_STATUS_(\w*ALLOC\w*_FAILED|NOT_INITIALIZED)"
    r"|unable to find a valid cuDNN algorithm"  # none whose workspace has room
    r"|INTERNAL ASSERT FAILED at \S*CachingAllocator"  # the driver failed where the allocator relied on it
    r"|hipErrorOutOfMemory|cudaErrorMemoryAllocation|\w+_ERROR_OUT_OF_(DEVICE_MEMORY|HOST_MEMORY|RESOURCES)"
    r"|Invalid buffer size|kIOGPUCommandBufferCallbackErrorOutOfMemory",  # MPS
    re.IGNORECASE,
)
_OPENCV = -4  # cv2.Error.StsNoMem


def out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or its `__cause__` or `__context__`, means that memory ran out."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if _is_memory_error(error):
            return True
        error = error.__cause__ if error.__suppress_context__ else error.__cause__ or error.__context__
    return False


def _is_memory_error(error: BaseException) -> bool:
    if isinstance(error, OutOfMemory | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError):
        named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)  # torch's
        return named or _TEXT.search(str(error)) is not None
    return type(error).__module__ == "cv2" and getattr(error, "code", None) == _OPENCV


class Frugal(Protocol):
    """A model that can also work with less memory."""

    @property
    def device(self) -> "torch.device": ...

    def smaller(self) -> Self: ...


F = TypeVar("F", bound=Frugal)


def with_less_memory(
    model: F, work: Callable[[F], T], *, free: Callable[[], None] = lambda: None
) -> tuple[T, bool]:
    """Return `work(model)` and False; if memory runs out, `work(model.smaller())` and True.

    `free` releases caches on the device before the retry. Raises OutOfMemory if the retry runs out of memory,
    too. Any other error of `work` is raised without a retry.
    """
    try:
        return work(model), False
    except Exception as error:
        if not out_of_memory(error):
            raise
        log.warning("Out of memory; retrying with less: %s", first_line(error)[:200])
    import torch

    # After the except block the error and the tensors in its frames are released.
    free()
    gc.collect()
    empty_cache = getattr(getattr(torch, model.device.type, None), "empty_cache", None)  # a CPU has none
    if empty_cache is not None:
        empty_cache()
    try:
        return work(model.smaller()), True
    except Exception as error:
        if not out_of_memory(error):
            raise
        log.warning("Out of memory again, with less: %s", first_line(error)[:200])
    raise OutOfMemory("The device has too little memory for this image, even at half its size.")
