"""Lets a process keep the memory that it frees: a training step wants the same megabytes again and again.

By default glibc gives large blocks back to the kernel at once and gets them anew, page by page, for the next operation; with
several threads they also wait for each other at that. Keeping them is worth a tenth of the time on a small ViT.
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as in glibc's malloc.h
LARGEST = 32 << 20  # bytes of a block that may be kept: the most that glibc allows


def keep_freed_memory() -> bool:
    """Keep freed memory from now on; whether that can be had here (on glibc only). The peak of a process stays as it is."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    kept = bool(libc.mallopt(M_MMAP_THRESHOLD, LARGEST))
    return bool(libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)) and kept
