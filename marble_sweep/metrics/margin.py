"""Whether a held-out margin is real: the one place that decides what "beats" means.

A margin is a threshold's loss minus the model's, in nats per token, with its standard error over held-out windows.
"""

import math
from statistics import NormalDist

NORMAL = NormalDist()


def beats(margin: float, error: float, errors_needed: float) -> bool | None:
    """Whether a margin is above 0, by at least `errors_needed` of its standard errors.

    None where it was not measured: the margin or its error is NaN, as the error of a single window is. A margin or an
    error that is infinite shows nothing.
    """
    if math.isnan(margin) or math.isnan(error):
        return None
    return 0 < margin < math.inf and margin >= errors_needed * error


def errors_needed(single: float, num_evals: int) -> float:
    """How many standard errors a margin needs at any of `num_evals` evaluations that may end a run.

    `single` is what it needs where there is one evaluation. K evaluations give chance K tries, so each of them is
    allowed a K-th of a single one's error probability (Bonferroni; it holds however they depend on each other): with
    9 evaluations, 3 standard errors become 3.62.
    """
    if num_evals <= 1:
        return single
    return -NORMAL.inv_cdf(NORMAL.cdf(-single) / num_evals)
