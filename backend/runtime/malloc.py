"""Give freed memory back to the system (glibc)."""

import ctypes

EVERY = 20  # jobs of the models between two calls of `trim`
_M_ARENA_MAX = -8  # of glibc's malloc.h


def trim() -> None:
    """Give free pages back to the system (10 ms): tensors of varying sizes fragment the heap. Needs glibc."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def share() -> None:
    """Let threads that start from now on share one heap; they wait for each other, so use it for few."""
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
