"""The workers of a search as jobs of the launcher that the user chose: one job is one worker."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

import marble_sweep.hydra_app.main  # noqa: F401  # a launcher's process reads the schemas and resolvers from it
from marble_sweep.commands import literal, override
from marble_sweep.hydra_app.composer import Composer
from marble_sweep.hydra_app.launch import LocalRunner, TrialComposer
from marble_sweep.hydra_app.rerun import config_arguments
from marble_sweep.hydra_app.sweep_syntax import parse
from marble_sweep.process import shorten_openmp_spin
from marble_sweep.runs import layout
from marble_sweep.searches.launched import LaunchedWorker, Start
from marble_sweep.searches.worker import Ending, Search
from marble_sweep.sweeps.workers import Workers

AnySearch = TypeVar("AnySearch", bound=Search)


def make_search(
    kind: type[AnySearch], config: DictConfig, overrides: Sequence[str], context: HydraContext
) -> tuple[AnySearch, TrialComposer]:
    """A search from the sweep's config, with what puts its trials' configs together.

    `overrides` are the sweeper's overrides and the command line's. Raises CheckError for what cannot be searched.
    """
    dimensions, by_key = parse(overrides, OverridesParser.create(context.config_loader))
    fixed = list(by_key.values())
    composer = TrialComposer(Composer(context.config_loader, config), fixed)
    directory, files = Path(config.hydra.sweep.dir), config_arguments(config)
    return kind(dimensions, composer.resolve, directory, overrides=fixed, config_options=files), composer


@dataclass(frozen=True)
class WorkerTask:
    """What a launcher's jobs do. It is pickled."""

    config: DictConfig  # the sweep's
    overrides: list[str]
    context: HydraContext
    workers: Workers

    def launch(self, start: Start) -> list[Ending | Exception]:
        """Have the user's launcher start the workers; returns how they ended, once all have."""
        config = copy.deepcopy(self.config)
        directory = Path(config.hydra.sweep.dir).absolute()  # jobs may be in other folders than this process
        with open_dict(config):
            config.hydra.sweep.dir = literal(str(directory))
            if "n_jobs" in config.hydra.launcher:  # joblib's, so many jobs at once
                config.hydra.launcher.n_jobs = self.workers.number
        task = WorkerJob(replace(self, config=config), start)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=task, config=config
        )
        # A trial's run has the directory of its number.
        job = [override("hydra.sweep.dir", directory), f"hydra.sweep.subdir={layout.WORKERS}/${{hydra.job.num}}"]
        return [ended(returned) for returned in launcher.launch([job] * self.workers.number, initial_job_idx=0)]


@dataclass(frozen=True)
class WorkerJob:
    """One job of them: a worker, in the process that the launcher has made for it."""

    task: WorkerTask
    start: Start

    def __call__(self, _: DictConfig) -> Ending:
        """Take trials until the search has ended."""
        shorten_openmp_spin()
        folder = Path(HydraConfig.get().runtime.output_dir)
        worker, composer = make_search(LaunchedWorker, self.task.config, self.task.overrides, self.task.context)
        train = LocalRunner(composer, worker.directory, self.task.workers.threads, worker.should_stop).run
        with (folder / layout.WORKER_LOG).open("a", encoding="utf-8") as log:
            return worker.work(self.start, train, log)


def ended(returned: JobReturn) -> Ending | Exception:
    """How a worker ended, or what it raised."""
    try:
        ending: Ending = returned.return_value
    except Exception as error:
        return error
    return ending
