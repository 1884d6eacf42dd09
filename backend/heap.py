"""Memory that was freed, given back to the system."""

import ctypes

EVERY = 20  # images, or other jobs of the models, between two calls


def trim() -> None:
    """Give free pages back, where the C library can (glibc); takes about 10 ms, in any thread.

    glibc keeps them by itself: tensors of ever other sizes leave holes that the next ones do not fit, and a
    process grows though what it uses does not.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
