"""One pass over a record, in bounded memory: how tokens moved, where their cloud was."""

from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from marble_sweep.lifecycle.cloud import Scatter, axis_along, coherence, measure_extent, sampled_places
from marble_sweep.lifecycle.holes import HoleHistory
from marble_sweep.lifecycle.motion import Bits, Motion, all_finite, changed_rows, row_motion, seen, values
from marble_sweep.lifecycle.phases import LastSteps
from marble_sweep.lifecycle.recorded import NORMS_ALONE, Recorded

Numbers = NDArray[np.float64]
TRANSITION_COLUMNS = ("moving", "l1_median", "linf_median", "masters_moving", "coherence")
STEP_COLUMNS = ("radius", "spread_along", "spread_across", "live_distance")


class DivergedError(Exception):
    """At `step`, the first of that kind, what is recorded is NaN or infinite."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


class MotionReading:
    """How the tokens moved: `last` of every token, and numbers of every transition over the dead ones."""

    def __init__(self, is_dead: NDArray[np.bool_], first_step: int, bar: "tqdm[NoReturn]") -> None:
        self.is_dead, self.bar = is_dead, bar
        self.last = LastSteps(len(is_dead), first_step)
        self.steps: list[int] = []
        self.columns: dict[str, list[float]] = {name: [] for name in TRANSITION_COLUMNS}

    def add(self, steps: NDArray[np.int64], motion: Motion, dim: int) -> None:
        """Transitions that end at `steps` (k,), with the norms (k, R) of each token's displacement in D dimensions."""
        regime = self.last.update(steps, motion, dim)
        self.steps += steps.tolist()
        self.columns["moving"] += regime.moved[:, self.is_dead].mean(axis=1).tolist()
        for name, norm in (("l1_median", motion.l1), ("linf_median", motion.linf)):
            self.columns[name] += np.median(norm[:, self.is_dead], axis=1).tolist()
        self.bar.update(len(steps))


class PositionReading:
    """What only positions can tell: the cloud, its black holes, and the motion of float32 masters."""

    def __init__(self, record: Recorded, motion: MotionReading, axis: Numbers) -> None:
        self.motion, self.axis = motion, axis
        self.dead, self.live = np.flatnonzero(motion.is_dead), np.flatnonzero(~motion.is_dead)
        self.sampled = set(record.steps[sampled_places(len(record.steps))].tolist())
        self.scatter = Scatter(len(axis))
        self.holes = HoleHistory(record.token_ids[self.dead])
        self.centroids: list[Numbers] = []
        self.columns: dict[str, list[float]] = {name: [] for name in STEP_COLUMNS}
        self.last_master_motion: Numbers | None = None
        self.before: Bits | None = None  # all tokens' at the last step

    def add(self, steps: NDArray[np.int64], bits: Bits) -> None:
        """A block of consecutive recorded steps (k,) with their bits (k, R, D). May raise DivergedError."""
        norms = np.zeros((3, *bits.shape[:2]), dtype=np.float32)
        first = 0 if self.before is not None else 1  # of this block's steps, to which a transition leads
        with np.errstate(over="ignore", invalid="ignore"):  # before a run diverges its weights are huge
            for place, (step, rows) in enumerate(zip(steps.tolist(), bits, strict=True)):
                if not all_finite(rows):
                    raise DivergedError(step)
                self._locate(step, rows)
                if self.before is not None:
                    norms[:, place] = self._move(step, self.before, rows)
                self.before = rows
        if self.before is not None:
            self.before = self.before.copy()  # else it would hold the whole block
        if first < len(steps):
            self.motion.add(steps[first:], Motion(*norms[:, first:]), bits.shape[2])

    def _locate(self, step: int, rows: Bits) -> None:
        dead = rows[self.dead]
        positions = values(dead)
        near = self.centroids[-1] if self.centroids else positions.mean(axis=0, dtype=np.float64)
        extent = measure_extent(positions, self.axis, near)
        self.centroids.append(extent.centroid)
        distance = np.nan
        if len(self.live):
            live = values(rows[self.live]).mean(axis=0, dtype=np.float64)
            distance = float(np.linalg.norm(extent.centroid - live))
        measured = extent.radius, extent.spread_along, extent.spread_across, distance
        for name, value in zip(STEP_COLUMNS, measured, strict=True):
            self.columns[name].append(value)
        if step in self.sampled:
            self.scatter.add(positions)
            self.holes.add(step, dead)

    def _move(self, step: int, before: Bits, after: Bits) -> Motion:
        columns = self.motion.columns
        columns["coherence"].append(coherence(before[self.dead], after[self.dead]))
        if after.dtype == np.uint32:
            if self.last_master_motion is None:
                self.last_master_motion = np.full(len(after), np.nan)
            changed = np.zeros(len(after), dtype=np.bool_)
            changed[changed_rows(before, after)] = True
            self.last_master_motion[changed] = step
            columns["masters_moving"].append(float(changed[self.dead].mean()))
        return row_motion(seen(before), seen(after))


def read(record: Recorded, motion: MotionReading) -> PositionReading | None:
    """Go through a record. Raises DivergedError at the first step at which it is not finite."""
    if record.kind != NORMS_ALONE:
        return read_positions(record, motion)
    read_norms(record, motion)
    return None


def read_norms(record: Recorded, motion: MotionReading) -> None:
    """Go through a record of kind `dead`.

    Cells between finite weights may be too many for a float32. That of the change itself tells whether they are finite.
    """
    for steps, norms in record.norm_blocks():
        is_finite = np.isfinite(norms[:, :, 3]).all(axis=1)
        if not is_finite.all():
            raise DivergedError(int(steps[is_finite.argmin()]))
        motion.add(steps, Motion(*np.moveaxis(norms[:, :, :3], 2, 0)), record.h_mean.shape[1])


def read_positions(record: Recorded, motion: MotionReading) -> PositionReading:
    """Go through a record that has positions."""
    positions = None
    for steps, bits in record.blocks():
        if positions is None:
            positions = PositionReading(record, motion, axis_along(record.h_mean, bits.shape[2]))
        positions.add(steps, bits)
    assert positions is not None, "analyse() refuses a record without steps"
    return positions
