"""`hydra/sweeper=smallest`: builds the search from Hydra's config, and says with an exit code how it ended."""

import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from marble_sweep.hydra_app.composer import Composer
from marble_sweep.hydra_app.errors import EXIT_FAILED, EXIT_INTERRUPTED
from marble_sweep.hydra_app.launch import Runner, TrialComposer
from marble_sweep.hydra_app.rerun import config_words, rerun_command
from marble_sweep.hydra_app.sweep_syntax import parse
from marble_sweep.searches.worker import Ending, Search


def search(
    master: DictConfig, words: Sequence[str], context: HydraContext, task: TaskFunction, launcher: Launcher
) -> int:
    """Search until there is an answer, or the budget is spent, or the user has had enough; returns the exit code.

    `words` are the sweeper's overrides and the command line's. Raises ValueError for what cannot be searched.
    """
    dimensions, by_key = parse(words, OverridesParser.create(context.config_loader))
    fixed = list(by_key.values())
    composer = TrialComposer(Composer(context.config_loader, master), fixed)
    runner = Runner(composer, launcher, context, task)
    directory = Path(master.hydra.sweep.dir)
    rerun = rerun_command(master, directory)
    files = config_words(master)
    worker = Search(dimensions, composer.resolve, runner.run, directory, overrides=fixed, config_options=files)
    return conclude(worker.run(), rerun)


def conclude(ending: Ending, rerun: str) -> int:
    """Say what a user may do now; returns the exit code."""
    if ending.reason == "interrupted":
        print(f"To go on:\n  {rerun}", file=sys.stderr)
        return EXIT_INTERRUPTED
    if ending.error is not None:
        print(f"marble_sweep: {ending.error}", file=sys.stderr)
    return EXIT_FAILED if ending.reason in ("error", "max_failures") or ending.crashes else 0
