"""Which device a run is on, and what that device lacks."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from marble_sweep.checks import require
from marble_sweep.groups import MAX_THREADS, DeviceConfig
from marble_sweep.training.precision import PrecisionPolicy


def available_devices() -> list[str]:
    """The device types here, the preferred first."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name, is_here in here.items() if is_here]


def device_type(config: DeviceConfig) -> str:
    """The device type that config asks for, whether it is there or not."""
    return available_devices()[0] if config.type == "auto" else config.type


def choose_device(config: DeviceConfig, policy: PrecisionPolicy) -> torch.device:
    """The torch device that config asks for.

    Raises ValueError where the device is not there or cannot run the precision policy.
    """
    here = available_devices()
    kind = device_type(config)
    require(kind in here, "device.type", kind, f"auto or one that is there: {', '.join(here)}")
    if policy.compute_dtype != policy.param_dtype:
        autocasts = torch.amp.is_autocast_available(kind)
        require(autocasts, "precision", "mixed", f"another policy on {kind}, which has no autocast")
    return torch.device(kind)


def recorded_threads(metadata: Mapping[str, Any]) -> int | None:
    """The CPU threads that a run was begun with; None where its metadata does not say."""
    machine = metadata.get("machine")
    number = machine.get("num_threads") if isinstance(machine, dict) else None
    return number if isinstance(number, int) and 1 <= number <= MAX_THREADS else None


@contextlib.contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Have torch use so many CPU threads, where a number is given, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
