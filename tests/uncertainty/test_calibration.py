"""Intervals from clustered errors hold the truth as often as they say, where values depend on their neighbours.

docs/truth.md has more sources and the tails, made by benchmarks/calibrate_errors.py, and says where they fail.
"""

import math

import numpy as np
import pytest
from error_sources import NORMAL_95, Source, ar1, documents, simulate

from marble_sweep.uncertainty.clusters import clustered_mean

ROUNDS = 5_000

SOURCES = {
    "independent": ar1(256, 0.0),
    "AR(1) 0.3": ar1(256, 0.3),
    "AR(1) 0.8": ar1(1024, 0.8),
    "documents of equal size": documents(256, 30, 0.0, 0.6),
    "documents of unequal size": documents(256, 30, 0.5, 0.2),
    "documents of very unequal size": documents(1024, 100, 1.0, 0.05),
    "documents and neighbours": documents(1024, 60, 0.7, 0.3, 0.4),
}


@pytest.mark.parametrize("name", SOURCES)
def test_intervals_hold_the_truth_as_often_as_they_say(name: str) -> None:
    result = simulate(SOURCES[name], ROUNDS, 1)
    assert 0.94 <= result.held <= 0.96
    assert result.refused < 0.01
    assert result.factor > 0.95


@pytest.mark.parametrize("source", [ar1(256, 0.8), documents(256, 30, 0.5, 0.6)])
def test_naive_intervals_do_not(source: Source) -> None:
    rng = np.random.default_rng(2)
    estimates = [clustered_mean(*source(rng)) for _ in range(500)]
    held = np.mean([abs(estimate.mean) <= NORMAL_95 * estimate.naive_error for estimate in estimates])
    assert held < 0.7


def test_dependence_that_noise_hides_is_seen_too_late() -> None:
    """A known limit: no autocorrelation of 256 values is significant, and all of them together count."""
    result = simulate(ar1(256, 0.8, share=0.2), 2_000, 1)
    assert 0.88 < result.held < 0.94
    assert result.factor < math.sqrt(1 + 2 * 0.2 * 0.8 / (1 - 0.8))


def test_noise_leaves_a_series_its_variance() -> None:
    rng = np.random.default_rng(3)
    values, _ = ar1(100_000, 0.8, share=0.2)(rng)
    assert values.var() == pytest.approx(1, abs=0.05)
    assert np.corrcoef(values[:-1], values[1:])[0, 1] == pytest.approx(0.16, abs=0.02)
