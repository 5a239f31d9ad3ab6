"""Whether a held-out margin is real. What "beats" means is decided here alone.

A margin is a threshold's loss minus the model's, in nats per token, with its clustered standard error and the degrees
of freedom of that (uncertainty/clusters.py). "3 standard errors" stands for a certainty, that of 3 of a normal
distribution: with few degrees of freedom more of them are needed for as much (docs/truth.md).
"""

import math
from collections.abc import Mapping
from statistics import NormalDist

from marble_sweep.uncertainty.student import student_errors

NORMAL = NormalDist()


def beats(margin: float, error: float, errors_needed: float, df: float = math.inf) -> bool | None:
    """Whether a margin is above 0, as certainly as by `errors_needed` standard errors of a normal distribution.

    `df` are the degrees of freedom of the error. None where it was not measured: the margin or its error is NaN, as the
    error of a single window is. A margin or an error that is infinite shows nothing.
    """
    if math.isnan(margin) or math.isnan(error):
        return None
    return 0 < margin < math.inf and margin >= student_errors(errors_needed, df) * error


def degrees_of_freedom(row: Mapping[str, float], name: str) -> float:
    """Those of a row's `{name}_se`. Infinite in a row of an earlier version, whose windows counted as independent."""
    df = row.get(f"{name}_df", math.nan)
    return math.inf if math.isnan(df) else df


def errors_needed(single: float, num_evals: int) -> float:
    """How many standard errors of a normal distribution a margin needs at any of `num_evals` that may end a run.

    `single` is what it needs where there is one evaluation. K evaluations give chance K tries, so each of them is
    allowed a K-th of a single one's error probability (Bonferroni; it holds however they depend on each other): with
    9 evaluations, 3 standard errors become 3.62.
    """
    if num_evals <= 1:
        return single
    return -NORMAL.inv_cdf(NORMAL.cdf(-single) / num_evals)
