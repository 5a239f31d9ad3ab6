"""Whether a held-out margin is real. What "beats" means is decided here alone.

A margin is a threshold's loss minus the model's, in nats per token, with its standard error over held-out windows.
"""

import math
from statistics import NormalDist

NORMAL = NormalDist()
# The margin, in evals.csv, that decides for a baseline. Of the uniform, the fitted and the tempered unigram the
# tempered one is never worse than the others (data/baselines.py), so to beat it is to beat all three.
DECIDING_MARGINS = {"unigram": "tempered", "oracle": "oracle", "bigram": "bigram"}


def beats(margin: float, error: float, errors_needed: float) -> bool | None:
    """Whether a margin is above 0, by at least `errors_needed` of its standard errors.

    None where it was not measured: the margin or its error is NaN, as the error of a single window is. A margin or an
    error that is infinite shows nothing.
    """
    if math.isnan(margin) or math.isnan(error):
        return None
    return 0 < margin < math.inf and margin >= errors_needed * error


def beats_with_context(
    margin: tuple[float, float], context_gain: tuple[float, float], errors_needed: float
) -> bool | None:
    """Whether a margin to a baseline and the gain from the context, each with its error, are both above 0.

    Held-out text of another kind than training can put a model below a baseline without any use of context. Both at
    once err no more often than one of them. None where one was not measured and the other is no failure.
    """
    results = [beats(*margin, errors_needed), beats(*context_gain, errors_needed)]
    return None if None in results and False not in results else all(results)


def errors_needed(single: float, num_evals: int) -> float:
    """How many standard errors a margin needs at any of `num_evals` evaluations that may end a run.

    `single` is what it needs where there is one evaluation. K evaluations give chance K tries, so each of them is
    allowed a K-th of a single one's error probability (Bonferroni; it holds however they depend on each other): with
    9 evaluations, 3 standard errors become 3.62.
    """
    if num_evals <= 1:
        return single
    return -NORMAL.inv_cdf(NORMAL.cdf(-single) / num_evals)
