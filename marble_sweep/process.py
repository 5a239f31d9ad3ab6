"""What the command line changes in its own processes, and a call from Python never does."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
NEVER_TRIM = 2**31 - 1
SPIN_COUNT = "10000"


def shorten_openmp_spin() -> None:
    """Have OpenMP's threads spin less while they wait for each other; to be called before torch is loaded.

    They spin for milliseconds by default. On a machine that does anything else besides, a small model then trains
    twenty times slower; a shorter spin costs little where it does not (docs/LOG.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next step.

    By default it gives large blocks back to the system and takes them anew, a page fault every 4 KiB: as
    long as the arithmetic on them. Does nothing where there is no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER_TRIM)
