"""A grid: every combination of the values given, a job each."""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from marble_sweep.checks import require
from marble_sweep.hydra_app.composer import Composer
from marble_sweep.hydra_app.private import launches_here
from marble_sweep.hydra_app.side_by_side import job_environment, launch_side_by_side, plan

Launch = Callable[[Sequence[Sequence[str]], int], Sequence[JobReturn]]  # a batch, and the number of its first job


def grid_jobs(overrides: Sequence[Override]) -> list[list[str]]:
    """The overrides of every job; the last override of a key counts. Raises CheckError for an interval."""
    choices: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices[key] = [f"{key}={override.get_value_element_as_str()}"]
            continue
        text = (override.input_line or "").partition("=")[2]
        require(
            override.is_discrete_sweep(), key, text, "values or a range; only hydra/sweeper=smallest takes intervals"
        )
        choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [list(job) for job in itertools.product(*choices.values())]


def launch_grid(sweeper: Sweeper, overrides: Sequence[str], max_batch_size: int | None) -> list[Sequence[JobReturn]]:
    """Launch the jobs of a sweeper that is set up, so many at once; returns what they returned, by batch."""
    assert sweeper.config is not None
    assert sweeper.launcher is not None
    assert sweeper.hydra_context is not None
    positive = max_batch_size is None or max_batch_size > 0
    require(positive, "hydra.sweeper.max_batch_size", max_batch_size, "null or a whole number >= 1")
    jobs = grid_jobs(OverridesParser.create(sweeper.hydra_context.config_loader).parse_overrides(list(overrides)))
    sweep_dir = Path(sweeper.config.hydra.sweep.dir)
    sweep_dir.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(sweeper.config, sweep_dir / "multirun.yaml")
    with contextlib.ExitStack() as stack:
        launch: Launch = sweeper.launcher.launch
        if OmegaConf.select(sweeper.config, "sweep.workers") is not None:  # else they are another program's jobs
            stack.enter_context(job_environment(sweeper.config))
            composer = Composer(sweeper.hydra_context.config_loader, sweeper.config)
            launch = choose_launch(sweeper.config, jobs, composer) or launch
        returned = []
        for start in range(0, len(jobs), max_batch_size or len(jobs)):
            batch = jobs[start : start + (max_batch_size or len(jobs))]
            sweeper.validate_batch_is_legal(batch)
            results = launch(batch, start)
            for result in results:
                _ = result.return_value  # raises what a job raised
            returned.append(results)
    return returned


def choose_launch(config: DictConfig, overrides: Sequence[Sequence[str]], composer: Composer) -> Launch | None:
    """What launches several of these jobs at once; None where they are the launcher's, one by one or as it does it."""
    if not launches_here(config):
        return None
    jobs = [composer.resolve(job) for job in overrides]
    workers = plan(config, jobs, "job", len(jobs), len(jobs))
    if workers.number == 1:
        return None
    sweep_dir = Path(config.hydra.sweep.dir)

    def launch(batch: Sequence[Sequence[str]], start: int) -> list[JobReturn]:
        return launch_side_by_side(batch, jobs[start : start + len(batch)], sweep_dir, start, workers)

    return launch
