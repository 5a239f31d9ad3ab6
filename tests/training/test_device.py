"""What the CPU device does to the process's memory."""

import platform
import subprocess
import sys

import pytest

# Page faults of making the same tensor of 64 MiB again, in a process of its own: malloc's settings last.
FAULTS = """
import resource, sys
import torch
from marble_sweep.config import DeviceConfig
from marble_sweep.training.device import choose_device
from marble_sweep.training.precision import POLICIES
if sys.argv[1] == "chosen":
    choose_device(DeviceConfig(type="cpu"), POLICIES["fp32"])
for _ in range(10):  # where aligned blocks leave gaps, it takes some to settle
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


def faults(how: str) -> int:
    command = [sys.executable, "-c", FAULTS, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_memory_that_was_freed_is_used_again_without_page_faults():
    assert faults("plain") > 1000, "the test would see them"
    assert faults("chosen") < 100
