"""Control how the C library, glibc, uses memory."""

import ctypes

EVERY = 20  # jobs of the models between two calls of `trim`
_M_ARENA_MAX = -8  # of glibc's malloc.h


def trim() -> None:
    """Return unused memory to the operating system, in 10 ms. Do nothing without glibc.

    Tensors of varying sizes fragment the heap. Without this, the process grows although its use does not.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def share() -> None:
    """Make all threads that start later use one heap. Use it for few threads.

    It saves memory, but threads wait for each other when they allocate.
    """
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
