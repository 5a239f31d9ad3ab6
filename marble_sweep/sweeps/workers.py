"""How many jobs this machine trains at the same time, and with how many CPU threads each.

A step of a small model does not keep several threads busy: they wait for each other. As many jobs with one thread
each train more steps in total (docs/performance.md), so `sweep.workers=auto` is one job a core, as far as the memory
and the number of jobs allow. A GPU trains one job at a time.
"""

import multiprocessing
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from marble_sweep.config import AUTO_WORKERS, Config
from marble_sweep.sweeps.jobs import start

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
# What a job takes at its peak: so many times the least that it must take, and a process. In the peaks that
# docs/performance.md has, the smallest model's is 400 MiB and the others take 2.5 to 3.7 times their least beyond it.
PEAK_FACTOR = 4
PROCESS_BYTES = 400 * 2**20


@dataclass(frozen=True)
class Workers:
    """How jobs share the machine."""

    number: int  # of jobs at the same time
    threads: int | None  # of the CPU, for each; None leaves them to the job's config and to torch


ONE = Workers(1, None)


def plan_workers(configs: Sequence[Config], num_jobs: int, useful: int) -> Workers:
    """What `sweep.workers` asks for, for so many jobs with these configs; `auto` is at most `useful`."""
    asked, cores = configs[0].sweep.workers, usable_cores()
    if asked != AUTO_WORKERS:
        return share(cores, min(int(asked), num_jobs))
    if any(config.certify.min_steps_per_minute is not None for config in configs):
        return ONE  # a run's speed decides, and that is what it has alone
    most = min(cores // threads_given(configs), num_jobs, useful)
    return share(cores, min(most, room(configs))) if most > 1 else ONE


def share(cores: int, number: int) -> Workers:
    """Share the cores evenly. OMP_NUM_THREADS limits the threads of each, as it does for a single job."""
    if number == 1:
        return ONE
    limit = os.environ.get("OMP_NUM_THREADS", "")
    threads = max(1, cores // number)
    return Workers(number, max(1, min(threads, int(limit))) if limit.isdecimal() else threads)


def room(configs: Sequence[Config]) -> int:
    """How many of these jobs the machine has room for: 1 on a GPU, and where no process can be started to find out."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=send_room, args=(distinct(configs), theirs))
    try:
        start(process)
        theirs.close()
        return int(ours.recv())
    except (OSError, EOFError):
        return 1  # the first job meets the reason too, and says it
    finally:
        ours.close()


def distinct(configs: Iterable[Config]) -> list[Config]:
    """Those among them that may take different amounts of memory."""
    parts = ("model", "precision", "device", "trainer", "data")
    by_parts = {repr([config.optimizer.name, *(getattr(config, part) for part in parts)]): config for config in configs}
    return list(by_parts.values())


def send_room(configs: Sequence[Config], parent: Connection) -> None:
    """In a process of its own, because it loads torch, as the jobs' processes do."""
    import torch

    from marble_sweep.training.device import device_type
    from marble_sweep.training.memory import available_here, corpus_bytes, training_bytes

    cpu = torch.device("cpu")
    devices = {device_type(config.device) for config in configs}
    least = max(sum(training_bytes(config, cpu).values()) + corpus_bytes(config) for config in configs)
    parent.send(jobs_that_fit(devices, least, available_here()))


def jobs_that_fit(devices: set[str], least_bytes: int, available_bytes: int | None) -> int:
    """How many jobs fit on this machine at once, at least 1.

    `least_bytes` is a lower bound of what training takes in the largest job.
    """
    if devices != {"cpu"} or available_bytes is None:
        return 1
    return max(1, available_bytes // (PROCESS_BYTES + PEAK_FACTOR * least_bytes))


def threads_given(configs: Iterable[Config]) -> int:
    """The most CPU threads that a config gives a job; 1 where none does."""
    return max(config.device.num_threads or 1 for config in configs)


def usable_cores() -> int:
    """The cores that this process may use, within its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # there is none, or it is "max"
        return cores
