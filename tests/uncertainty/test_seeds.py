"""Spread over seeds against simulations, scipy's distributions and tables that everyone has."""

import math

import numpy as np
import pytest
from scipy import stats

from marble_sweep.uncertainty.seeds import deviation_interval, least_difference, power, seeds_needed

ROUNDS = 20_000


@pytest.mark.parametrize("num_seeds", [2, 3, 10])
def test_the_interval_of_a_deviation_holds_it(num_seeds: int) -> None:
    deviations = np.random.default_rng(0).normal(scale=0.3, size=(ROUNDS, num_seeds)).std(axis=1, ddof=1)
    low, high = deviation_interval(1.0, num_seeds)
    held = int(((low * deviations <= 0.3) & (high * deviations >= 0.3)).sum())
    assert stats.binom.ppf(0.001, ROUNDS, 0.95) <= held <= stats.binom.ppf(0.999, ROUNDS, 0.95)
    for bound, tail in ((low, 0.025), (high, 0.975)):
        assert stats.chi2.sf((num_seeds - 1) / bound**2, num_seeds - 1) == pytest.approx(tail)


@pytest.mark.parametrize("num_seeds", [2, 3, 8])
def test_equal_settings_are_seldom_beyond_noise(num_seeds: int) -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(2, ROUNDS, num_seeds))
    pooled = np.sqrt((first.var(axis=1, ddof=1) + second.var(axis=1, ddof=1)) / 2)
    beyond = int((np.abs(first.mean(axis=1) - second.mean(axis=1)) > least_difference(1.0, num_seeds) * pooled).sum())
    assert stats.binom.ppf(0.001, ROUNDS, 0.05) <= beyond <= stats.binom.ppf(0.999, ROUNDS, 0.05)


@pytest.mark.parametrize(("difference", "num_seeds"), [(1.0, 2), (1.0, 17), (3.0, 3), (0.2, 40)])
def test_power_is_how_often_a_difference_is_seen(difference: float, num_seeds: int) -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(2, ROUNDS, num_seeds))
    seen = int((stats.ttest_ind(first + difference, second, axis=1).pvalue < 0.05).sum())
    share = power(difference, 1.0, num_seeds)
    assert stats.binom.ppf(0.001, ROUNDS, share) <= seen <= stats.binom.ppf(0.999, ROUNDS, share)


# Cohen, "Statistical Power Analysis for the Behavioral Sciences" (1988), table 2.4.1: two-sided 0.05, power 0.80.
@pytest.mark.parametrize(("difference", "needed"), [(0.2, 393), (0.5, 64), (0.8, 26), (1.0, 17)])
def test_seeds_needed_are_those_of_the_tables(difference: float, needed: int) -> None:
    # The tables' last ones are rounded up from the same distribution.
    assert abs((seeds_needed(difference, 1.0) or 0) - needed) <= 1


@pytest.mark.parametrize(("difference", "deviation"), [(0.01, 0.003), (0.01, 0.03), (0.5, 0.31)])
def test_seeds_needed_are_the_fewest_that_suffice(difference: float, deviation: float) -> None:
    needed = seeds_needed(difference, deviation)
    assert needed is not None

    def reached(num_seeds: int) -> float:
        df, shift = 2 * num_seeds - 2, difference / deviation * math.sqrt(num_seeds / 2)
        critical = stats.t.ppf(0.975, df)
        return float(stats.nct.sf(critical, df, shift) + stats.nct.cdf(-critical, df, shift))

    assert reached(needed) >= 0.8
    assert needed == 2 or reached(needed - 1) < 0.8


def test_the_ends() -> None:
    assert seeds_needed(1.0, 0.0) == 2
    assert seeds_needed(1e9, 1e-9) == 2
    assert seeds_needed(1e-9, 1.0) is None
