"""The dependence length against its closed form."""

import numpy as np
import pytest
from error_sources import autoregressive

from marble_sweep.uncertainty.dependence import dependence_length


@pytest.mark.parametrize("correlation", [0.5, 0.8])
def test_that_of_an_autoregression_is_its_closed_form(correlation: float) -> None:
    lengths = [dependence_length(autoregressive(np.random.default_rng(seed), 20_000, correlation)) for seed in range(8)]
    assert np.mean(lengths) == pytest.approx(2 * correlation / (1 - correlation**2), rel=0.1)


def test_independent_values_mostly_have_none() -> None:
    lengths = np.array([dependence_length(np.random.default_rng(seed).standard_normal(256)) for seed in range(300)])
    assert np.mean(lengths == 0) > 0.95


@pytest.mark.parametrize("series", [np.zeros(100), np.arange(5.0), np.tile([1.0, -1.0], 50)])
def test_nothing_positive_has_none(series: np.ndarray) -> None:
    assert dependence_length(series) == 0
