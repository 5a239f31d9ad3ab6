"""Whether a held-out margin is real: the one place that decides what "beats" means.

A margin is a threshold's loss minus the model's, in nats per token, with its standard error over held-out windows.
"""

import math
from statistics import NormalDist

NORMAL = NormalDist()
LOOK_RATIO = math.sqrt(2)  # between the steps of two looks


def beats(margin: float, error: float, errors_needed: float) -> bool | None:
    """Whether a margin is above 0, by at least `errors_needed` of its standard errors.

    None where it was not measured: the margin or its error is NaN, as the error of a single window is. A margin or an
    error that is infinite shows nothing.
    """
    if math.isnan(margin) or math.isnan(error):
        return None
    return 0 < margin < math.inf and margin >= errors_needed * error


def look_steps(looks: int, total_steps: int) -> list[int]:
    """The steps of at most `looks` looks, each a factor of √2 after the one before, the last at the end."""
    return sorted({max(1, round(total_steps / LOOK_RATIO**back)) for back in range(looks)})


def errors_needed(single_look: float, looks: int) -> float:
    """How many standard errors each of `looks` looks needs for the error rate of `single_look` on one look.

    Looking K times gives chance K tries, so each look gets a K-th of the error that a single look would be allowed
    (Bonferroni; it holds however the looks depend on each other): with 9 looks, 3 standard errors become 3.62.
    """
    if looks <= 1:
        return single_look
    return -NORMAL.inv_cdf(NORMAL.cdf(-single_look) / looks)


def errors_needed_by_run(single_look: float, *, stop: bool, looks: int, total_steps: int) -> float:
    """How many standard errors the margins of a run need, wherever they are judged.

    A run that ends at the first look that suffices (certify.stop) gives chance as many tries as it has looks.
    """
    return errors_needed(single_look, len(look_steps(looks, total_steps))) if stop else single_look
