"""How many standard errors a claim needs where the standard error itself is estimated from few clusters."""

import math
from statistics import NormalDist

NORMAL = NormalDist()


def student_errors(normal_errors: float, df: float) -> float:
    """The standard errors that Student's t with `df` degrees of freedom needs for the certainty of `normal_errors`.

    The certainty is that of a normal deviate: 3 leave 0.135 % above them. With 7 degrees of freedom 4.53 leave as much.
    `df` may be a fraction; with infinitely many nothing changes. `normal_errors` is above 0.
    """
    if not math.isfinite(df):
        return normal_errors
    from scipy.special import stdtrit  # late: nothing else needs it, and importing it takes 0.2 s

    return float(-stdtrit(df, NORMAL.cdf(-normal_errors)))
