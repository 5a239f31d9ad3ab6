"""Sources of numbers with planted dependence between neighbours, all with mean 0 and variance 1."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from marble_sweep.uncertainty.clusters import clustered_mean
from marble_sweep.uncertainty.student import student_errors

Numbers = NDArray[np.float64]
Documents = NDArray[np.int64] | None
Source = Callable[[np.random.Generator], tuple[Numbers, Documents]]

NORMAL_95 = 1.959964  # standard errors that hold 95 % of a normal distribution between them
TAIL_ERRORS, TAIL = 3.0, 0.0026998  # and the share that is farther away


def autoregressive(rng: np.random.Generator, num: int, correlation: float) -> Numbers:
    """A stationary AR(1) series (num,) whose neighbours have this correlation."""
    shocks = rng.standard_normal(num)
    shocks[1:] *= math.sqrt(1 - correlation**2)
    series: Numbers = lfilter([1.0], [1.0, -correlation], shocks)
    return series


def ar1(num: int, correlation: float, share: float = 1.0) -> Source:
    """An AR(1) series that has the given share of the variance; the rest is noise, which hides the dependence."""

    def draw(rng: np.random.Generator) -> tuple[Numbers, Documents]:
        series = autoregressive(rng, num, correlation)
        if share < 1:
            series = math.sqrt(share) * series + math.sqrt(1 - share) * rng.standard_normal(num)
        return series, None

    return draw


def documents(num: int, how_many: int, spread: float, shared: float, correlation: float = 0.0) -> Source:
    """About `num` values in documents of log-normal sizes, whose logarithms have the standard deviation `spread`.

    The share `shared` of the variance is common to a document; the rest is AR(1) over all values.
    """

    def draw(rng: np.random.Generator) -> tuple[Numbers, Documents]:
        sizes = np.exp(spread * rng.standard_normal(how_many))
        counts = np.maximum(1, np.round(num * sizes / sizes.sum())).astype(int)
        numbers = np.repeat(np.arange(how_many), counts)
        rest = autoregressive(rng, len(numbers), correlation) if correlation else rng.standard_normal(len(numbers))
        return math.sqrt(shared) * rng.standard_normal(how_many)[numbers] + math.sqrt(1 - shared) * rest, numbers

    return draw


def needed_errors(normal_errors: float, df: float) -> float:
    """`student_errors` at `df` to a tenth: of those there are few."""
    return _needed_errors(normal_errors, round(df, 1))


@functools.cache
def _needed_errors(normal_errors: float, df: float) -> float:
    return student_errors(normal_errors, df)


@dataclass(frozen=True)
class Calibration:
    """What became of the intervals of some rounds, whose truth is 0."""

    held: float  # share of the measured that hold the truth at 95 %
    tail: float  # share of the measured whose mean is 3 standard errors or more away
    refused: float  # share of all rounds that have no error
    factor: float  # mean of clustered / naive error
    df: float  # median
    by_document: float  # share of the measured whose clusters are documents


def simulate(source: Source, rounds: int, seed: int) -> Calibration:
    rng = np.random.default_rng(seed)
    estimates = [clustered_mean(*source(rng)) for _ in range(rounds)]
    measured = [estimate for estimate in estimates if not math.isnan(estimate.error)]
    if not measured:
        return Calibration(math.nan, math.nan, 1.0, math.nan, math.nan, math.nan)

    def share_within(errors: float) -> float:
        return float(np.mean([abs(each.mean) < needed_errors(errors, each.df) * each.error for each in measured]))

    return Calibration(
        held=share_within(NORMAL_95),
        tail=1 - share_within(TAIL_ERRORS),
        refused=1 - len(measured) / rounds,
        factor=float(np.mean([each.factor for each in measured])),
        df=float(np.median([each.df for each in measured])),
        by_document=float(np.mean([each.by_document for each in measured])),
    )
