"""The clustered error against plain dense linear algebra and closed forms."""

import math

import numpy as np
import pytest
from error_sources import ar1, autoregressive
from numpy.typing import NDArray

from marble_sweep.uncertainty.clusters import Clusters, cluster_variance, clustered_mean
from marble_sweep.uncertainty.dependence import dependence_length


def dense(residuals: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[float, float]:
    """CR2 of an intercept and its Imbens-Kolesár degrees of freedom, with the matrices written out."""
    num = len(residuals)
    same = (labels[:, None] == labels[None, :]).astype(float)
    pairs = same.sum() - num
    mean_product = (residuals @ same @ residuals - residuals @ residuals) / pairs
    correlation = min(1.0, max(0.0, mean_product / (residuals @ residuals / num)))
    model = correlation * same + (1 - correlation) * np.eye(num)
    annihilator = np.eye(num) - np.ones((num, num)) / num
    variance, columns = 0.0, []
    for label in np.unique(labels):
        inside = np.flatnonzero(labels == label)
        values, vectors = np.linalg.eigh(annihilator[np.ix_(inside, inside)])
        adjusted = vectors @ np.diag(values**-0.5) @ vectors.T @ np.ones(len(inside)) / num
        variance += float(adjusted @ residuals[inside]) ** 2
        columns.append(annihilator[:, inside] @ adjusted)
    basis = np.array(columns).T
    form = basis.T @ model @ basis
    return variance, np.trace(form) ** 2 / (form**2).sum()


@pytest.mark.parametrize("shared", [0.0, 0.5, 3.0])
def test_variance_and_degrees_of_freedom_are_those_of_the_dense_formulas(shared: float) -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(12), rng.integers(1, 9, size=12))
    values = rng.standard_normal(len(labels)) + shared * rng.standard_normal(12)[labels]
    residuals = values - values.mean()
    members = [residuals[labels == label] for label in range(12)]
    clusters = Clusters(np.array([part.sum() for part in members]), np.array([float(len(part)) for part in members]))
    expected = dense(residuals, labels)
    assert cluster_variance(clusters, residuals @ residuals) == pytest.approx(expected, rel=1e-9)


def test_clusters_of_equal_size_have_one_degree_of_freedom_fewer() -> None:
    clusters = Clusters(np.array([1.0, -2.0, 0.5, 0.5]), np.full(4, 5.0))
    variance, df = cluster_variance(clusters, 40.0)
    means = clusters.sums / 5
    assert variance == pytest.approx(means.var(ddof=1) / 4)
    assert df == pytest.approx(3)


def test_few_values_are_clusters_of_their_own() -> None:
    values = np.array([0.3, 0.1, 0.9, 0.4])
    estimate = clustered_mean(values)
    assert estimate.error == pytest.approx(values.std(ddof=1) / 2)
    assert estimate.factor == pytest.approx(1)
    assert estimate.num_clusters == 4
    assert estimate.df == pytest.approx(3)


def test_whole_documents_are_clusters_where_there_are_enough() -> None:
    rng = np.random.default_rng(4)
    documents = np.repeat(np.arange(20), 5)
    values = rng.standard_normal(20)[documents]
    estimate = clustered_mean(values, documents)
    assert (estimate.by_document, estimate.num_clusters) == (True, 20)
    assert estimate.error == pytest.approx(values[::5].std(ddof=1) / math.sqrt(20))
    assert estimate.df == pytest.approx(19)


def test_neighbouring_documents_that_resemble_each_other_are_merged() -> None:
    chapters = np.repeat(np.arange(200), 5)
    values = autoregressive(np.random.default_rng(5), 200, 0.8)[chapters]
    estimate = clustered_mean(values, chapters)
    assert estimate.by_document
    assert estimate.num_clusters < 20
    one_a_chapter = values[::5].std(ddof=1) / math.sqrt(200)
    assert estimate.error > 2 * one_a_chapter


@pytest.mark.parametrize("documents", [np.zeros(256, dtype=np.int64), np.repeat([0, 1, 2], [80, 150, 26])])
def test_blocks_serve_where_documents_are_few(documents: NDArray[np.int64]) -> None:
    estimate = clustered_mean(np.random.default_rng(6).standard_normal(256), documents)
    assert not estimate.by_document
    assert estimate.num_clusters >= 8


def test_blocks_are_longer_where_neighbours_depend_on_each_other() -> None:
    independent, dependent = (
        clustered_mean(ar1(1024, correlation)(np.random.default_rng(7))[0]) for correlation in (0.0, 0.9)
    )
    assert independent.num_clusters > 4 * dependent.num_clusters >= 32


def test_an_error_that_cannot_be_told_is_not_a_number() -> None:
    for values in (np.array([1.0]), np.array([1.0, math.inf, 2.0]), np.array([1.0, math.nan])):
        with np.errstate(invalid="ignore"):
            estimate = clustered_mean(values)
        assert math.isnan(estimate.error)
        assert math.isnan(estimate.df)
    trend = np.linspace(0, 1, 32)
    assert math.isnan(clustered_mean(trend).error)


def test_equal_values_have_no_error() -> None:
    estimate = clustered_mean(np.full(64, 0.5))
    assert (estimate.mean, estimate.error) == (0.5, 0.0)
    assert math.isnan(estimate.factor)


def test_what_blocks_lose_at_their_ends_is_put_back() -> None:
    values = ar1(1024, 0.8)(np.random.default_rng(8))[0]
    estimate = clustered_mean(values)
    means = [
        block.mean() for block in np.split(values, np.arange(1, estimate.num_clusters) * 1024 // estimate.num_clusters)
    ]
    of_blocks = np.std(means, ddof=1) / math.sqrt(len(means))
    lost = dependence_length(values) * len(means) / 1024
    assert lost > 0.03
    assert estimate.error == pytest.approx(
        of_blocks * math.sqrt(1 + lost), rel=0.02
    )  # blocks differ by a value in size


def test_documents_that_decide_everything_leave_no_error() -> None:
    documents = np.repeat([0, 1, 2], [150, 80, 26])
    values = np.random.default_rng(9).standard_normal(256) + np.array([1.0, -1.0, 3.0])[documents]
    assert math.isnan(clustered_mean(values, documents).error)
