"""What measurements ask of this machine; the rest is the engine's: caches, allowed_memory."""

import contextlib
import ctypes


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed for the next result, as allocators of servers do.

    By default a large result is given back to the system and its pages are zeroed anew for each
    call, which takes longer than to normalize them: whoever is timed.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        never = -1  # 2 GB, the most that there is, are less than a heap of large tensors holds
        for parameter, value in ((mmap_max, 0), (trim_threshold, never), (top_pad, 1 << 26)):
            mallopt(parameter, value)
