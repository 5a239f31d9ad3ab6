"""Whether two settings differ, from the losses of their runs on the same held-out windows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from marble_sweep.uncertainty.clusters import Numbers, clustered_mean
from marble_sweep.uncertainty.student import two_sided_p


@dataclass(frozen=True)
class Difference:
    """A difference of means with its standard error; NaN where the windows cannot tell one."""

    mean: float
    error: float
    df: float  # effective degrees of freedom of the error
    p: float  # two-sided, by Student's t: of a difference so large where the settings are equal


def paired_difference(first: Numbers, second: Numbers, documents: NDArray[np.int64] | None = None) -> Difference:
    """The mean of `first` (num_seeds, num_windows) - that of `second`, which may have another number of seeds.

    The windows are the same ones in the order of the text, of `documents` (num_windows,), if known. The variance has
    two parts. Text: the clustered variance of the differences window by window, averaged over seeds. Seeds: s₁² / n₁ +
    s₂² / n₂ of the runs' means; a side with a single seed is taken to spread as the other, and with one on both sides
    the difference is that of two models. What seeds and windows share is in both parts, so the error is too large
    rather than too small. The degrees of freedom of the sum are Satterthwaite's ("An approximate distribution of
    estimates of variance components", Biometrics Bulletin 2, 1946).
    """
    estimate = clustered_mean(first.mean(axis=0) - second.mean(axis=0), documents)
    parts = [(estimate.error**2, estimate.df), *_seed_variances(first.mean(axis=1), second.mean(axis=1))]
    variance = sum(part for part, _ in parts)
    if variance == 0:  # the same difference on every window: of twins, 0
        return Difference(estimate.mean, 0.0, estimate.df, float(estimate.mean == 0))
    error = math.sqrt(variance)
    df = variance**2 / sum(part**2 / part_df for part, part_df in parts)
    return Difference(estimate.mean, error, df, two_sided_p(estimate.mean / error, df))


def _seed_variances(first: Numbers, second: Numbers) -> list[tuple[float, float]]:
    """The variance that the seeds give to each side's mean, with its degrees of freedom."""
    known = [means for means in (first, second) if len(means) > 1]
    if len(known) == 1:
        return [(float(known[0].var(ddof=1)) * (1 / len(first) + 1 / len(second)), len(known[0]) - 1)]
    return [(float(means.var(ddof=1)) / len(means), len(means) - 1) for means in known]


def holm(p_values: Sequence[float], num_hypotheses: int) -> list[float]:
    """The p-values corrected for `num_hypotheses` tests, of which these are some; NaN stays NaN.

    Holm ("A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979): in at
    most 5 % of cases one of the true hypotheses is then below 0.05, whichever those are. Tests that are not given count
    as if their p-values were the largest, which is on the safe side.
    """
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    known = [index for index, p in enumerate(p_values) if not math.isnan(p)]
    for rank, index in enumerate(sorted(known, key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, p_values[index] * (num_hypotheses - rank)))
        corrected[index] = largest
    return corrected
