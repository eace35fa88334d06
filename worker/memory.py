"""What the C library does with memory that is not needed any more."""

from __future__ import annotations

import ctypes

# malloc.h of glibc: mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def give_back() -> None:
    """Have freed parts of files return to the system, on glibc; elsewhere nothing is done.

    By itself glibc keeps up to 64 MiB for each of several threads, and after the first large buffer
    that is freed takes the next ones from there, too: a worker of 100 MiB grew to 350 in half an
    hour of faults. A fixed threshold makes each large buffer a mapping of its own.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_ARENA_MAX, 2)
    mallopt(_MMAP_THRESHOLD, 2 * 1024 * 1024)
    mallopt(_TRIM_THRESHOLD, 16 * 1024 * 1024)  # the default would be fixed at 128 KiB, too
