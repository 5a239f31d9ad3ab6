"""Epochs of the radius, against planted curves with noise."""

import numpy as np
import pytest

from marble_sweep.lifecycle.epochs import Epoch, broken_line, find_epochs

NUM_STEPS = 3_000
STEPS = np.arange(1, NUM_STEPS + 1)
CURVES: dict[str, list[tuple[float, float]]] = {  # by the kinds of its epochs, a broken line's corners
    "standstill": [(0, 1), (1, 1)],
    "contraction standstill expansion": [(0, 1), (0.3, 0.6), (0.6, 0.6), (1, 0.9)],
    "contraction": [(0, 1), (1, 0.96)],
    "expansion contraction standstill": [(0, 1), (0.02, 1.2), (0.4, 0.7), (1, 0.7)],
    "expansion contraction": [(0, 0.5), (0.5, 1), (1, 0.3)],
}


def planted(corners: list[tuple[float, float]], noise: float) -> np.ndarray:
    """The curve through corners of (share of the record, radius)."""
    shares, radii = zip(*corners, strict=True)
    curve = np.interp(STEPS / NUM_STEPS, shares, radii)
    return curve + np.random.default_rng(1).normal(0, noise, NUM_STEPS) if noise else curve


@pytest.mark.parametrize("noise", [0, 1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("kinds", CURVES)
def test_planted_epochs_are_what_is_there(kinds: str, noise: float) -> None:
    epochs = find_epochs(STEPS, planted(CURVES[kinds], noise))
    assert [epoch.kind for epoch in epochs] == kinds.split()
    assert [epoch.start for epoch in epochs] == [1, *(epoch.end for epoch in epochs[:-1])]
    ends = [share * NUM_STEPS for share, _ in CURVES[kinds][1:]]
    # A corner is missed where the curve leaves a line by less than the tolerance, and by half a window of averages.
    np.testing.assert_allclose([epoch.end for epoch in epochs], ends, atol=0.02 * NUM_STEPS if noise else 1)


def test_noise_alone_is_a_standstill() -> None:
    for seed in range(20):
        curve = 1 + np.random.default_rng(seed).normal(0, 0.01, NUM_STEPS)
        assert find_epochs(STEPS, curve) == [Epoch(1, NUM_STEPS, "standstill")]


def test_a_contraction_that_levels_off_ends_in_a_standstill() -> None:
    epochs = find_epochs(STEPS, 0.6 + 0.4 * np.exp(-STEPS / 300))
    assert [epoch.kind for epoch in epochs] == ["contraction", "standstill"]
    # At a tenth of the mean speed, 0.4 a record, the slope 0.4/300 exp(-t/300) has fallen to 0.04/3000.
    assert epochs[1].start == pytest.approx(300 * np.log(100), rel=0.35)


def test_the_corner_of_a_turning_point_is_no_standstill() -> None:
    curve = np.interp(STEPS / NUM_STEPS, [0, 0.4, 0.43, 1], [1, 0.5, 0.5, 1])
    first, second = find_epochs(STEPS, curve)
    assert (first.kind, second.kind) == ("contraction", "expansion")
    assert first.end == pytest.approx(0.4 * NUM_STEPS, abs=1)  # the corner joins the longer of its neighbours


def test_steps_may_lie_far_apart() -> None:
    every = STEPS[::10]
    radius = planted(CURVES["contraction standstill expansion"], 0)[::10]
    assert [epoch.kind for epoch in find_epochs(every, radius)] == ["contraction", "standstill", "expansion"]


def test_the_broken_line_misses_nothing_by_more_than_the_tolerance() -> None:
    curve = np.cumsum(np.random.default_rng(2).normal(0, 1, 400))
    steps = np.arange(400)
    corners = broken_line(steps, curve, 3.0)
    line = np.interp(steps, steps[corners], curve[corners])
    assert np.abs(line - curve).max() <= 3.0
    assert len(corners) < 200


@pytest.mark.parametrize("radius", [[], [1.0], [1.0, np.nan, 2.0]])
def test_a_curve_that_is_none_has_no_epochs(radius: list[float]) -> None:
    assert find_epochs(np.arange(len(radius)), np.array(radius)) == []


def test_a_point_is_at_a_standstill() -> None:
    assert find_epochs(STEPS, np.zeros(NUM_STEPS)) == [Epoch(1, NUM_STEPS, "standstill")]
