"""When tokens moved how for the last time, and the phases that follow from it."""

import numpy as np
from numpy.typing import NDArray

from marble_sweep.lifecycle.motion import Motion, Regimes, regimes
from marble_sweep.lifecycle.result import PHASES

Numbers = NDArray[np.float64]
HALF = 0.5


class LastSteps:
    """Goes through the transitions in order and keeps, for each token, the last one at which it moved like that."""

    def __init__(self, num_tokens: int, first_step: int) -> None:
        self.first_step = self.step = first_step  # the latter: at which the next transition begins
        self.early, self.midlife, self.late, self.motion = np.full((4, num_tokens), np.nan)
        self.longest_pause = np.zeros(num_tokens, dtype=np.int64)
        self.moved_until = np.full(num_tokens, first_step, dtype=np.int64)
        self.moving = np.zeros(num_tokens, dtype=np.bool_)  # in the last transition

    def update(self, ends: NDArray[np.int64], motion: Motion, dim: int) -> Regimes:
        """Transitions that end at `ends` (k,); motion has (k, num_tokens) values. Returns their regimes."""
        regime = regimes(motion, dim)
        moved = regime.moved
        for kept, shown in ((self.early, regime.early), (self.midlife, regime.midlife), (self.late, regime.late)):
            note_last(kept, ends, shown)
        note_last(self.motion, ends, moved)
        for end, moving in zip(ends, moved, strict=True):
            pause = self.step - self.moved_until[moving]  # it stood still up to where this transition began
            self.longest_pause[moving] = np.maximum(self.longest_pause[moving], pause)
            self.moved_until[moving] = self.step = int(end)
            self.moving = moving
        return regime

    @property
    def ends(self) -> Numbers:
        """(3, num_tokens) of `phase_ends`."""
        return phase_ends(np.stack([self.early, self.midlife, self.late]))


def note_last(kept: Numbers, ends: NDArray[np.int64], shown: NDArray[np.bool_]) -> None:
    """Put into `kept` (num_tokens,) the last of the steps `ends` at which `shown` (k, num_tokens) is true."""
    from_behind = shown[::-1].argmax(axis=0)
    any_shown = shown.any(axis=0)
    kept[any_shown] = ends[::-1][from_behind[any_shown]]


def phase_ends(last: Numbers) -> Numbers:
    """(3, num_tokens): the last step that is early; early or midlife; early, midlife or late. -inf: there is none.

    `last` (3, num_tokens) has the last step at which a token moved like that; NaN: never.
    """
    return np.maximum.accumulate(np.nan_to_num(last, nan=-np.inf), axis=0)


def populations(steps: NDArray[np.int64], ends: Numbers) -> NDArray[np.int64]:
    """(4, len(steps)): how many tokens are in each phase at each step; ends (3, num_tokens) of `phase_ends`."""
    num_tokens = ends.shape[1]
    # How many tokens are in this phase or an earlier one: those whose phase ends at the step or later.
    until = [num_tokens - np.searchsorted(np.sort(last), steps, side="left") for last in ends]
    counts = np.stack([*until, np.full(len(steps), num_tokens)])
    return np.diff(counts, axis=0, prepend=0)


def phase_numbers(step: int, ends: Numbers) -> NDArray[np.uint8]:
    """(num_tokens,) the number of each token's phase at a step: its place in PHASES; ends of `phase_ends`."""
    return (ends < step).sum(axis=0).astype(np.uint8)


def phase_names(step: int, ends: Numbers) -> list[str]:
    """The phase of each token at a step."""
    return [PHASES[number] for number in phase_numbers(step, ends)]


def step_after_half(steps: NDArray[np.int64], moving: Numbers, first_step: int, quiet_window: int) -> int | None:
    """The first step from which on at most half of the tokens move in a transition, to the end of the record.

    moving (n,) is the share that moves in the transitions that end at `steps`. None where the record does not go on for
    the quiet window.
    """
    busy = np.flatnonzero(moving > HALF)
    last_busy = steps[busy[-1]] if len(busy) else first_step
    return int(last_busy) + 1 if steps[-1] - last_busy >= quiet_window else None
