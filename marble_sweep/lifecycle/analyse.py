"""From a record to the life of its tokens. docs/lifecycle.md has every rule."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from marble_sweep.checks import require
from marble_sweep.lifecycle import freeze
from marble_sweep.lifecycle.cloud import across_direction, path_columns, principal_directions
from marble_sweep.lifecycle.epochs import Epoch, find_epochs
from marble_sweep.lifecycle.holes import HOLE_COLUMNS
from marble_sweep.lifecycle.phases import phase_names, populations
from marble_sweep.lifecycle.reading import DivergedError, MotionReading, PositionReading, read
from marble_sweep.lifecycle.recorded import NORMS_ALONE, Recorded, RecordUntil
from marble_sweep.lifecycle.result import PHASES, Lifecycle
from marble_sweep.lifecycle.summary import summarize

Numbers = NDArray[np.float64]
NO_LR = pd.Series(dtype=np.float64)
NUM_PRINCIPAL = 2
GROUP_COLUMNS = ("groups", "largest_group")
COLUMNS = (  # of Lifecycle.steps, in this order
    *(*PHASES, "moving", "masters_moving", "l1_median", "linf_median"),
    *("centroid_norm", "centroid_along", "centroid_across", "centroid_pc1", "centroid_pc2"),
    *("speed_along", "speed_across", "speed_pc1", "speed_pc2"),
    *("radius", "spread_along", "spread_across", "coherence", "live_distance", *GROUP_COLUMNS, "lr"),
)
OPTIONAL = ("masters_moving",)  # where there are no masters, there is no such column
BAR_AFTER = 1.0  # seconds


class Basis(NamedTuple):
    """The directions of Lifecycle."""

    axis: Numbers
    across: Numbers
    principal: Numbers


def analyse(
    record: Recorded,
    *,
    texts: Callable[[Sequence[int]], list[str]] | None = None,
    lr: "pd.Series[float]" = NO_LR,
    quiet_window: int | None = None,
    show: bool = False,
) -> Lifecycle:
    """The life of a record's tokens, from one pass over it in bounded memory.

    `texts` gives the texts of tokens, `lr` the learning rate by training step. A freeze counts where the record goes on
    for `quiet_window` steps without motion. `show` shows progress on standard error. The analysis ends before the first
    step at which the record has NaN or infinity. Raises ValueError where the record has no dead token or not two steps.
    """
    token_ids = np.asarray(record.token_ids, dtype=np.int64)
    is_dead = np.asarray(record.dead_mask, dtype=np.bool_)[token_ids]
    require(bool(is_dead.any()), "recorded tokens", f"{len(is_dead)}, none of them dead", "at least one dead token")
    require(quiet_window is None or quiet_window >= 1, "quiet_window", quiet_window, "a whole number >= 1")
    recorded, motion, positions, diverged_step = read_finite(record, is_dead, show=show)
    pauses = motion.last.longest_pause[is_dead]
    window = quiet_window or freeze.default_quiet_window(int(recorded[0]), int(recorded[-1]), pauses)
    with np.errstate(over="ignore", invalid="ignore"):  # of a run that diverges, numbers are huge
        basis = find_basis(positions)
        steps = with_intended(steps_table(recorded, motion, positions, basis, lr), record.intended)
    tokens = tokens_table(token_ids, int(recorded[-1]), window, motion, positions, texts, lr)
    epochs = find_epochs(steps.index.to_numpy(), steps["radius"].to_numpy())
    holes = pd.DataFrame([] if positions is None else positions.holes.rows, columns=list(HOLE_COLUMNS))
    summary = summarize(record.kind, recorded, window, tokens, steps) | {"diverged_step": diverged_step}
    return Lifecycle(tokens, steps, epochs_table(epochs, steps), holes, summary, *basis)


class FiniteReading(NamedTuple):
    """What was read of a record, and where it ends or diverges."""

    recorded: NDArray[np.int64]
    motion: MotionReading
    positions: PositionReading | None
    diverged_step: int | None


def read_finite(record: Recorded, is_dead: NDArray[np.bool_], *, show: bool) -> FiniteReading:
    """Go through a record up to its end, or to the last step before it has NaN or infinity.

    The latter takes a second pass: what is sampled depends on the last step.
    """
    has_positions = record.kind != NORMS_ALONE
    recorded = np.asarray(record.steps, dtype=np.int64) if has_positions else np.arange(record.last_step + 1)
    require(len(recorded) >= 2, "recorded steps", len(recorded), "at least 2")
    diverged_step = None
    while True:
        with tqdm(total=len(recorded) - 1, unit="step", leave=False, delay=BAR_AFTER, disable=not show) as bar:
            motion = MotionReading(is_dead, int(recorded[0]), bar)
            try:
                return FiniteReading(recorded, motion, read(record, motion), diverged_step)
            except DivergedError as error:
                diverged_step = error.step
        recorded = recorded[recorded < diverged_step]
        before = f"{len(recorded)} before the first with NaN or infinity, step {diverged_step}"
        require(len(recorded) >= 2, "recorded steps", before, "at least 2")
        record = RecordUntil(record, int(recorded[-1]))


def tokens_table(
    token_ids: NDArray[np.int64],
    last_step: int,
    quiet_window: int,
    motion: MotionReading,
    positions: PositionReading | None,
    texts: Callable[[Sequence[int]], list[str]] | None,
    lr: "pd.Series[float]",
) -> pd.DataFrame:
    """Lifecycle.tokens."""
    last, is_dead = motion.last, motion.is_dead
    freeze_step = freeze.freeze_steps(last.motion, last.first_step, last_step, quiet_window)
    is_straggler = np.zeros(len(token_ids), dtype=np.bool_)
    is_straggler[is_dead] = freeze.stragglers(last.motion[is_dead], freeze_step[is_dead], last.first_step)
    columns = {
        "token": token_ids,
        "is_dead": is_dead,
        "text": texts(token_ids.tolist()) if texts else [""] * len(token_ids),
        "last_early": last.early,
        "last_midlife": last.midlife,
        "last_late": last.late,
        "last_motion": last.motion,
        "longest_pause": last.longest_pause,
        "thawed": last.longest_pause >= quiet_window,
        "freeze_step": freeze_step,
        "censored": np.isnan(freeze_step),
        "phase": phase_names(last_step, last.ends),
        "is_straggler": is_straggler,
        "freeze_lr": freeze.freeze_lr(freeze_step, lr),
    }
    if positions is not None and positions.last_master_motion is not None:
        columns["last_master_motion"] = positions.last_master_motion
    return pd.DataFrame(columns)


def steps_table(
    recorded: NDArray[np.int64],
    motion: MotionReading,
    positions: PositionReading | None,
    basis: Basis,
    lr: "pd.Series[float]",
) -> pd.DataFrame:
    """Lifecycle.steps without the intended update."""
    steps = pd.Index(recorded[1:], name="step")
    counts = populations(recorded[1:], motion.last.ends[:, motion.is_dead])
    columns: dict[str, Any] = dict(zip(PHASES, counts, strict=True))
    columns |= {name: values for name, values in motion.columns.items() if values}
    if positions is not None:
        columns |= {name: values[1:] for name, values in positions.columns.items()}
        columns |= path_columns(recorded, np.stack(positions.centroids), basis.axis, basis.principal)
        sizes = {step: (len(sizes), max(sizes, default=0)) for step, sizes in positions.holes.sizes.items()}
        groups = pd.DataFrame.from_dict(sizes, orient="index", columns=list(GROUP_COLUMNS), dtype=np.float64)
        columns |= dict(groups.reindex(steps))
    columns["lr"] = lr.reindex(steps).to_numpy()
    names = [name for name in COLUMNS if name in columns or name not in OPTIONAL]
    return pd.DataFrame(columns, index=steps).reindex(columns=names)


def with_intended(steps: pd.DataFrame, intended: pd.DataFrame | None) -> pd.DataFrame:
    """The steps with what the record has of the intended update at each."""
    if intended is None:
        return steps
    suffixes = ("", "_intended")  # where a column of it has the name of another
    return steps.merge(intended, how="left", left_index=True, right_index=True, suffixes=suffixes)


def epochs_table(epochs: Sequence[Epoch], steps: pd.DataFrame) -> pd.DataFrame:
    """Lifecycle.epochs."""
    table = pd.DataFrame([asdict(epoch) for epoch in epochs], columns=["start", "end", "kind"])
    for end in ("start", "end"):
        table[f"radius_{end}"] = steps["radius"].reindex(table[end]).to_numpy()
    return table


def find_basis(positions: PositionReading | None) -> Basis:
    """The directions that stay the same in all steps; empty without positions."""
    if positions is None:
        return Basis(np.empty(0), np.empty(0), np.empty((0, 0)))
    motion = positions.centroids[-1] - positions.centroids[0]
    covariance = positions.scatter.covariance
    principal = principal_directions(covariance, motion, NUM_PRINCIPAL)
    return Basis(positions.axis, across_direction(covariance, positions.axis, motion), principal)
