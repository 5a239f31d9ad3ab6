"""Differences of settings against a plain implementation, closed forms and simulations of known variances."""

import math
import statistics
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from marble_sweep.uncertainty.pairs import holm, paired_difference
from marble_sweep.uncertainty.student import two_sided_errors, two_sided_p

Numbers = NDArray[np.float64]
ROUNDS = 2_000
NUM_DOCUMENTS, PER_DOCUMENT = 32, 4
DOCUMENTS = np.repeat(np.arange(NUM_DOCUMENTS), PER_DOCUMENT)


def draw(rng: np.random.Generator, num_seeds: int, seeds: float, text: float, both: float) -> Numbers:
    """Losses (num_seeds, num_windows) of a setting whose expected loss is 0.

    The standard deviations are of a seed, of the setting on a document and as much on a window, and of a seed on a
    window. What all settings share on a window cancels in a difference.
    """
    on_text = text * (rng.normal(size=NUM_DOCUMENTS)[DOCUMENTS] + rng.normal(size=len(DOCUMENTS)))
    return on_text + seeds * rng.normal(size=(num_seeds, 1)) + both * rng.normal(size=(num_seeds, len(DOCUMENTS)))


def plain_difference(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Mean, error, degrees of freedom and p by the definitions: equal documents, two seeds or more a side."""
    num_windows = len(first[0])
    differences = [
        statistics.fmean(run[w] for run in first) - statistics.fmean(run[w] for run in second)
        for w in range(num_windows)
    ]
    means = [
        statistics.fmean(differences[document * PER_DOCUMENT : (document + 1) * PER_DOCUMENT])
        for document in range(NUM_DOCUMENTS)
    ]
    parts = [(statistics.variance(means) / NUM_DOCUMENTS, NUM_DOCUMENTS - 1)]
    parts += [
        (statistics.variance([statistics.fmean(run) for run in runs]) / len(runs), len(runs) - 1)
        for runs in (first, second)
    ]
    variance = sum(part for part, _ in parts)
    df = variance**2 / sum(part**2 / part_df for part, part_df in parts)
    mean, error = statistics.fmean(differences), math.sqrt(variance)
    return mean, error, df, 2 * float(stats.t.sf(abs(mean / error), df))


@pytest.mark.parametrize(("num_first", "num_second"), [(2, 2), (3, 2), (5, 4)])
def test_a_difference_is_that_of_the_definitions(num_first: int, num_second: int) -> None:
    rng = np.random.default_rng(4)  # whose documents' sums are independent enough to be left unmerged
    first, second = draw(rng, num_first, 0.1, 0.1, 0.1), draw(rng, num_second, 0.05, 0.1, 0.1) + 0.05
    found = paired_difference(first, second, DOCUMENTS)
    expected = plain_difference(first.tolist(), second.tolist())
    # A variance is a difference of sums of some hundred numbers below 1.
    assert (found.mean, found.error, found.df, found.p) == pytest.approx(expected, rel=1e-9)


def test_a_single_seed_a_side_has_the_error_of_the_text_alone() -> None:
    rng = np.random.default_rng(4)
    first, second = draw(rng, 1, 5.0, 0.1, 0.1), draw(rng, 1, 5.0, 0.1, 0.1)
    found = paired_difference(first, second, DOCUMENTS)
    means = (first - second).reshape(NUM_DOCUMENTS, PER_DOCUMENT).mean(axis=1)
    assert found.error == pytest.approx(means.std(ddof=1) / math.sqrt(NUM_DOCUMENTS))
    assert found.df == pytest.approx(NUM_DOCUMENTS - 1)


def test_a_single_seed_borrows_the_spread_of_the_other_side() -> None:
    seeds = np.array([[1.0], [2.0], [4.0]])
    windows = np.zeros((1, len(DOCUMENTS)))
    found = paired_difference(windows + 1.0, windows + seeds, DOCUMENTS)
    assert found.error == pytest.approx(statistics.stdev([1, 2, 4]) * math.sqrt(1 + 1 / 3))
    assert found.df == pytest.approx(2)


def test_twins_do_not_differ() -> None:
    losses = draw(np.random.default_rng(0), 1, 0.1, 0.1, 0.1)
    found = paired_difference(losses, losses.copy(), DOCUMENTS)
    assert (found.mean, found.error, found.p) == (0, 0, 1)
    assert paired_difference(losses, losses + 1, DOCUMENTS).p < 1e-9


def test_windows_that_tell_no_error_give_no_p() -> None:
    trend = np.linspace(0, 1, 64)[None] ** 2  # every window resembles its neighbours
    assert math.isnan(paired_difference(trend, np.zeros((1, 64))).p)


def test_students_t_is_that_of_scipy() -> None:
    for errors, df in ((0.0, 3.0), (2.5, 1.7), (-4.0, 30.0)):
        assert two_sided_p(errors, df) == pytest.approx(2 * stats.t.sf(abs(errors), df))
    assert two_sided_errors(0.95, 7) == pytest.approx(stats.t.ppf(0.975, 7))


@pytest.mark.parametrize(
    ("p_values", "num", "expected"),
    [
        ([0.01, 0.04, 0.03], 3, [0.03, 0.06, 0.06]),
        ([0.04], 1, [0.04]),
        ([0.01, 0.02], 10, [0.1, 0.18]),
        ([0.5, 0.9], 2, [1.0, 1.0]),
        ([0.02, math.nan], 2, [0.04, math.nan]),
        ([], 0, []),
    ],
)
def test_holms_correction(p_values: list[float], num: int, expected: list[float]) -> None:
    assert holm(p_values, num) == pytest.approx(expected, nan_ok=True)


def false_positives(num_settings: int, num_shown: int, num_corrected: int, rounds: int) -> int:
    """In how many rounds of equal settings a corrected p of the pairs with the best is below 0.05."""
    rng = np.random.default_rng(1)
    count = 0
    for _ in range(rounds):
        settings = sorted(
            (draw(rng, 3, 0.01, 0.02, 0.02) for _ in range(num_settings)), key=lambda losses: losses.mean()
        )
        pairs = [(a, b) for index, a in enumerate(settings) for b in settings[index + 1 :]][:num_shown]
        p_values = [paired_difference(a, b, DOCUMENTS).p for a, b in pairs]
        count += min(holm(p_values, num_corrected)) < 0.05
    return count


def most(share: float, rounds: int) -> float:
    """What a count of `rounds` with this share exceeds in 0.1 % of cases."""
    return float(stats.binom.ppf(0.999, rounds, share))


def test_equal_settings_are_called_different_as_seldom_as_promised() -> None:
    assert false_positives(3, 3, 3, ROUNDS) <= most(0.05, ROUNDS)


@pytest.mark.slow
def test_the_best_of_many_equal_settings_is_not_called_better() -> None:
    """Which pairs are shown is decided by the same losses: a correction for those that are shown is not enough."""
    assert false_positives(20, 19, 190, ROUNDS) <= most(0.05, ROUNDS)
    assert false_positives(20, 19, 19, ROUNDS) > most(0.05, ROUNDS)


@pytest.mark.parametrize(
    ("num_first", "num_second", "seeds", "text", "both", "largest"),
    [
        (1, 1, 0.0, 0.05, 0.01, 0.97),
        (3, 3, 0.02, 0.01, 0.01, 0.97),
        (2, 2, 0.005, 0.05, 0.02, 0.975),
        (5, 3, 0.003, 0.03, 0.03, 0.975),
        (3, 3, 0.003, 0.003, 0.05, 1.0),  # what seeds and windows share is counted twice
    ],
)
def test_intervals_hold_the_truth(
    num_first: int, num_second: int, seeds: float, text: float, both: float, largest: float
) -> None:
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(ROUNDS):
        first, second = draw(rng, num_first, seeds, text, both), draw(rng, num_second, seeds, text, both)
        found = paired_difference(first, second, DOCUMENTS)
        held += abs(found.mean) <= two_sided_errors(0.95, found.df) * found.error
    assert held >= ROUNDS - most(0.05, ROUNDS)
    assert held / ROUNDS <= largest
