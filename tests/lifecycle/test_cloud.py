"""The cloud's moments far from the origin, where squares would cancel out, and the step of its lift-off."""

import numpy as np
import pytest

from marble_sweep.lifecycle.cloud import Scatter, lift_off_step, measure_extent

FAR = 1e5  # radii from the origin: in float64, a difference of squares would have no digit of the variance left


@pytest.fixture(name="rows")
def far_rows() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (FAR + rng.normal(0, 1, (400, 5))).astype(np.float32)


def test_the_covariance_of_a_far_cloud_keeps_its_digits(rows: np.ndarray) -> None:
    scatter = Scatter(5)
    for part in np.split(rows, 8):
        scatter.add(part)
    exact = np.cov(rows.astype(np.longdouble).T, bias=True)
    np.testing.assert_allclose(scatter.covariance, exact.astype(float), atol=1e-9)


def test_the_radius_of_a_far_cloud_keeps_its_digits(rows: np.ndarray) -> None:
    axis = np.eye(5)[2]
    extent = measure_extent(rows, axis, rows[0].astype(np.float64))
    deviations = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    assert extent.radius == pytest.approx(np.sqrt(np.square(deviations).sum(axis=1).mean()), rel=1e-9)
    assert extent.spread_along == pytest.approx(deviations[:, 2].std(), rel=1e-9)
    assert extent.spread_along**2 + extent.spread_across**2 == pytest.approx(extent.radius**2, rel=1e-12)


def test_the_cloud_lifts_off_for_good() -> None:
    steps = np.array([1, 2, 3, 4, 5])
    radius = np.ones(5)
    assert lift_off_step(steps, np.array([0.1, 1.1, 0.9, 1.2, 1.3]), radius) == 4
    assert lift_off_step(steps, np.full(5, 2.0), radius) == 1
    assert lift_off_step(steps, np.array([2.0, 2, 2, 2, 1]), radius) is None
