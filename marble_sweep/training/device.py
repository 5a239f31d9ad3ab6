"""Which device a run is on, and what that device lacks."""

import ctypes
import sys

import torch

from marble_sweep.config import DeviceConfig, require
from marble_sweep.training.precision import PrecisionPolicy

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
NEVER_TRIM = 2**31 - 1


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next step, for the whole process.

    By default it gives large blocks back to the system and takes them anew, a page fault every 4 KiB: as
    long as the arithmetic on them. Does nothing where there is no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER_TRIM)


def available_devices() -> list[str]:
    """The device types here, the preferred first."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name, is_here in here.items() if is_here]


def choose_device(config: DeviceConfig, policy: PrecisionPolicy) -> torch.device:
    """The torch device that config asks for, its thread count and the CPU's memory handling set.

    Raises ValueError where the device is not there or cannot run the precision policy.
    """
    here = available_devices()
    kind = here[0] if config.type == "auto" else config.type
    require(kind in here, "device.type", kind, f"auto or one that is there: {', '.join(here)}")
    if policy.compute_dtype != policy.param_dtype:
        autocasts = torch.amp.is_autocast_available(kind)
        require(autocasts, "precision", "mixed", f"another policy on {kind}, which has no autocast")
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    if kind == "cpu":
        keep_freed_memory()
    return torch.device(kind)
