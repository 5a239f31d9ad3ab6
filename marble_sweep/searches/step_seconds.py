"""search.minimise=seconds_per_step: measured once a size, and kept in the study for all workers and resumptions."""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from optuna.study import Study
from optuna.trial import TrialState, create_trial
from tqdm import tqdm

from marble_sweep.config import Config
from marble_sweep.humanize import counted, duration
from marble_sweep.searches.space import Size
from marble_sweep.searches.study import OUTCOME
from marble_sweep.sweeps.elsewhere import iterate_elsewhere

SECONDS = "step_seconds"  # the user attribute of a trial that trains nothing: seconds by size
MEASURED = "measured"  # the outcome of that trial
ROUNDS = 3  # in each of which every size takes its turn, so that what else the machine does concerns all alike


def shared_step_seconds(study: Study, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The seconds of a step that all workers of the study go by, by the sizes' keys; measured where it has none yet.

    Two workers that begin at the same time may both measure. Trials are created one after the other in any storage, so
    the first one that has the attribute counts for both.
    """
    if (recorded := recorded_step_seconds(study)) is None:
        study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={SECONDS: measure(), OUTCOME: MEASURED}))
        recorded = recorded_step_seconds(study)
    assert recorded is not None
    return recorded


def recorded_step_seconds(study: Study) -> dict[str, float] | None:
    """What the study holds; None where nothing was measured yet."""
    recorded: dict[str, float] | None = next(
        (trial.user_attrs[SECONDS] for trial in study.get_trials(deepcopy=False) if SECONDS in trial.user_attrs), None
    )
    return recorded


def measure_step_seconds(
    sizes: Sequence[Size], configs: Sequence[Config], products: Path, threads: int | None
) -> dict[str, float]:
    """The median seconds of a step by the sizes' keys; `configs` are theirs, in the same order.

    `products` is the folder in which the sweep's jobs choose how they multiply, `threads` what each of them has.
    """
    started = time.monotonic()
    times: list[list[float]] = [[] for _ in sizes]
    what = f"the seconds per step of {counted(len(sizes), 'size')}"
    tqdm.write(f"Measuring {what}, before the first trial", file=sys.stderr)
    steps = iterate_elsewhere(step_times, configs, products, threads)
    total = ROUNDS * len(sizes)
    for place, seconds in tqdm(steps, total=total, unit="step", leave=False, disable=not sys.stderr.isatty()):
        times[place].append(seconds)
    tqdm.write(f"That took {duration(time.monotonic() - started)}; the study keeps it", file=sys.stderr)
    return {size.key: statistics.median(measured) for size, measured in zip(sizes, times, strict=True)}


def step_times(configs: Sequence[Config], products: Path, threads: int | None) -> Iterator[tuple[int, float]]:
    """The place of a config and the seconds of a step of its model, ROUNDS times for each. In a process of its own."""
    import torch

    from marble_sweep.sweeps.step_time import step_time

    if threads is not None:
        torch.set_num_threads(threads)
    for _ in range(ROUNDS):
        for place, config in enumerate(configs):
            yield place, step_time(config, products)
