"""What Hydra calls before and after: configs are checked before anything starts, sweeps are watched."""

import contextlib
import shlex
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import BaseFileLock
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, read_write
from omegaconf.errors import OmegaConfBaseException

from marble_sweep import config as schema
from marble_sweep.checks import CheckError, require
from marble_sweep.commands import literal, override
from marble_sweep.hydra_app.composer import Composer, without_hydra
from marble_sweep.hydra_app.errors import EXIT_FAILED, EXIT_INTERRUPTED, one_line
from marble_sweep.hydra_app.grid import grid_jobs
from marble_sweep.hydra_app.private import BASIC_SWEEPER, leaving_hydra
from marble_sweep.hydra_app.rerun import as_written, rerun_command
from marble_sweep.hydra_app.side_by_side import is_search, require_launchable
from marble_sweep.hydra_app.sweep_length import require_few
from marble_sweep.record.disk import sweep_line
from marble_sweep.runs import layout
from marble_sweep.runs.files import lock_directory, user_path
from marble_sweep.runs.status import ENDED, RunStatus, latest, mark_start, read_metadata
from marble_sweep.terminal import warning_on_error

if TYPE_CHECKING:
    from marble_sweep.sweeps.watch import SweepWatch

OF_SWEEPS = ("hydra/sweeper", "hydra/launcher", "hydra.sweeper", "hydra.launcher", "hydra.sweep", "sweep", "search")
GRIDS = ("hydra_plugins.marble_sweeper.grid_sweeper.GridSweeper", BASIC_SWEEPER)


class CheckAndWatch(Callback):
    """Checks every config, of a run or of all jobs of a sweep, before anything starts; watches sweeps."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        with leaving_hydra():
            require_multirun(config)
            require_own_directories(config)
            run_config = schema.resolve(without_hydra(config))
            require(run_config.resume != "", "resume", "''", "a run directory, one with a config.yaml")
            fix_directory(config, "run")
            if run_config.resume is None:
                return
            others = [
                argument for argument in as_written(config.hydra.overrides.task) if not argument.startswith("resume=")
            ]
            alone = f"alone: the run's own config is used (drop {', '.join(others)})"
            require(not others, "resume", run_config.resume, alone)
            is_run = (user_path(run_config.resume) / layout.CONFIG).is_file()
            require(is_run, "resume", run_config.resume, "a run directory, one with a config.yaml")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        with leaving_hydra():
            require_own_directories(config)
            require_meant_for(config)
            require_launchable(config)
            fix_directory(config, "sweep")
            if not is_search(config):  # a search checks its trials, locks its directory and concludes by itself
                _started.get().append(start_sweep(config))


@dataclass
class Sweep:
    """The sweep that this process runs."""

    directory: Path
    jobs: list[schema.Config]  # none where the sweeper decides as it goes
    rerun: str  # the command that runs what is missing or failed
    lock: BaseFileLock
    watch: "SweepWatch"

    def conclude(self, *, interrupted: bool) -> int:
        """Say how the jobs ended and what to do about those that did not; returns the exit code.

        The run directories alone decide the code: whatever fails here afterwards, it holds.
        """
        configs = {schema.dump(job) for job in self.jobs}
        runs = latest(self.directory, configs or None)
        statuses = {path: read_metadata(path).get("status") for path in runs}
        ended = [status for status in statuses.values() if status in ENDED]
        failed = [path for path, status in statuses.items() if status == RunStatus.FAILED]
        missing = max(0, len(configs) - len(ended))
        counts = {name: ended.count(name) for name in ENDED} | {"to do": missing}
        with contextlib.suppress(OSError):  # nobody may be reading any more
            with warning_on_error(f"the comparison in {self.directory}"):
                self.watch.stop()
            print(", ".join(f"{number} {name}" for name, number in counts.items() if number), file=sys.stderr)
            if failed or missing:
                names = ", ".join(path.name for path in failed)
                todo = " and ".join([f"failed ({names})"] * bool(failed) + ["to do"] * bool(missing))
                print(f"To run what is {todo}:\n  {self.rerun}", file=sys.stderr)
            written = [self.directory / name for name in (layout.SUMMARY, layout.PAGE)]
            if all(path.exists() for path in written):
                print(f"Compared in {written[0]} and {written[1]}", file=sys.stderr)
        self.lock.release()
        # A job that did not end in a sweep that did has failed too, though it could not record that: on a full disk.
        if failed or (missing and not interrupted):
            return EXIT_FAILED
        return EXIT_INTERRUPTED if missing else 0


_started: ContextVar[list[Sweep]] = ContextVar("sweeps")


@contextlib.contextmanager
def started_sweeps() -> Iterator[list[Sweep]]:
    """A list that takes the sweep which the callback starts meanwhile: Hydra makes the callback, and keeps it."""
    sweeps: list[Sweep] = []
    token = _started.set(sweeps)
    try:
        yield sweeps
    finally:
        _started.reset(token)


def require_multirun(config: DictConfig) -> None:
    """Raises CheckError where one run is about to start and the command line speaks of a sweep."""
    for key, value in given_below(config, *OF_SWEEPS):
        require(False, key, value, "given with --multirun: without it one run is trained")


def require_meant_for(config: DictConfig) -> None:
    """Raises CheckError where the command line of a sweep gives what this sweep would ignore."""
    for key, value in given_below(config, "hydra.run"):
        require(False, key, value, "left out with --multirun; the directory of a sweep is hydra.sweep.dir")
    for key, value in given_below(config, "search"):
        require(is_search(config), key, value, "given with hydra/sweeper=smallest, the search")


def given_below(config: DictConfig, *parents: str) -> Iterator[tuple[str, str]]:
    """The keys, and their values, that the command line gives at or below one of these."""
    for argument in [*as_written(config.hydra.overrides.hydra), *as_written(config.hydra.overrides.task)]:
        key, _, value = argument.lstrip("+~").partition("=")
        if any(key == parent or key.startswith(f"{parent}.") for parent in parents):
            yield key, value


def require_own_directories(config: DictConfig) -> None:
    """Raises CheckError where Hydra would put jobs elsewhere than marble_sweep looks for them."""
    here = "false: paths are relative to the directory in which the command is started"
    require(not config.hydra.job.chdir, "hydra.job.chdir", config.hydra.job.chdir, here)
    subdir, number = as_written(config.hydra.sweep)["subdir"], "${hydra.job.num}"
    allowed = f"{number}: a job's directory is its number below hydra.sweep.dir, which is free to choose"
    require(subdir == number, "hydra.sweep.subdir", subdir, allowed)


def start_sweep(config: DictConfig) -> Sweep:
    """Check every job, take the directory and start to watch it."""
    resume = f"left out; a sweep goes on with {shlex.quote(override('hydra.sweep.dir', config.resume))}"
    require(config.resume is None, "resume", config.resume, resume)
    jobs = check_jobs(config)
    sweep_dir = Path(config.hydra.sweep.dir)
    records = sweep_line(jobs, sweep_dir)
    lock = lock_directory(sweep_dir, "hydra.sweep.dir")
    from marble_sweep.sweeps.watch import SweepWatch

    mark_start(sweep_dir)
    print(f"{len(jobs) or 'An open number of'} jobs in {sweep_dir}", file=sys.stderr)
    if records is not None:
        print(records, file=sys.stderr)
    watch = SweepWatch(sweep_dir, sum(job.trainer.total_steps for job in jobs))
    watch.start()
    return Sweep(sweep_dir, jobs, rerun_command(config, sweep_dir), lock, watch)


def fix_directory(config: DictConfig, mode: str) -> None:
    """Set `hydra.run.dir` or `hydra.sweep.dir` to what it is now, for every job; `~` in it is the user's home."""
    key = f"hydra.{mode}.dir"
    directory = config.hydra[mode].dir
    require(directory != "", key, repr(directory), "a directory")
    path = user_path(directory)
    with read_write(config.hydra):
        config.hydra[mode].dir = literal(str(path))
        config.hydra.overrides.hydra.append(override(key, path))


def check_jobs(config: DictConfig) -> list[schema.Config]:
    """The checked configs of all jobs. Raises CheckError that names the job that cannot be, or is there twice."""
    composer = Composer(GlobalHydra.instance().config_loader(), config)
    jobs: list[schema.Config] = []
    first: dict[str, int] = {}
    for number, overrides in enumerate(grid(config)):
        try:
            job = composer.resolve(overrides)
        except (CheckError, HydraException, OmegaConfBaseException) as error:
            given = [*as_written(config.hydra.overrides.task), *as_written(config.hydra.overrides.hydra)]
            raise CheckError(f"job {number} ({' '.join(overrides)}): {one_line(error, given)}") from None
        computed = repr([getattr(job, key.name) for key in fields(job) if key.name not in schema.NOT_OF_A_RUN])
        if (same := first.setdefault(computed, number)) < number:
            raise CheckError(f"job {number}: must differ from job {same}, whose config is the same")
        jobs.append(job)
    return jobs


def grid(config: DictConfig) -> list[list[str]]:
    """The overrides of every job, where a grid is laid out; empty for any other sweeper."""
    if str(config.hydra.sweeper._target_) not in GRIDS:
        return []
    loader = GlobalHydra.instance().config_loader()
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    given = as_written(config.hydra.overrides.task)
    overrides = OverridesParser.create(loader).parse_overrides([*params, *given])
    require_few(overrides)
    return grid_jobs(overrides)
