"""Which tokens froze, when, and at what learning rate."""

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
MIN_QUIET_STEPS, QUIET_SHARE = 100, 0.1
MAX_THAWED = 0.01
MAX_HOLDOUTS = 0.05  # a larger share of tokens that are not frozen is the population, not its stragglers
FENCE = 1.5  # Tukey's: that many interquartile ranges above the third quartile
CONSTANT_LR = 0.95  # of the highest learning rate before: below that a token froze under a decayed one


def default_quiet_window(first_step: int, last_step: int, longest_pause: NDArray[np.int64]) -> int:
    """How many steps a token must stand still before the record's end for its freeze to count.

    A tenth of the record, at least MIN_QUIET_STEPS, and so many that at most MAX_THAWED of the tokens ever moved again
    after that; longest_pause (num_dead,) is after how many steps, at most, a token did.
    """
    pause = int(np.quantile(longest_pause, 1 - MAX_THAWED, method="inverted_cdf"))
    return max(MIN_QUIET_STEPS, math.ceil(QUIET_SHARE * (last_step - first_step)), pause + 1)


def freeze_steps(last_motion: Numbers, first_step: int, last_step: int, quiet_window: int) -> Numbers:
    """The first step after the last motion (NaN: never), where the token then stood still for the quiet window.

    NaN where it did not: how long it would have stood still, the record does not show.
    """
    moved_until = np.nan_to_num(last_motion, nan=first_step)
    return np.where(last_step - moved_until >= quiet_window, moved_until + 1, np.nan)


def freeze_quantile(freeze: Numbers, share: float) -> int | None:
    """The first step at which that share of the tokens is frozen; None where that is not reached (censored ones)."""
    step = np.quantile(np.nan_to_num(freeze, nan=np.inf), share, method="inverted_cdf")
    return int(step) if np.isfinite(step) else None


def stragglers(last_motion: Numbers, freeze: Numbers, first_step: int) -> NDArray[np.bool_]:
    """The tokens that moved long after the others.

    Where half of the tokens or more are frozen, those whose last motion is beyond Tukey's upper fence of all last
    motions. Where at most MAX_HOLDOUTS are not frozen, those too. (Tukey, Exploratory Data Analysis, 1977.)
    """
    not_frozen = np.isnan(freeze)
    if not_frozen.mean() > 1 / 2:
        return np.zeros(len(freeze), dtype=np.bool_)
    moved_until = np.nan_to_num(last_motion, nan=first_step)
    low, high = np.quantile(moved_until, [0.25, 0.75])
    beyond = moved_until > high + FENCE * (high - low)
    return beyond | not_frozen if not_frozen.mean() <= MAX_HOLDOUTS else beyond


def freeze_lr(freeze: Numbers, lr: "pd.Series[float]") -> Numbers:
    """The learning rate at each freeze step, divided by the highest one up to there; NaN where either is unknown.

    lr has the training steps as its index, in order.
    """
    shares = np.full(len(freeze), np.nan)
    if not len(lr):
        return shares
    steps, rates = lr.index.to_numpy(), lr.to_numpy()
    highest = np.maximum.accumulate(rates)
    frozen = np.flatnonzero(np.isfinite(freeze))
    place = np.searchsorted(steps, freeze[frozen])
    within = (place < len(steps)) & (highest[np.minimum(place, len(steps) - 1)] > 0)
    shares[frozen[within]] = (rates / np.where(highest > 0, highest, 1))[place[within]]
    return shares
