"""The command line: Hydra composes the config and finds the directory, the work is done elsewhere."""

import os
from datetime import datetime
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from marble_sweep import callbacks
from marble_sweep import config as schema
from marble_sweep.errors import EXIT_INTERRUPTED, exiting_on_errors
from marble_sweep.sweep.jobs import train_job

PACKAGE = Path(__file__).resolve().parent
# In a checkout conf/ lies beside the package; a wheel carries it inside.
CONF = next(path for path in (PACKAGE.parent / "conf", PACKAGE / "conf") if path.is_dir())


def run_directory(resume: str | None) -> str:
    """A new directory under outputs/, or the one to resume in."""
    return resume or f"outputs/{now()}"


def now() -> str:
    """To the microsecond: what starts in the same second shares no directory."""
    return f"{datetime.now():%Y-%m-%d/%H-%M-%S-%f}"


def option_groups() -> str:
    """The options of every group in conf/, a line a group, for --help."""
    groups = sorted(path for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
    return "\n".join(f"{each.name}: {', '.join(sorted(path.stem for path in each.glob('*.yaml')))}" for each in groups)


# At import, because a launcher's worker process imports this module for `job` and nothing else.
schema.register_schemas()
OmegaConf.register_new_resolver("run_dir", run_directory, use_cache=True, replace=True)
OmegaConf.register_new_resolver("sweep_time", now, use_cache=True, replace=True)
OmegaConf.register_new_resolver("option_groups", option_groups, replace=True)


def job(config: DictConfig) -> None:
    """One run in the directory that Hydra made for it, or one job of a sweep."""
    context = HydraConfig.get()
    if not OmegaConf.is_missing(context.job, "num"):
        at_once = context.launcher.get("n_jobs", 1)  # joblib's
        train_job(schema.resolve(config), Path(context.sweep.dir), context.job.num, threads_of_one(at_once))
        return
    with exiting_on_errors():
        from marble_sweep.run import run

        directory = Path(context.runtime.output_dir)
        resumed = config.resume is not None
        settings = schema.load(directory / "config.yaml") if resumed else schema.resolve(config)
        status = run(settings, directory, resume=resumed)
    if status == "interrupted":
        raise SystemExit(EXIT_INTERRUPTED)


def threads_of_one(jobs_at_once: int) -> int | None:
    """The CPU threads of each of several jobs that share this machine; None leaves a lone job all."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if jobs_at_once == 1:
        return None
    return max(1, cores // jobs_at_once) if jobs_at_once > 0 else 1  # joblib counts down from all cores below 0


def main() -> None:
    """Run the command line. Exits with 0 when a run finished (or diverged: that is an outcome too)."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets Hydra's errors reach exiting_on_errors
    try:
        with exiting_on_errors():
            hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
    except KeyboardInterrupt:
        if callbacks.current is not None:
            callbacks.current.conclude()
        raise SystemExit(EXIT_INTERRUPTED) from None
