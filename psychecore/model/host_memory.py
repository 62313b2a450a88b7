"""Freed memory is kept for the next tensor, where the C library would give it back to the system.

glibc hands back what is freed at the end of its heap, and maps large blocks one by one; on CPU the next tensor then
pays a page fault for every 4 KiB, some 3 to 5 us each on a virtual machine. A GRPO update of SmolLM2 (4 x 8 samples of
128 tokens, 350,000 faults) took 8.6 s so and takes 7.3 with memory kept, at the same peak.
"""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_MMAP_THRESHOLD = 32 << 20  # glibc takes no larger one; blocks beyond still go back as soon as they are freed
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")


def keep_freed_memory() -> bool:
    """Tell this process's malloc to keep what is freed; whether it was told.

    It isn't where the user has set malloc by the environment (man mallopt), or where the C library has no such switch.
    """
    if any(name in os.environ for name in SETTINGS) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    # -1: never
    return bool(mallopt(M_TRIM_THRESHOLD, -1) and mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD))
