"""search.reuse: runs that have ended, of the same data, budget and code, count as trials and are not trained again.

A run with the search's own seed becomes a trial at once: such trials only steer the search. A run with one of the
derived fresh seeds waits until the search asks for that seed. Had it counted at once, whoever names the runs could
choose which recipes are tested first, knowing how their seeds ended; so every test is what it would have been.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from marble_sweep import config as schema
from marble_sweep.checks import CheckError
from marble_sweep.runs import layout
from marble_sweep.runs.damage import flat
from marble_sweep.runs.run import Run
from marble_sweep.runs.status import DONE, config_text, run_directories
from marble_sweep.search_config import FRONTIER, MAX_SEEDS
from marble_sweep.searches.seeds import trial_seed
from marble_sweep.searches.space import Dimension, Space, Value
from marble_sweep.searches.strategy import Proposal
from marble_sweep.searches.thresholds import trial_settings
from marble_sweep.sweeps.child import changes, copy_run, step_to_continue, texts_for_other_thresholds
from marble_sweep.sweeps.elsewhere import iterate_elsewhere

REUSABLE = "reusable"  # the study's user attribute: run directories by the key of a plan
# Settings that leave what a run computes as it is, or are checked by a hash, as when a run is resumed.
FREE = ("data.", "device.", "notes", "experiment_name", "model.name", "trainer.state_interval")
MAX_SHOWN = 3  # runs that are not reused, each with the reason

Resolve = Callable[[dict[str, Value]], schema.Config]


@dataclass(frozen=True)
class Reusable:
    """A run that can stand for a trial."""

    directory: Path
    plan: Proposal
    config: schema.Config  # of that trial


class NotReusableError(Exception):
    """Why a run cannot stand for a trial, in a few words."""


def plan_key(plan: Proposal, space: Space) -> str:
    """What a plan trains, whatever it is trained for."""
    return " ".join(map(str, (space.sizes[plan.size].key, *plan.recipe, plan.seed, plan.threshold))).strip()


def reused_run(plan: Proposal, space: Space, runs: Mapping[str, str]) -> Path | None:
    """The run among `runs`, directories by plan_key, that stands for a trial; None where this machine reads none."""
    directory = runs.get(plan_key(plan, space))
    return Path(directory) if directory is not None and Path(directory, layout.CONFIG).is_file() else None


def continue_reused(
    plan: Proposal, space: Space, runs: Mapping[str, str], config: schema.Config, sweep_dir: Path, number: int
) -> None:
    """Copy to the sweep directory the reused run that a trial continues: it ended early for an easier threshold.

    Does nothing where there is none, or where the sweep directory has a run of the trial's configuration.
    """
    others = [threshold for threshold in config.certify.thresholds or () if threshold != plan.threshold]
    found = [reused_run(replace(plan, threshold=threshold), space, runs) for threshold in others]
    steps = {path: step for path in found if path is not None and (step := step_to_continue(path)) is not None}
    texts = {schema.dump(config), *texts_for_other_thresholds(config)}
    if steps and not any(config_text(directory) in texts for directory in run_directories(sweep_dir)):
        copy_run(max(steps, key=lambda path: steps[path]), schema.dump(config), sweep_dir, number)


def find_reusable(
    directories: Sequence[Path], space: Space, base: schema.Config, resolve: Resolve
) -> tuple[list[Reusable], dict[Path, str]]:
    """The runs that can stand for trials of a search, and why the others cannot.

    `base` is what its trials share, `resolve` gives a trial's config.
    """
    matched: dict[str, Reusable] = {}
    refused: dict[Path, str] = {}
    for directory in directories:
        try:
            run = match(directory, space, base, resolve)
            key = plan_key(run.plan, space)
            if key in matched:
                raise NotReusableError(f"the same trial as {matched[key].directory}")
            matched[key] = run
        except NotReusableError as reason:
            refused[directory] = str(reason)
    runs = list(matched.values())
    if runs:
        differences = iterate_elsewhere(all_changes, [(run.directory, run.config) for run in runs])
        changed = {run.directory: reasons for run, reasons in zip(runs, differences, strict=True) if reasons}
        refused |= {directory: f"its {' and its '.join(reasons)}" for directory, reasons in changed.items()}
    return [run for run in runs if run.directory not in refused], refused


def all_changes(pairs: Sequence[tuple[Path, schema.Config]]) -> Iterator[list[str]]:
    """How the code and the data of each run differ from those of the trial. In a process of its own."""
    for directory, config in pairs:
        yield changes(directory, config)


def match(directory: Path, space: Space, base: schema.Config, resolve: Resolve) -> Reusable:
    """The trial that a run stands for by its config. Raises NotReusableError where it stands for none."""
    run = Run.read(directory)
    if run.damages:
        raise NotReusableError(f"{run.damages[0].file} {run.damages[0].reason}")
    if run.status not in DONE:
        raise NotReusableError(f"its status is {run.status}")
    settings = settings_of(load(directory))
    params = {dimension.key: value_of(dimension, run.config) for dimension in space.dimensions}
    size = find_size(space, params)
    recipe = tuple(position(dimension, params[dimension.key]) for dimension in space.recipes)
    tried = space.params(size, recipe)
    seed = seed_index(base, tried, int(run.config["seed"]))
    is_for_one = base.search.thresholds is not None and base.search.question != FRONTIER
    threshold = str(settings["certify.threshold"]) if is_for_one else ""
    plan = Proposal(size, recipe, seed, "reuse", threshold)
    config = resolve(tried | {"seed": trial_seed(base.seed, tried, seed)} | trial_settings(base, plan))
    expected = settings_of(config)
    for key in {**settings, **expected}:
        if settings.get(key) != expected.get(key):
            raise NotReusableError(f"its {key} is {settings.get(key)}, here {expected.get(key)}")
    return Reusable(directory.resolve(), plan, config)


def load(directory: Path) -> schema.Config:
    try:
        return schema.load(directory / layout.CONFIG)
    except CheckError as error:
        raise NotReusableError(str(error)) from None


def settings_of(config: schema.Config) -> dict[str, Any]:
    """The settings that determine a run's results, by dotted key."""
    settings = dict(flat(yaml.safe_load(schema.dump(config)), ""))
    return {key: value for key, value in settings.items() if not key.startswith(FREE)}


def value_of(dimension: Dimension, settings: dict[str, Any]) -> Any:
    """A run's value of what is searched; of a group, its option."""
    return settings.get(dimension.key, settings.get(f"{dimension.key}.name"))


def find_size(space: Space, params: dict[str, Any]) -> int:
    """The index of the size with these values."""
    for index, size in enumerate(space.sizes):
        if all(params[key] == value for key, value in size.params):
            return index
    deciding = [dimension.key for dimension in space.dimensions if dimension.decides_size]
    raise NotReusableError(f"its size is not searched: {' '.join(f'{key}={params[key]}' for key in deciding)}")


def position(dimension: Dimension, value: Any) -> float:
    """Where a value lies among those that the search tries."""
    last = len(dimension.values) - 1
    halves = [number + 0.5 for number in range(last)] if dimension.ordered and dimension.is_continuous else []
    for place in (*map(float, range(last + 1)), *halves):
        if dimension.between(place) == value:
            return place
    raise NotReusableError(f"its {dimension.key} is {value}, which the search does not try")


def seed_index(base: schema.Config, params: dict[str, Value], seed: int) -> int:
    """0 for the search's own seed, else which fresh seed of this size and recipe it is."""
    for index in range(MAX_SEEDS + 1):
        if trial_seed(base.seed, params, index) == seed:
            return index
    raise NotReusableError(f"its seed, {seed}, is neither the search's ({base.seed}) nor one of its fresh seeds")


def reuse_lines(runs: Sequence[Reusable], refused: dict[Path, str]) -> list[str]:
    """What is reused, and of what is not, the first runs with the reason."""
    own = sum(run.plan.seed == 0 for run in runs)
    lines = [f"Reused runs: {own} as trials, {len(runs) - own} once the search asks for their fresh seeds"]
    lines += [f"  not reused: {path}: {' '.join(reason.split())}" for path, reason in [*refused.items()][:MAX_SHOWN]]
    more = len(refused) - MAX_SHOWN
    return lines + ([f"  nor are {more} more"] if more > 0 else [])
