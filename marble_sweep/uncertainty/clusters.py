"""The mean of numbers that depend on their neighbours, with a standard error that counts clusters, not numbers.

Held-out windows of one document resemble each other, and so do neighbouring ones. Their mean is then less certain than
that of as many independent windows. The error here is computed from clusters: whole documents, or contiguous blocks.
docs/truth.md has the rules, and how often the intervals hold.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from marble_sweep.uncertainty.dependence import dependence_length

Numbers = NDArray[np.float64]

MIN_DOCUMENT_DF = 5.0  # with fewer effective degrees of freedom one or two documents decide the error: blocks serve
MIN_BLOCKS = 8
BLOCK_PER_ROOT = 1.5  # a block has at least so many times the cube root of the number of values: weak dependence hides
BLOCK_PER_LENGTH = 15.0  # and so many times the dependence length: its ends then lose at most 7 % of the variance
MAX_LOST = 0.5  # the share of the variance that blocks may lose at their ends, and that is put back


@dataclass(frozen=True)
class Estimate:
    """A mean with its clustered standard error. `error` and `df` are NaN where the values cannot tell them."""

    mean: float
    error: float
    df: float  # effective degrees of freedom: the error is that of Student's t
    naive_error: float  # that of independent values
    num_clusters: int
    by_document: bool  # whether a cluster is a whole document, or several; else a block of neighbours

    @property
    def factor(self) -> float:
        """How many times the naive error the clustered one is; NaN where there is none."""
        return self.error / self.naive_error if self.naive_error > 0 else math.nan


@dataclass(frozen=True)
class Clusters:
    """Contiguous clusters of the residuals of a mean."""

    sums: Numbers  # (num_clusters,) of the residuals
    sizes: Numbers  # (num_clusters,)

    def merged(self, num_clusters: int) -> "Clusters":
        """As `num_clusters` runs of neighbours, as equally many in each as possible."""
        starts = np.arange(num_clusters) * len(self.sums) // num_clusters
        return Clusters(np.add.reduceat(self.sums, starts), np.add.reduceat(self.sizes, starts))


def clustered_mean(values: Numbers, documents: NDArray[np.int64] | None = None) -> Estimate:
    """The mean of `values` (n,) in their order in the text, n >= 1, with its clustered standard error.

    `documents` (n,) numbers the documents, equal ones side by side; None where there are none. They are the clusters
    where that leaves MIN_DOCUMENT_DF; neighbours are merged where their sums depend on each other. Otherwise contiguous
    blocks are, of a length estimated from the values and the documents.
    """
    num, mean = len(values), float(values.mean())
    residuals = values - mean
    squares = float(residuals @ residuals)
    if num < 2 or not math.isfinite(squares):
        return Estimate(mean, math.nan, math.nan, math.nan, num, by_document=False)
    naive = math.sqrt(squares / (num - 1) / num)
    singles = Clusters(residuals, np.ones(num))
    length = dependence_length(residuals)
    if documents is not None and documents[0] != documents[-1]:
        by_document = _of_documents(residuals, documents)
        error, df, num_clusters = _error_of_runs(by_document, squares, 1, dependence_length(by_document.sums))
        if df >= MIN_DOCUMENT_DF:
            return Estimate(mean, error, df, naive, num_clusters, by_document=True)
        length = max(length, _length_of_documents(by_document, squares))
    shortest = math.ceil(BLOCK_PER_ROOT * num ** (1 / 3))
    error, df, num_clusters = _error_of_runs(singles, squares, shortest, length)
    return Estimate(mean, error, df, naive, num_clusters, by_document=False)


def _of_documents(residuals: Numbers, documents: NDArray[np.int64]) -> Clusters:
    starts = np.append(0, np.flatnonzero(np.diff(documents)) + 1)
    return Clusters(np.add.reduceat(residuals, starts), np.diff(np.append(starts, len(residuals))).astype(float))


def _error_of_runs(units: Clusters, squares: float, shortest: int, length: float) -> tuple[float, float, int]:
    """The standard error from runs of at least `shortest` units, its degrees of freedom, and the number of runs.

    A run is BLOCK_PER_LENGTH times the dependence `length` of the units, if that leaves MIN_BLOCKS. What runs lose at
    their ends is put back; where that would be more than MAX_LOST, error and degrees of freedom are NaN.
    """
    num_units = len(units.sums)
    run = max(shortest, math.ceil(BLOCK_PER_LENGTH * length))
    num_runs = max(num_units // run, min(MIN_BLOCKS, num_units))
    lost = length * num_runs / num_units
    if lost > MAX_LOST:
        return math.nan, math.nan, num_runs
    variance, df = cluster_variance(units.merged(num_runs), squares)
    return math.sqrt(variance * (1 + lost)), df, num_runs


def cluster_variance(clusters: Clusters, squares: float) -> tuple[float, float]:
    """The variance of a mean from clusters of its residuals, and its effective degrees of freedom.

    The variance is CR2 of Bell and McCaffrey ("Bias reduction in standard errors for linear regression with multi-stage
    samples", Survey Methodology 28, 2002), for a mean Σ_g S_g² / (1 - n_g / n) / n². The degrees of freedom are
    Satterthwaite's for that sum, under an intraclass correlation estimated from the residuals, whose squares sum to
    `squares`: Imbens and Kolesár ("Robust standard errors in small samples", Review of Economics and Statistics 98,
    2016). With clusters of equal size they are one fewer than the clusters.
    """
    sums, sizes = clusters.sums, clusters.sizes
    num = sizes.sum()
    shares = sizes / num
    weights = 1 / (1 - shares)
    variance = float((weights * sums**2).sum()) / num**2
    if squares == 0:
        return 0.0, len(sums) - 1.0
    sum_variances = _sum_variances(clusters, squares)
    total = sum_variances.sum()
    # Under that model the variance is a quadratic form whose matrix B has, off its diagonal, √(w_g w_h) c_gh with
    # c_gh = s_g s_h Σv - s_h v_g - s_g v_h, and on it w_g (v_g + c_gg). Its trace squared / Σ B² are the degrees.
    diagonal = shares**2 * total - 2 * shares * sum_variances
    trace = (weights * (sum_variances + diagonal)).sum()
    ss, sv, vv = ((weights * pair).sum() for pair in (shares**2, shares * sum_variances, sum_variances**2))
    off = 2 * vv * ss + total**2 * ss**2 + 2 * sv**2 - 4 * total * sv * ss
    on = (weights**2 * ((sum_variances + diagonal) ** 2 - diagonal**2)).sum()
    return variance, float(trace**2 / (off + on))


def _correlation(clusters: Clusters, squares: float) -> float:
    """The intraclass correlation of residuals: the mean product of two in one cluster / their variance, in [0, 1]."""
    num = clusters.sizes.sum()
    pairs = (clusters.sizes**2).sum() - num
    if pairs == 0 or squares == 0:
        return 0.0
    return float(min(1.0, max(0.0, ((clusters.sums**2).sum() - squares) / pairs / (squares / num))))


def _sum_variances(clusters: Clusters, squares: float) -> Numbers:
    """The variance of each cluster's sum (num_clusters,), as a multiple of that of a single residual."""
    correlation = _correlation(clusters, squares)
    return (1 - correlation) * clusters.sizes + correlation * clusters.sizes**2


def _length_of_documents(clusters: Clusters, squares: float) -> float:
    """The dependence length (dependence.py) of values that depend on each other within documents alone, all equally."""
    pairs = _correlation(clusters, squares) * (clusters.sizes**3 - clusters.sizes).sum() / 3
    return float(pairs / _sum_variances(clusters, squares).sum())
