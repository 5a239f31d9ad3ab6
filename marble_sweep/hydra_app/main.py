"""The command line: Hydra composes the config and finds the directory, the work is done elsewhere."""

import contextlib
import math
import sys
import traceback
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from hydra.core.override_parser.types import Sweep as SweepValue
from omegaconf import DictConfig, OmegaConf

from marble_sweep import config as schema
from marble_sweep.checks import require
from marble_sweep.commands import CONFIG_NAME, resume_command
from marble_sweep.hydra_app.callbacks import Sweep, started_sweeps
from marble_sweep.hydra_app.compose import CONF
from marble_sweep.hydra_app.errors import EXIT_FAILED, EXIT_INTERRUPTED, exiting_on_errors, raised_by_hydra
from marble_sweep.hydra_app.hydra_versions import MAIN_ARGUMENTS, register_resolver
from marble_sweep.hydra_app.private import leaving_hydra, raising_what_left
from marble_sweep.hydra_app.rerun import as_written
from marble_sweep.metrics.margin import unigram_margin
from marble_sweep.passwords import masked_output, refuse_passwords
from marble_sweep.process import keep_freed_memory, shorten_openmp_spin
from marble_sweep.runs import layout
from marble_sweep.runs.status import RunStatus, read_metadata
from marble_sweep.sweeps.jobs import train_job
from marble_sweep.sweeps.workers import share, usable_cores
from marble_sweep.terminal import use_replacements
from marble_sweep.training.signals import interrupting, stop_requests

NOT_BEGUN = "Interrupted before training began: nothing is lost, the same command starts again."


def run_directory(resume: str | None) -> str:
    """A new directory under outputs/, or the one to resume in."""
    return resume or f"{layout.OUTPUTS}/{now()}"


def now() -> str:
    """To the microsecond: what starts in the same second shares no directory."""
    return f"{datetime.now():%Y-%m-%d/%H-%M-%S-%f}"


def option_groups() -> str:
    """The options of every group in conf/, a line a group, for --help."""
    groups = sorted(path for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
    return "\n".join(
        f"{folder.name}: {', '.join(sorted(path.stem for path in folder.glob('*.yaml')))}" for folder in groups
    )


def require_options(arguments: Sequence[str]) -> None:
    """Raise CheckError where a group is given what Hydra cannot take for the name of an option, such as a number."""
    groups = {path.name: path for path in CONF.iterdir() if path.is_dir()}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        group = key.lstrip("+")
        if equals and group in groups:
            given = OverridesParser.create().parse_override(argument).value()
            chosen = given.list if isinstance(given, ChoiceSweep) else given if isinstance(given, list) else [given]
            is_name = all(isinstance(option, str | QuotedString | dict | SweepValue) for option in chosen)
            options = sorted(path.stem for path in groups[group].glob("*.yaml"))
            require(is_name, group, value, f"one of {', '.join(options)}")


# At import, because a launcher's worker process imports this module for `job` and nothing else.
schema.register_schemas()
register_resolver("run_dir", run_directory, use_cache=True)
register_resolver("sweep_time", now, use_cache=True)
register_resolver("option_groups", option_groups)


def job(config: DictConfig) -> float | str | None:
    """One run in the directory that Hydra made for it, or one job of a sweep.

    A job returns its objective, for sweepers that want a number, or else its run directory.
    """
    shorten_openmp_spin()
    context = HydraConfig.get()
    if not OmegaConf.is_missing(context.job, "num"):
        at_once = context.launcher.get("n_jobs", 1)  # joblib's
        run_config = schema.resolve(config)
        with stop_requests() as should_stop:
            threads = threads_of_one(at_once)
            run_dir = train_job(run_config, Path(context.sweep.dir), context.job.num, threads, should_stop)
        if run_config.objective is not None:
            return objective(run_config.objective, run_dir)
        return None if run_dir is None else str(run_dir)
    # As it is: Hydra sets it to a path, in which `${` is no interpolation.
    directory = Path(as_written(context.runtime)["output_dir"])
    try:
        with leaving_hydra():
            keep_freed_memory()
            from marble_sweep.run import run

            resumed = config.resume is not None
            run_config = schema.load(directory / layout.CONFIG) if resumed else schema.resolve(config)
            status = run(run_config, directory, resume=resumed)
    except KeyboardInterrupt:
        print(interrupted(directory), file=sys.stderr)
        status = RunStatus.INTERRUPTED
    if status == RunStatus.INTERRUPTED:
        raise SystemExit(EXIT_INTERRUPTED)
    return None


def interrupted(directory: Path) -> str:
    """What to do where a run was interrupted while it did not train; one that had not begun to leaves nothing."""
    if (directory / layout.METADATA).exists():
        return f"Interrupted; continue with:\n  {resume_command(directory)}"
    if not (directory / layout.CONFIG).exists():
        for name in (layout.LOG, layout.LOCK):
            (directory / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what else is there is not this run's
            directory.rmdir()
    return NOT_BEGUN


def objective(name: str, directory: Path | None) -> float:
    """The number that a sweeper asked for; NaN where the job has none, as one that failed."""
    metadata = {} if directory is None else read_metadata(directory)
    if metadata.get("status") in (None, RunStatus.FAILED):
        return math.nan
    last = metadata["last_evaluation"]
    values = {
        "n_params": metadata["n_params"],
        "val_loss": last.get("val_loss"),
        "val_margin": unigram_margin(last)[0],
    }
    return math.nan if values[name] is None else float(values[name])


def threads_of_one(jobs_at_once: int) -> int | None:
    """The CPU threads of each of several jobs that share this machine; None leaves a lone job all."""
    return share(usable_cores(), jobs_at_once).threads if jobs_at_once > 0 else 1  # joblib counts down from all cores


def main() -> None:
    """Run the command line. Exits with 0 when a run finished (or diverged: that is an outcome too)."""
    use_replacements()
    with started_sweeps() as sweeps:
        ended = call_hydra(sweeps)
        # Not in a callback: what that raises is lost, and it is not called when a launcher fails.
        for sweep in sweeps:
            ended = sweep.conclude(interrupted=ended == EXIT_INTERRUPTED) or ended
    if ended:
        raise SystemExit(ended)


def call_hydra(sweeps: Sequence[Sweep]) -> int | str | None:
    """Have Hydra run the command line; returns the exit code. An error is raised unless a sweep has started."""
    try:
        with interrupting(), exiting_on_errors():
            refuse_passwords(sys.argv[1:])
            require_options(sys.argv[1:])
            shows_config = any(
                argument in ("-c", "-i") or argument.startswith(("--cfg", "--info")) for argument in sys.argv[1:]
            )
            with (
                masked_output() if shows_config else contextlib.nullcontext(),
                raising_what_left(),
                raised_by_hydra(),
            ):
                hydra.main(**MAIN_ARGUMENTS, config_path=str(CONF), config_name=CONFIG_NAME)(job)()
    except KeyboardInterrupt:
        if not sweeps:
            print(NOT_BEGUN, file=sys.stderr)
        return EXIT_INTERRUPTED
    except SystemExit as ending:
        return ending.code
    except Exception:
        if not sweeps:
            raise
        traceback.print_exc()
        return EXIT_FAILED
    return 0
