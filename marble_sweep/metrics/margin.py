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
# The margin, in evals.csv, that decides for a baseline. Of the uniform, the fitted and the tempered unigram the
# tempered one is never worse than the others (data/baselines.py), so to beat it is to beat all three.
DECIDING_MARGINS = {"unigram": "tempered", "oracle": "oracle", "bigram": "bigram"}
Measured = tuple[float, float, float]  # a number, its standard error, and the degrees of freedom of that


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


def measured(row: Mapping[str, float], name: str) -> Measured:
    """A number of a row of evals.csv; NaN where the row has none."""
    return row.get(name, math.nan), row.get(f"{name}_se", math.nan), degrees_of_freedom(row, name)


def beats_by(number: Measured, errors_needed: float) -> bool | None:
    """`beats`, of what `measured` returns."""
    value, error, df = number
    return beats(value, error, errors_needed, df)


def beats_with_context(margin: Measured, context_gain: Measured, errors_needed: float) -> bool | None:
    """Whether a margin to a baseline and the gain from the context are both above 0.

    Held-out text of another kind than training can put a model below a baseline without any use of context. Both at
    once err no more often than one of them. None where one was not measured and the other is no failure.
    """
    results = [beats_by(margin, errors_needed), beats_by(context_gain, errors_needed)]
    return None if None in results and False not in results else all(results)


def errors_needed(single: float, num_evals: int) -> float:
    """How many standard errors of a normal distribution a margin needs at any of `num_evals` that may end a run.

    `single` is what it needs where there is one evaluation. K evaluations give chance K tries, so each of them is
    allowed a K-th of a single one's error probability (Bonferroni; it holds however they depend on each other): with
    9 evaluations, 3 standard errors become 3.62.
    """
    if num_evals <= 1:
        return single
    return -NORMAL.inv_cdf(NORMAL.cdf(-single) / num_evals)
