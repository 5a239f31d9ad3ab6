"""Which steps and which tokens of a record a page shows, so that its size has a bound whatever the record's length."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

MAX_FRAMES = 500  # of one run; a slider has no more notches than that on a screen
MAX_DEAD, MAX_LIVE = 4_000, 400  # tokens of one run
MAX_STRAGGLERS = 400  # beyond the dead that are shown anyway


def choose_frames(steps: NDArray[np.int64], max_frames: int) -> NDArray[np.int64]:
    """Places of the steps (n,), which are sorted, to show: at most `max_frames` (3 or more), first and last among them.

    Most happens early, so half of them are evenly spaced in the logarithm of the step, half in its square root. The
    logarithm alone would leave the freeze, which comes late, to a handful of frames.

    >>> choose_frames(np.arange(20_000), 12).tolist()
    [0, 1, 7, 53, 381, 800, 2759, 3200, 7200, 12799, 19999]
    """
    if len(steps) <= max_frames:
        return np.arange(len(steps))
    since_start = steps - steps[0]
    half = max_frames // 2
    early = np.geomspace(since_start[1], since_start[-1], half)
    late = np.linspace(0, np.sqrt(since_start[-1]), max_frames - half) ** 2
    wanted = np.concatenate([early, late])
    above = np.clip(np.searchsorted(since_start, wanted), 1, len(steps) - 1)
    is_nearer_below = wanted - since_start[above - 1] <= since_start[above] - wanted
    return np.unique(above - is_nearer_below)


def choose_tokens(tokens: pd.DataFrame, max_dead: int = MAX_DEAD, max_live: int = MAX_LIVE) -> pd.DataFrame:
    """The rows of `Lifecycle.tokens` to show: the dead in the order in which they froze, then the live likewise.

    Tokens that never moved come first, those that have not frozen last. Of more tokens than may be shown, those are
    taken that are evenly spaced in this order, so that the phases keep their shares; and the stragglers, who are few
    and looked for, in addition.
    """
    order = tokens.sort_values(
        ["censored", "last_motion", "last_midlife", "last_early", "token"], na_position="first", kind="stable"
    )
    is_dead = order["is_dead"].to_numpy(dtype=bool)
    dead, live, stragglers = map(np.flatnonzero, (is_dead, ~is_dead, is_dead & order["is_straggler"].to_numpy(bool)))
    shown = np.union1d(_evenly(dead, max_dead), _evenly(stragglers, MAX_STRAGGLERS))
    return order.iloc[np.concatenate([shown, _evenly(live, max_live)])]


def _evenly(places: NDArray[np.int64], number: int) -> NDArray[np.int64]:
    """At most `number` of them, evenly spaced, the first and last among them."""
    return places[np.rint(np.linspace(0, len(places) - 1, min(number, len(places)))).astype(np.int64)]
