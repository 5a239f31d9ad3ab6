"""Which device a run is on, and what that device lacks."""

import torch

from marble_sweep.config import DeviceConfig, require
from marble_sweep.training.precision import Policy


def available_devices() -> list[str]:
    """The device types here, the preferred first."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name, is_here in here.items() if is_here]


def choose_device(config: DeviceConfig, policy: Policy) -> torch.device:
    """The torch device that config asks for, its thread count set.

    Raises ValueError where the device is not there or cannot run the precision policy.
    """
    here = available_devices()
    kind = here[0] if config.type == "auto" else config.type
    require(kind in here, "device.type", kind, f"auto or one that is there: {', '.join(here)}")
    if policy.compute != policy.weights:
        autocasts = torch.amp.is_autocast_available(kind)
        require(autocasts, "precision", "mixed", f"another policy on {kind}, which has no autocast")
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    return torch.device(kind)
