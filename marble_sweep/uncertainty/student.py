"""How many standard errors a claim needs where the standard error itself is estimated from few clusters."""

import math

SMALLEST_TAIL = 1e-300


def student_errors(normal_errors: float, df: float) -> float:
    """The standard errors that Student's t with `df` degrees of freedom needs for the certainty of `normal_errors`.

    The certainty is that of a normal deviate: 3 leave 0.135 % above them. With 7 degrees of freedom 4.53 leave as much.
    `df` is above 0 and may be a fraction; with infinitely many nothing changes. `normal_errors` is above 0; what leaves
    less than 1e-300 above it needs infinitely many.
    """
    if not math.isfinite(df):
        return normal_errors
    from scipy.special import stdtrit  # late: nothing else needs it, and importing it takes 0.2 s

    tail = math.erfc(normal_errors / math.sqrt(2)) / 2
    return float(-stdtrit(df, tail)) if tail > SMALLEST_TAIL else math.inf


def two_sided_p(errors: float, df: float) -> float:
    """The probability of a value so many standard errors from 0, or farther, under Student's t; NaN stays NaN."""
    from scipy.special import stdtr

    return float(2 * stdtr(df, -abs(errors)))


def two_sided_errors(confidence: float, df: float) -> float:
    """The standard errors to either side of 0 between which Student's t is with this probability."""
    from scipy.special import stdtrit

    return float(-stdtrit(df, (1 - confidence) / 2))
