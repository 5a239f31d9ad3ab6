"""Several jobs of one sweep or search at once on this machine, in place of Hydra's own launcher, which runs one."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus, env_override
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from marble_sweep.checks import require
from marble_sweep.config import AUTO_WORKERS, Config
from marble_sweep.humanize import counted
from marble_sweep.hydra_app.private import launches_here
from marble_sweep.process import shorten_openmp_spin
from marble_sweep.sweeps.jobs import train_jobs
from marble_sweep.sweeps.workers import ONE, Workers, plan_workers

OWN_SWEEPERS = "hydra_plugins.marble_sweeper."  # what their names begin with
SEARCH = f"{OWN_SWEEPERS}smallest_sweeper.SmallestSweeper"
# Launchers beside Hydra's own whose jobs run on this machine.
JOBLIB, SUBMITIT_LOCAL = "hydra_joblib_launcher", "submitit_launcher.LocalLauncher"
OWN_CALLBACKS = {"check_and_watch"}


def require_launchable(config: DictConfig) -> None:
    """Raise CheckError where the sweep's workers cannot be what was asked for."""
    asked = str(OmegaConf.select(config, "sweep.workers", default=AUTO_WORKERS))
    if (serve := OmegaConf.select(config, "search.serve", default=None)) is not None:
        allowed = "null unless another hydra/launcher starts the sweep.workers of a search"
        require(is_search(config) and is_launched(config), "search.serve", serve, allowed)
    if asked in (AUTO_WORKERS, "1"):
        return
    allowed = f"{AUTO_WORKERS} or 1 with"
    at_once = "; joblib has hydra.launcher.n_jobs" if JOBLIB in launcher(config) else ""
    fits = launches_here(config) or is_search(config)
    require(fits, "sweep.workers", asked, f"{allowed} another launcher than Hydra's own, except in a search{at_once}")
    require(is_own_sweeper(config), "sweep.workers", asked, f"{allowed} another sweeper than grid or smallest")
    none = not other_callbacks(config)
    require(none, "sweep.workers", asked, f"{allowed} hydra.callbacks, which are called for one job after the other")


def is_launched(config: DictConfig) -> bool:
    """Whether a search's workers are the launcher's jobs. Elsewhere `auto` is a job a trial, one after the other."""
    if launches_here(config) or other_callbacks(config):
        return False
    return jobs_run_here(config) or str(config.sweep.workers) != AUTO_WORKERS


def jobs_run_here(config: DictConfig) -> bool:
    """Whether the launcher's jobs run on this machine."""
    name = launcher(config)
    return launches_here(config) or JOBLIB in name or SUBMITIT_LOCAL in name


def launcher(config: DictConfig) -> str:
    """The name of the launcher's class, in full."""
    return str(config.hydra.launcher._target_)


def is_search(config: DictConfig) -> bool:
    """Whether the sweeper is the one that searches for the smallest model."""
    return str(config.hydra.sweeper._target_) == SEARCH


def is_own_sweeper(config: DictConfig) -> bool:
    return str(config.hydra.sweeper._target_).startswith(OWN_SWEEPERS)


def other_callbacks(config: DictConfig) -> bool:
    """Whether the user has callbacks: Hydra would call them before and after every job."""
    return bool(set(config.hydra.callbacks or {}) - OWN_CALLBACKS)


def plan(config: DictConfig, jobs: Sequence[Config], noun: str, num_jobs: int, useful: int) -> Workers:
    """How many of `num_jobs` jobs, each called a `noun`, train at once, as plan_workers has it for these configs.

    Says so where they are several.
    """
    if other_callbacks(config) or not (launches_here(config) or is_search(config)):
        return ONE
    if not jobs_run_here(config):
        asked = jobs[0].sweep.workers
        return ONE if asked == AUTO_WORKERS else Workers(min(int(asked), num_jobs), None)
    workers = plan_workers(jobs, num_jobs, useful)
    if workers.number > 1:
        threads = counted(jobs[0].device.num_threads or workers.threads or 1, "CPU thread")
        tqdm.write(f"{workers.number} {noun}s at a time, {threads} each", file=sys.stderr)  # there may be a bar
    return workers


@contextlib.contextmanager
def job_environment(config: DictConfig) -> Iterator[None]:
    """What every job inherits: Hydra sets it for each one, but the first process started here hands it to all."""
    shorten_openmp_spin()
    with env_override(config.hydra.job.env_set):
        yield


def launch_side_by_side(
    overrides: Sequence[Sequence[str]], jobs: Sequence[Config], sweep_dir: Path, first_number: int, workers: Workers
) -> list[JobReturn]:
    """Train jobs, the first of them with this number, so many at once; returns what Hydra's launcher would."""
    directories = train_jobs(jobs, sweep_dir, first_number, workers.number, workers.threads)
    returned = [JobReturn(overrides=given, status=JobStatus.COMPLETED) for given in overrides]
    for job, directory in zip(returned, directories, strict=True):
        job.return_value = None if directory is None else str(directory)
    return returned
