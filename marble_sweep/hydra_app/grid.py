"""A grid: every combination of the values given, a job each."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf

from marble_sweep.checks import require


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
    returned = []
    for start in range(0, len(jobs), max_batch_size or len(jobs)):
        batch = jobs[start : start + (max_batch_size or len(jobs))]
        sweeper.validate_batch_is_legal(batch)
        results = sweeper.launcher.launch(batch, initial_job_idx=start)
        for result in results:
            _ = result.return_value  # raises what a job raised
        returned.append(results)
    return returned
