"""Every test runs on one thread, or as many as OMP_NUM_THREADS says, and with a cache of its own."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from marble_sweep.process import shorten_openmp_spin

# Several tests at once, each with several threads that wait for each other at full speed, would take an hour.
shorten_openmp_spin()  # before torch is loaded, as the command line does
import torch  # noqa: E402

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# Tests share the machine, and tiny tensors gain nothing from more than one; `make test-matrix` tries others. What torch
# makes of the variable here, no more threads than there are cores, it makes of it in the processes that tests start.
GIVEN = os.environ.get("OMP_NUM_THREADS")


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    if GIVEN is None:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARBLE_SWEEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", GIVEN or "1")  # for the processes that tests start
        yield
