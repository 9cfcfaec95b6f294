"""How freed memory goes back to the system, where the C library is glibc."""

from __future__ import annotations

import ctypes
import sys

M_MMAP_THRESHOLD = -3  # as in malloc.h of glibc
LARGE_BYTES = 2**20


def give_large_blocks_back() -> None:
    """Let this process give every block of memory above LARGE_BYTES back to the system as soon as it is freed.

    By itself, glibc raises that limit to the largest block it has seen freed, up to 32 MiB, and keeps what is freed
    below it. With windows read in one thread and predicted in another, what it keeps falls to pieces that fit nothing,
    and a process grows with the time it runs.
    """
    _call("mallopt", M_MMAP_THRESHOLD, LARGE_BYTES)


def give_back() -> None:
    """Give memory that is free back to the system, once, and change nothing else; see above."""
    _call("malloc_trim", 0)


def _call(name: str, *numbers: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*numbers)
