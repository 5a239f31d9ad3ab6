"""Where tokens were at a few steps of a run, for a picture that moves."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from marble_sweep.lifecycle.choose import MAX_DEAD, MAX_FRAMES, MAX_LIVE, choose_frames, choose_tokens
from marble_sweep.lifecycle.motion import Bits, row_motion, seen, values
from marble_sweep.lifecycle.phases import phase_ends, phase_numbers
from marble_sweep.lifecycle.recorded import NORMS_ALONE, Recorded, RecordUntil
from marble_sweep.lifecycle.result import Lifecycle

BAR_AFTER = 1.0  # seconds


@dataclass(frozen=True)
class Frames:
    """F recorded steps, most of them early, and P of its tokens, in the order of `Lifecycle.tokens`.

    frame_steps: (F,) int64, the first and the last recorded step among them.
    tokens: (P,) int64, ids: dead tokens, all stragglers among them, and live ones where they were recorded.
    positions: (F, P, 2) float32, along `Lifecycle.axis` and `Lifecycle.across`, the same two directions in every
        frame; without an axis, along `Lifecycle.principal`. NaN where the record has no positions.
    phases: (F, P) uint8, the retrospective phase: 0 early, 1 midlife, 2 late, 3 frozen.
    traces: (F, P) float32, the mean L1 displacement, in cells, of the transitions since the frame before; 0 in the
        first frame.
    """

    frame_steps: NDArray[np.int64]
    tokens: NDArray[np.int64]
    positions: NDArray[np.float32]
    phases: NDArray[np.uint8]
    traces: NDArray[np.float32]


def make_frames(
    record: Recorded,
    life: Lifecycle,
    *,
    max_frames: int = MAX_FRAMES,
    max_dead: int = MAX_DEAD,
    max_live: int = MAX_LIVE,
    show: bool = False,
) -> Frames:
    """The frames of an analysed record, from a second pass over it in bounded memory.

    choose.py has which steps and tokens they hold. `show` shows progress on standard error.
    """
    record = RecordUntil(record, life.summary["last_step"])  # behind that, a run that diverged is not finite
    chosen = choose_tokens(life.tokens, max_dead, max_live)["token"]
    rows = np.flatnonzero(life.tokens["token"].isin(chosen))
    tokens = life.tokens.iloc[rows]
    steps = np.concatenate([[life.summary["first_step"]], life.steps.index.to_numpy()])
    frame_places = choose_frames(steps, max_frames)
    ends = phase_ends(tokens[["last_early", "last_midlife", "last_late"]].to_numpy().T)
    canvas = Canvas(frame_places, len(rows), directions(life))
    with tqdm(total=len(steps), unit="step", leave=False, delay=BAR_AFTER, disable=not show) as bar:
        if record.kind == NORMS_ALONE:
            for recorded, norms in record.norm_blocks():
                canvas.add_l1(norms[:, rows, 0])
                bar.update(len(recorded))
        else:
            for recorded, bits in record.blocks(tokens["token"].tolist()):
                canvas.add_bits(bits)
                bar.update(len(recorded))
    return Frames(
        frame_steps=steps[frame_places],
        tokens=tokens["token"].to_numpy(),
        positions=canvas.positions,
        phases=np.stack([phase_numbers(step, ends) for step in steps[frame_places].tolist()]),
        traces=canvas.traces,
    )


def directions(life: Lifecycle) -> NDArray[np.float32]:
    """(D, 2): what positions are projected on; (0, 2) where there are none."""
    if not life.axis.size:
        return np.empty((0, 2), dtype=np.float32)
    pair = life.principal[:2] if np.isnan(life.axis).any() else (life.axis, life.across)
    return np.stack(list(pair), axis=1).astype(np.float32)


class Canvas:
    """Takes the recorded steps of P tokens in order, and keeps what is drawn of them in F frames."""

    def __init__(self, frame_places: NDArray[np.int64], num_tokens: int, directions: NDArray[np.float32]) -> None:
        self.places, self.directions = frame_places, directions
        self.positions = np.full((len(frame_places), num_tokens, 2), np.nan, dtype=np.float32)
        self.sums = np.zeros((len(frame_places), num_tokens))  # of L1, over the transitions since the frame before
        self.place = 0  # of the next recorded step
        self.before: Bits | None = None

    def add_bits(self, bits: Bits) -> None:
        """The next recorded steps (k, P, D)."""
        for rows in bits:
            frame = int(np.searchsorted(self.places, self.place))
            if self.before is not None:
                self.sums[frame] += row_motion(seen(self.before), seen(rows)).l1
            if self.places[frame] == self.place:
                with np.errstate(over="ignore", invalid="ignore"):  # of a run that diverges
                    self.positions[frame] = values(rows) @ self.directions
            self.before = rows
            self.place += 1

    def add_l1(self, l1: NDArray[np.float32]) -> None:
        """The next transitions (k, P) of a record without positions."""
        frames = np.searchsorted(self.places, self.place + 1 + np.arange(len(l1)))
        np.add.at(self.sums, frames, l1)
        self.place += len(l1)

    @property
    def traces(self) -> NDArray[np.float32]:
        """(F, P) means of L1."""
        lengths = np.diff(self.places, prepend=self.places[0])
        with np.errstate(over="ignore"):
            return (self.sums / np.maximum(lengths, 1)[:, None]).astype(np.float32)
