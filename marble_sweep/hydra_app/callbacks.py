"""What Hydra calls before and after: configs are checked before anything starts, sweeps are watched."""

import copy
import itertools
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import BaseFileLock
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from marble_sweep import config as schema
from marble_sweep.hydra_app.errors import EXIT_FAILED, EXIT_INTERRUPTED, exiting_on_errors
from marble_sweep.runs.files import lock_directory
from marble_sweep.runs.status import ENDED, latest, mark_start, read_metadata
from marble_sweep.sweeps.length import require_few

if TYPE_CHECKING:
    from marble_sweep.sweeps.watch import SweepWatch


class CheckAndWatch(Callback):
    """Checks every config, of a run or of all jobs of a sweep, before anything starts; watches sweeps."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        with exiting_on_errors():
            settings = schema.resolve(without_hydra(config))
            if settings.resume is None:
                return
            others = [each for each in config.hydra.overrides.task if not each.startswith("resume=")]
            alone = f"alone: the run's own config is used (drop {', '.join(others)})"
            schema.require(not others, "resume", settings.resume, alone)
            found = (Path(settings.resume) / "config.yaml").is_file()
            schema.require(found, "resume", settings.resume, "a run directory, one with a config.yaml")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        global current
        if is_search(config):
            return  # it checks, holds and tells for itself
        sweep_dir = Path(config.hydra.sweep.dir)
        with exiting_on_errors():
            resume = f"left out; a sweep goes on with hydra.sweep.dir={config.resume}"
            schema.require(config.resume is None, "resume", config.resume, resume)
            jobs = [check_job(config, number, job) for number, job in enumerate(grid(config))]
            configs = [schema.dump(job) for job in jobs]
            for number, text in enumerate(configs):
                if (first := configs.index(text)) < number:
                    raise ValueError(f"job {number}: must differ from job {first}, whose config is the same")
            lock = lock_directory(sweep_dir, "hydra.sweep.dir")
        from marble_sweep.sweeps.watch import SweepWatch

        mark_start(sweep_dir)
        print(f"{len(jobs) or 'An open number of'} jobs in {sweep_dir}", file=sys.stderr)
        watch = SweepWatch(sweep_dir, sum(job.trainer.total_steps for job in jobs))
        current = Sweep(sweep_dir, set(configs), rerun_command(config, sweep_dir), lock, watch)
        current.watch.start()

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        if current is not None:
            raise SystemExit(current.conclude())


@dataclass
class Sweep:
    """The sweep that this process runs."""

    directory: Path
    configs: set[str]  # the jobs' config.yaml; empty where the sweeper decides as it goes
    rerun: str  # the command that runs what is missing or failed
    lock: BaseFileLock
    watch: "SweepWatch"

    def conclude(self) -> int:
        """Say how the jobs ended and what to do about those that did not; returns the exit code."""
        self.watch.stop()
        self.lock.release()
        runs = latest(self.directory, self.configs or None)
        statuses = {path: read_metadata(path).get("status") for path in runs}
        ended = [status for status in statuses.values() if status in ENDED]
        failed = [path for path, status in statuses.items() if status == "failed"]
        missing = max(0, len(self.configs) - len(ended))
        counts = {name: ended.count(name) for name in ENDED} | {"to do": missing}
        print(", ".join(f"{number} {name}" for name, number in counts.items() if number), file=sys.stderr)
        if failed or missing:
            names = ", ".join(path.name for path in failed)
            todo = " and ".join([f"failed ({names})"] * bool(failed) + ["to do"] * bool(missing))
            print(f"To run what is {todo}:\n  {self.rerun}", file=sys.stderr)
        written = [self.directory / name for name in ("summary.csv", "compare.html")]
        if all(path.exists() for path in written):
            print(f"Compared in {written[0]} and {written[1]}", file=sys.stderr)
        return EXIT_FAILED if failed else EXIT_INTERRUPTED if missing else 0


current: Sweep | None = None


def without_hydra(config: DictConfig) -> DictConfig:
    """A run's own keys, leaving out Hydra's."""
    own = copy.deepcopy(config)
    with open_dict(own):
        del own["hydra"]
    return own


def is_search(config: DictConfig) -> bool:
    """Whether the sweeper is the one that searches for the smallest model."""
    return str(config.hydra.sweeper._target_).endswith(".SmallestSweeper")


def grid(config: DictConfig) -> list[list[str]]:
    """The overrides of every job, where Hydra's own sweeper lays out a grid; empty for any other sweeper."""
    if not config.hydra.sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
        return []
    loader = GlobalHydra.instance().config_loader()
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create(loader).parse_overrides([*params, *config.hydra.overrides.task])
    require_few(overrides)
    return list(itertools.chain.from_iterable(BasicSweeper.split_arguments(overrides, None)))


def check_job(config: DictConfig, number: int, overrides: list[str]) -> schema.Config:
    """The checked config of one job. Raises ValueError that names the job."""
    composed = GlobalHydra.instance().config_loader().load_sweep_config(config, overrides)
    try:
        return schema.resolve(without_hydra(composed))
    except ValueError as error:
        raise ValueError(f"job {number} ({' '.join(overrides)}): {error}") from None


def rerun_command(config: DictConfig, sweep_dir: Path) -> str:
    """The command that goes on with this sweep."""
    given = [*config.hydra.overrides.task, *config.hydra.overrides.hydra]
    kept = [each for each in given if not each.startswith(("hydra.mode=", "hydra.sweep.dir="))]
    words = [*kept, f"hydra.sweep.dir={sweep_dir}"]
    return f"python -m marble_sweep --multirun {' '.join(map(shlex.quote, words))}"
