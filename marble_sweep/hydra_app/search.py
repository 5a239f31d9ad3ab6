"""`hydra/sweeper=smallest`: builds the search from Hydra's config, and says with an exit code how it ended."""

import sys
from collections.abc import Sequence

from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from marble_sweep.hydra_app.errors import EXIT_FAILED, EXIT_INTERRUPTED
from marble_sweep.hydra_app.launch import LocalRunner, Runner, lone_train
from marble_sweep.hydra_app.launched import WorkerTask, make_search
from marble_sweep.hydra_app.private import launches_here
from marble_sweep.hydra_app.rerun import rerun_command
from marble_sweep.hydra_app.side_by_side import is_launched, job_environment, other_callbacks, plan
from marble_sweep.searches.launched import LaunchingSearch
from marble_sweep.searches.worker import Ending, Search, Train
from marble_sweep.sweeps.workers import Workers

# Trials at once that end a search sooner (docs/search.md); of more, most would turn out not to have been needed.
MAX_AT_ONCE = 8


def search(
    config: DictConfig, overrides: Sequence[str], context: HydraContext, task: TaskFunction, launcher: Launcher
) -> int:
    """Search until there is an answer, or the budget is spent, or the user has had enough; returns the exit code.

    `overrides` are the sweeper's overrides and the command line's. Raises CheckError for what cannot be searched.
    """
    if is_launched(config):
        return search_launched(config, overrides, context)
    whole, composer = make_search(Search, config, overrides, context)
    rerun = rerun_command(config, whole.directory)
    with job_environment(config):
        workers = plan_trials(config, whole)
        train: Train
        if workers.number > 1:
            train = LocalRunner(composer, whole.directory, workers.threads, whole.should_stop).run
        elif launches_here(config) and not other_callbacks(config):
            train = lone_train(composer, whole.directory)
        else:
            train = Runner(composer, launcher, context, task).run
        return conclude(whole.run(train, workers.number, workers.threads), rerun)


def search_launched(config: DictConfig, overrides: Sequence[str], context: HydraContext) -> int:
    """Search with workers that the user's launcher starts; returns the exit code."""
    whole, _ = make_search(LaunchingSearch, config, overrides, context)
    rerun = rerun_command(config, whole.directory)
    with job_environment(config):
        workers = plan_trials(config, whole)
        launch = WorkerTask(config, list(overrides), context, workers).launch
        return conclude(whole.run_launched(launch, workers.number, workers.threads), rerun)


def plan_trials(config: DictConfig, whole: Search) -> Workers:
    """How many trials train at once."""
    settings = whole.base.search
    # Whoever shares a study may have started several processes on this machine already.
    useful = MAX_AT_ONCE if settings.storage is None else 1
    return plan(config, whole.largest(), "trial", settings.n_trials, useful)


def conclude(ending: Ending, rerun: str) -> int:
    """Say what a user may do now; returns the exit code."""
    if ending.reason == "interrupted":
        print(f"To go on:\n  {rerun}", file=sys.stderr)
        return EXIT_INTERRUPTED
    if ending.error is not None:
        print(f"marble_sweep: {ending.error}", file=sys.stderr)
    return EXIT_FAILED if ending.reason in ("error", "max_failures") or ending.crashes else 0
