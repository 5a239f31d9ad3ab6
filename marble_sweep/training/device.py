"""Which device a run is on, and what that device lacks."""

import contextlib
from collections.abc import Iterator

import torch

from marble_sweep.checks import require
from marble_sweep.groups import DeviceConfig
from marble_sweep.training.precision import PrecisionPolicy


def available_devices() -> list[str]:
    """The device types here, the preferred first."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name, is_here in here.items() if is_here]


def choose_device(config: DeviceConfig, policy: PrecisionPolicy) -> torch.device:
    """The torch device that config asks for.

    Raises ValueError where the device is not there or cannot run the precision policy.
    """
    here = available_devices()
    kind = here[0] if config.type == "auto" else config.type
    require(kind in here, "device.type", kind, f"auto or one that is there: {', '.join(here)}")
    if policy.compute_dtype != policy.param_dtype:
        autocasts = torch.amp.is_autocast_available(kind)
        require(autocasts, "precision", "mixed", f"another policy on {kind}, which has no autocast")
    return torch.device(kind)


@contextlib.contextmanager
def cpu_threads(config: DeviceConfig) -> Iterator[None]:
    """Have torch use the CPU threads that config asks for, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(config.num_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
