"""The C library's memory allocator, set up for programs that train on a CPU."""

import ctypes
import os

MALLOPT = {-1: 2**31 - 1, -2: 300_000_000, -4: 0, -8: 1}
"""glibc's M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX and M_ARENA_MAX, see mallopt(3).

Freed memory stays in the process, the heap grows by 300 MB at a time, and no buffer has a mapping of its own. There is
one arena, because the others map buffers above 64 MB whatever M_MMAP_MAX is.
"""


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for later allocations of this process.

    By default glibc returns large buffers to the kernel when they are freed, so every training step on a CPU faults
    all its pages in again. Call this at the start of a program, before large allocations. A library must not call it,
    because the allocator belongs to the whole process. It does nothing with another C library or another system, or if
    an environment variable already sets up the allocator.
    """
    is_set_up = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 (musl has a mallopt that does nothing, macOS and Windows have none)
    except (AttributeError, OSError, TypeError):
        return
    for option, value in {} if is_set_up else MALLOPT.items():
        libc.mallopt(option, value)
