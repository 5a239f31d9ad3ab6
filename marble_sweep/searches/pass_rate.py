"""Does a recipe certify on a large enough share of seeds? A sequential test, and the quick form.

The *pass rate* of a recipe is the probability that a run on a fresh seed certifies. Seeds are trained one after the
other. After every one of them the recipe is *accepted* where a pass rate below the asked one is excluded, *ruled out*
where the asked one or more is excluded, and otherwise trained on the next seed, up to a largest number. What is then
neither is *undecided*.

Looking after every seed gives chance many tries. So the error probability of a test, its level, is spent little by
little: by seed n of N at most level * n / N of it (an alpha-spending function: Lan and DeMets, Biometrika 70, 1983).
The bounds follow from the exact distribution of the number of passes. They hold for every pass rate on the wrong side
of the asked one: whatever the bounds, more passes can only make acceptance likelier, and fewer ruling out.

A search tests several recipes. The k-th is tested at the level (1 - confidence) / (k (k + 1)); these levels add up to
1 - confidence. A recipe's pass rate is either below the asked one or not, so only one of its two tests can err. The
probability that a search accepts or rules out any recipe wrongly is therefore at most 1 - confidence in all.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from marble_sweep.search_config import SearchConfig

POWER = 0.8  # with which a recipe of the aimed-at pass rate is accepted
ROUNDING = 1e-9  # of a probability: far more than the errors of some hundred sums
TESTS_AT_ONCE = 32  # that are tried for their power together, in arrays
AIM = 0.25  # which fails this share of the seeds that the asked pass rate allows to fail: 0.95 where 0.8 is asked


class SeedResult(StrEnum):
    """How a run on a fresh seed ended. An undecided one counts against acceptance and against ruling out."""

    PASSED = "passed"
    FAILED = "failed"
    UNDECIDED = "undecided"  # neither certified, nor is a margin above 0 excluded
    CRASHED = "crashed"
    RUNNING = "running"


class Verdict(StrEnum):
    """What fresh seeds show about a recipe."""

    ACCEPTED = "accepted"
    RULED_OUT = "ruled_out"
    UNDECIDED = "undecided"
    CRASHED = "crashed"
    OPEN = "open"


@dataclass(frozen=True)
class Tally:
    """The fresh seeds of a recipe that count, in order, up to the one that decided."""

    verdict: Verdict
    seeds: int = 0
    passed: int = 0
    undecided: int = 0


@dataclass(frozen=True)
class Design:
    """The bounds of a test: entry n - 1 is for n seeds."""

    accept: tuple[int, ...]  # so many passes or more: accepted; more than n where so few seeds cannot show it
    rule_out: tuple[int, ...]  # so many passes or fewer: ruled out; -1 where so few seeds cannot show it

    @property
    def max_seeds(self) -> int:
        return len(self.accept)


@dataclass(frozen=True)
class PassRate:
    """The standard that an answer's pass rate is above `rate`, at `confidence` over all recipes of a search."""

    rate: float
    confidence: float

    def level(self, number: int) -> float:
        """The error probability that the test of the `number`-th recipe may spend, counted from 1."""
        return (1 - self.confidence) / (number * (number + 1))

    def design(self, number: int) -> Design:
        return design(self.rate, self.level(number))

    def verdict(self, number: int, tally: Tally) -> Verdict:
        """What so many passed and undecided seeds show.

        A test also ends undecided where acceptance is out of reach, or excluded by what certified alone, and the share
        of seeds that did not fail would not rule the recipe out at the end either: more seeds would hardly tell more.
        """
        bounds, seeds = self.design(number), tally.seeds
        if seeds == 0:
            return Verdict.OPEN
        not_failed = tally.passed + tally.undecided
        accept, rule_out = bounds.accept[seeds - 1], bounds.rule_out[seeds - 1]
        if tally.passed >= accept:
            return Verdict.ACCEPTED
        if not_failed <= rule_out:
            return Verdict.RULED_OUT
        most, last_rule_out = bounds.max_seeds, bounds.rule_out[-1]
        is_out_of_reach = tally.passed <= rule_out or tally.passed + most - seeds < bounds.accept[-1]
        has_no_hope = not_failed * most > last_rule_out * seeds or not_failed > last_rule_out
        ended = seeds == most or (is_out_of_reach and has_no_hope)
        return Verdict.UNDECIDED if ended else Verdict.OPEN


Standard = int | PassRate  # the quick form: as many fresh seeds, all of which must certify; or a pass rate


def confidence_of(config: SearchConfig) -> float:
    """The confidence of all that a search says of one threshold, so that all thresholds together have the asked one."""
    number = len(config.thresholds or [""])
    return config.confidence if number == 1 else 1 - (1 - config.confidence) / number


def standard_of(config: SearchConfig) -> Standard:
    """The standard that a search is asked for, by threshold."""
    return PassRate(config.pass_rate, confidence_of(config)) if config.confirm_seeds is None else config.confirm_seeds


@functools.lru_cache(maxsize=1024)  # a decision judges every recipe again, and most have no new result
def judge(standard: Standard, number: int, results: tuple[SeedResult, ...]) -> Tally:
    """What the fresh seeds of the `number`-th tested recipe show; `results` in the order of their seeds.

    Only the seeds before the first one that still runs count, so workers that train several at once decide as one
    would. A crash says nothing about the recipe, and ends its test.
    """
    tally = Tally(Verdict.OPEN)
    for result in results:
        tally = _with_verdict(standard, number, tally)
        if tally.verdict != Verdict.OPEN or result == SeedResult.RUNNING:
            return tally
        if result == SeedResult.CRASHED:
            return Tally(Verdict.CRASHED, tally.seeds, tally.passed, tally.undecided)
        passed = tally.passed + (result == SeedResult.PASSED)
        tally = Tally(Verdict.OPEN, tally.seeds + 1, passed, tally.undecided + (result == SeedResult.UNDECIDED))
    return _with_verdict(standard, number, tally)


def _with_verdict(standard: Standard, number: int, tally: Tally) -> Tally:
    if isinstance(standard, PassRate):
        verdict = standard.verdict(number, tally)
    elif tally.passed < tally.seeds:
        verdict = Verdict.UNDECIDED
    else:
        verdict = Verdict.ACCEPTED if tally.seeds >= standard else Verdict.OPEN
    return Tally(verdict, tally.seeds, tally.passed, tally.undecided)


# ------------------------------------------------------------------------------------ the design of a test


@functools.cache
def design(rate: float, level: float) -> Design:
    """The test with the fewest seeds that accepts a recipe of the aimed-at pass rate with probability POWER."""
    aim = 1 - AIM * (1 - rate)
    for first in itertools.count(fewest_seeds(rate, level, aim), TESTS_AT_ONCE):
        sizes = np.arange(first, first + TESTS_AT_ONCE)
        accept = least_passes(rate, level, sizes)
        # The most passes that rule out are, of n seeds, the least failures of a recipe that fails 1 - rate of them.
        rule_out = np.arange(1, sizes[-1] + 1) - least_passes(1 - rate, level, sizes)
        for row in np.nonzero(_accepted(sizes, accept, rule_out, aim) >= POWER)[0]:
            seeds = sizes[row]
            return Design(tuple(accept[row, :seeds].tolist()), tuple(rule_out[row, :seeds].tolist()))
    raise AssertionError("with enough seeds any power is reached")


def fewest_seeds(rate: float, level: float, aim: float) -> int:
    """With fewer seeds no test of this level accepts a recipe of the aimed-at pass rate with probability POWER.

    Not even the most powerful one, that of Neyman and Pearson (1933): it looks once, accepts from some number of passes
    on, and draws a lot at one pass less, by which it spends the level to the full.
    """
    wrong, right = np.ones(1), np.ones(1)  # the distributions of the passes at `rate` and at the aimed-at one
    for seeds in itertools.count(1):
        wrong, right = _next(wrong, rate), _next(right, aim)
        tails = np.append(np.cumsum(wrong[::-1])[::-1], 0.0)
        bound = int(np.argmax(tails <= level))
        lot = (level - tails[bound]) / wrong[bound - 1]
        if right[bound:].sum() + lot * right[bound - 1] >= POWER - ROUNDING:
            return seeds
    raise AssertionError("with enough seeds any power is reached")


def least_passes(rate: float, level: float, sizes: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """After every seed, the least passes to exclude a pass rate below `rate` with an error of at most `level` in all.

    A row for every test, which has so many seeds as `sizes` says; n + 1 of n seeds where so few cannot show it. Columns
    beyond a test's last seed mean nothing.
    """
    most = np.asarray(sizes)
    distribution, spent = np.ones((len(most), 1)), np.zeros(len(most))
    rows, bounds = np.arange(len(most)), []
    for seeds in range(1, max(most) + 1):
        distribution = _next(distribution, rate)
        tails = np.cumsum(distribution[:, ::-1], axis=1)[:, ::-1]  # the probability of so many passes or more
        allowed = tails <= (level * seeds / most - spent)[:, np.newaxis]
        bound = np.where(allowed[:, -1], np.argmax(allowed, axis=1), seeds + 1)
        spent += np.where(bound <= seeds, tails[rows, np.minimum(bound, seeds)], 0.0)
        distribution[np.arange(seeds + 1) >= bound[:, np.newaxis]] = 0.0
        bounds.append(bound)
    return np.stack(bounds, axis=1)


def _accepted(
    sizes: NDArray[np.int64], accept: NDArray[np.int64], rule_out: NDArray[np.int64], rate: float
) -> NDArray[np.float64]:
    """How likely every test accepts a recipe of this pass rate."""
    distribution, accepted = np.ones((len(sizes), 1)), np.zeros(len(sizes))
    for seeds in range(1, accept.shape[1] + 1):
        distribution = _next(distribution, rate)
        passes, has_seed = np.arange(seeds + 1), seeds <= sizes
        is_accepted = passes >= accept[:, seeds - 1, np.newaxis]
        accepted += np.where(has_seed, np.where(is_accepted, distribution, 0.0).sum(axis=1), 0.0)
        distribution[is_accepted | (passes <= rule_out[:, seeds - 1, np.newaxis])] = 0.0
    return accepted


def crossing(bounds: Design, rate: float) -> tuple[float, float, float]:
    """For a recipe of this pass rate: how likely it is accepted, how likely ruled out, and the mean number of seeds."""
    distribution = np.ones(1)
    accepted = ruled_out = mean_seeds = 0.0
    for accept, rule_out in zip(bounds.accept, bounds.rule_out, strict=True):
        mean_seeds += float(distribution.sum())
        distribution = _next(distribution, rate)
        accepted += float(distribution[accept:].sum())
        ruled_out += float(distribution[: rule_out + 1].sum())
        distribution[accept:] = 0.0
        distribution[: rule_out + 1] = 0.0
    return accepted, ruled_out, mean_seeds


def _next(distribution: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    """The distribution of the number of passes, which is the last axis, after one more seed."""
    following = np.zeros((*distribution.shape[:-1], distribution.shape[-1] + 1))
    following[..., :-1] += (1 - rate) * distribution
    following[..., 1:] += rate * distribution
    return following


# ------------------------------------------------------------------------------------ what is said of a pass rate


def interval(tally: Tally, confidence: float) -> tuple[float, float]:
    """An interval for the pass rate of one recipe: Clopper and Pearson, Biometrika 26, 1934.

    Undecided seeds count as failed for its lower end and as passed for its upper end. It is exact for a number of seeds
    that was fixed before; where the test stopped, it describes. It lies on the test's side of the asked rate: no bound
    of the test is reached with more than half of 1 - confidence.
    """
    error = (1 - confidence) / 2
    low = _lower_bound(tally.passed, tally.seeds, error)
    failed = tally.seeds - tally.passed - tally.undecided
    return low, 1 - _lower_bound(failed, tally.seeds, error)


def _lower_bound(passed: int, seeds: int, error: float) -> float:
    """The pass rate at which so many passes or more have this probability; 0 where none passed."""
    if passed == 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        tail = math.fsum(
            math.comb(seeds, count) * middle**count * (1 - middle) ** (seeds - count)
            for count in range(passed, seeds + 1)
        )
        low, high = (middle, high) if tail < error else (low, middle)
    return low


def quick_bound(seeds: int, confidence: float) -> float:
    """The pass rate that `seeds` of as many show: 0.37 for 3 of 3 at a confidence of 0.95."""
    return float((1 - confidence) ** (1 / seeds))
