"""Memory that was freed, given back to the system."""

import ctypes

EVERY = 20  # images, or other jobs of the models, between two calls
_M_ARENA_MAX = -8  # of glibc's malloc.h


def trim() -> None:
    """Give free pages back, where the C library can (glibc); takes about 10 ms, in any thread.

    glibc keeps them by itself: tensors of ever other sizes leave holes that the next ones do not fit, and a
    process grows though what it uses does not.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def share() -> None:
    """Let threads that begin from now on share one heap (glibc), so that one has holes and not each.

    For few threads with large pieces: they wait for each other.
    """
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
