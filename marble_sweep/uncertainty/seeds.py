"""What the spread over seeds allows to tell apart, and how many seeds a difference needs."""

import math

from marble_sweep.uncertainty.student import two_sided_errors

CONFIDENCE, POWER = 0.95, 0.8
MOST_SEEDS = 1 << 20


def deviation_interval(deviation: float, num_seeds: int) -> tuple[float, float]:
    """The interval, at CONFIDENCE, of a standard deviation of num_seeds >= 2 normal values, by chi-squared."""
    from scipy.special import chdtri  # late: importing it takes 0.2 s

    df, tail = num_seeds - 1, (1 - CONFIDENCE) / 2
    return deviation * math.sqrt(df / chdtri(df, tail)), deviation * math.sqrt(df / chdtri(df, 1 - tail))


def least_difference(deviation: float, num_seeds: int) -> float:
    """The smallest observed difference beyond noise, at CONFIDENCE, of two settings of num_seeds >= 2 seeds each.

    Student's t with 2 num_seeds - 2 degrees of freedom times the standard error of the difference.
    """
    return two_sided_errors(CONFIDENCE, 2 * num_seeds - 2) * deviation * math.sqrt(2 / num_seeds)


def power(difference: float, deviation: float, num_seeds: int) -> float:
    """How often two settings of num_seeds >= 2 seeds each, `difference` apart, are observed beyond noise.

    Student's two-sample test under the alternative, by the noncentral t distribution. `deviation` is above 0.
    """
    from scipy.special import nctdtr

    df, shift = 2 * num_seeds - 2, difference / (deviation * math.sqrt(2 / num_seeds))
    critical = two_sided_errors(CONFIDENCE, df)
    if shift > critical + 40:  # far beyond any doubt, where the function may give none
        return 1.0
    return float(1 - nctdtr(df, shift, critical) + nctdtr(df, shift, -critical))


def seeds_needed(difference: float, deviation: float) -> int | None:
    """The seeds a side, 2 or more, with which a difference > 0 is observed beyond noise with POWER.

    None where MOST_SEEDS do not suffice.
    """
    if deviation == 0:
        return 2
    enough = 2
    while power(difference, deviation, enough) < POWER:
        enough *= 2
        if enough > MOST_SEEDS:
            return None
    too_few = max(1, enough // 2)
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if power(difference, deviation, middle) < POWER:
            too_few = middle
        else:
            enough = middle
    return enough
