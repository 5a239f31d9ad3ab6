"""What the command line does to the memory of its processes."""

import platform
import subprocess
import sys

import pytest

# Page faults of making the same tensor of 64 MiB again, in a process of its own: malloc's settings last.
FAULTS = """
import resource, sys
import torch
from marble_sweep.process import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(40):  # where aligned blocks leave gaps, it takes a dozen to settle
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


def faults(how: str) -> int:
    command = [sys.executable, "-c", FAULTS, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_memory_that_was_freed_is_used_again_without_page_faults() -> None:
    assert faults("plain") > 1000, "the test would see them"
    assert faults("kept") < 100
