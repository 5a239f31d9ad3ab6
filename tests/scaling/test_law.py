"""The scaling law against planted ones, with and without noise, and against losses that follow none."""

import math

import numpy as np
import pytest
from law_coverage import SIZES, World, count
from scipy.optimize import nnls
from scipy.special import bdtrc

from marble_sweep.humanize import interval_words
from marble_sweep.scaling.law import Interval, Law, fit_law
from marble_sweep.scaling.points import Point, Refusal, lower_envelope, seed_noise, staircase
from marble_sweep.scaling.profile import fit_curve, project

SIZES_9 = np.array(SIZES[9], dtype=float)
LEVEL, DROP, ALPHA = 5.2, 900.0, 0.65


def planted(n_params: float) -> float:
    return LEVEL + DROP * n_params**-ALPHA


def points(losses: list[float], *, spread: float = 0.0, tuned: bool = True) -> list[Point]:
    sizes = SIZES[9][: len(losses)]
    return [
        Point(f"{size}", size, (loss - spread, loss + spread), (0.001, 0.001), tuned)
        for size, loss in zip(sizes, losses, strict=True)
    ]


def law_of(losses: list[float], spread: float = 0.0) -> Law:
    law = fit_law(points(losses, spread=spread))
    assert isinstance(law, Law), law
    return law


def most_failures(number: int, probability: float) -> int:
    """So many failures of `number`, and no more, happen by chance but once in 100,000 times (the binomial's tail)."""
    return next(failures for failures in range(number) if bdtrc(failures, number, probability) < 1e-5)


def reason(law: object) -> str:
    assert isinstance(law, Refusal)
    return law.reason


def test_a_planted_law_without_noise_comes_back() -> None:
    law = law_of([planted(size) for size in SIZES_9])
    assert law.level.value == pytest.approx(LEVEL, abs=1e-5)
    assert law.alpha.value == pytest.approx(ALPHA, abs=1e-5)
    assert law.drop.value == pytest.approx(DROP, rel=1e-4)
    assert law.loss(50_000) == pytest.approx(planted(50_000), abs=1e-6)
    target = planted(72_345)
    reached = law.size_for(target, same_windows=True)
    assert isinstance(reached, Interval)
    assert reached.value == pytest.approx(72_345, rel=1e-4)


def test_projection_is_the_constrained_least_squares() -> None:
    """At every α E and A are those of SciPy's non-negative least squares, at their bounds too."""
    rng = np.random.default_rng(3)
    x, weights = np.log(SIZES_9 / 60_000), rng.uniform(0.5, 2, 9)
    shapes = (planted(60_000) - 0.3 * x, 0.2 * np.exp(-x), 5 + 0.3 * x, -1 + np.exp(-2 * x))  # the last three bind
    for y in shapes:
        alphas = np.array([0.05, 0.7, 3.0])
        level, drop, squares = project(x, y[None], weights, alphas)
        for column, alpha in enumerate(alphas):
            design = np.column_stack([np.ones(9), np.exp(-alpha * x)]) * np.sqrt(weights)[:, None]
            solution, norm = nnls(design, y * np.sqrt(weights))
            assert (level[0, column], drop[0, column]) == pytest.approx(tuple(solution), abs=1e-9)
            assert squares[0, column] == pytest.approx(norm**2, abs=1e-9)


def test_the_fit_is_the_best_of_all_laws() -> None:
    rng = np.random.default_rng(4)
    x = np.log(SIZES_9 / 60_000)
    y = 5.4 + 0.5 * np.exp(-x) + rng.normal(0, 0.05, 9)
    fine = project(x, y[None], np.ones(9), np.geomspace(0.02, 6, 20_001))[2].min()
    assert fit_curve(x, y, np.ones(9)).squares[0] <= fine * (1 + 1e-12)


def assert_intervals_hold(world: World, rounds: int) -> None:
    """All rounds have a law; of intervals that hold in 95 % no more fail than chance explains."""
    laws, given, good = count(world, rounds)
    assert laws == rounds
    for name, number in given.items():
        assert number - good[name] <= most_failures(number, 0.05), name


def test_intervals_hold() -> None:
    assert_intervals_hold(World("seeds alone"), 12)


@pytest.mark.slow
@pytest.mark.parametrize("world", [World("7 sizes", num_sizes=7), World("scatter", scatter=0.03)])
def test_intervals_hold_with_scatter(world: World) -> None:
    assert_intervals_hold(world, 150)


def test_noise_alone_is_refused() -> None:
    laws, _, _ = count(World("flat", fall=0.0), 60)
    assert laws <= most_failures(60, 0.02)


def test_intervals_widen_with_noise_and_misfit() -> None:
    losses = [planted(size) for size in SIZES_9]
    bent = [loss + (0.03 if index % 2 else -0.03) for index, loss in enumerate(losses)]
    exact, noisy, misfit = law_of(losses), law_of(losses, 0.03), law_of(bent)

    def width(law: Law) -> float:
        assert law.alpha.low is not None
        assert law.alpha.high is not None
        return law.alpha.high - law.alpha.low

    assert width(exact) < 0.1 * width(noisy)
    assert width(exact) < 0.1 * width(misfit)


def test_what_all_losses_share_widens_the_level_alone() -> None:
    measured = points([planted(size) for size in SIZES_9], spread=0.02)
    alone, shared = fit_law(measured), fit_law(measured, common_error=0.5)
    assert isinstance(alone, Law)
    assert isinstance(shared, Law)
    assert shared.alpha == alone.alpha
    assert shared.predict(40_000) == alone.predict(40_000)
    assert shared.size_for(5.6, same_windows=True) == alone.size_for(5.6, same_windows=True)
    assert shared.level.high is not None
    assert alone.level.high is not None
    assert shared.level.high > alone.level.high + 0.3
    assert isinstance(shared.size_for(5.6, same_windows=False), Refusal)  # 5.6 is no longer above all of E's interval


def test_too_few_tuned_sizes() -> None:
    assert "needs 5 tuned sizes, and there are 4" in reason(fit_law(points([6.5, 6.2, 6.0, 5.9])))
    untuned = points([6.5, 6.2, 6.0, 5.9]) + points([6.5, 6.2, 6.0, 5.9, 5.85], tuned=False)
    assert "there are 4" in reason(fit_law(untuned))


def test_untuned_sizes_do_not_count() -> None:
    losses = [planted(size) for size in SIZES_9]
    wrong = points([9.0], tuned=False) + points(losses)
    law = fit_law(wrong)
    assert isinstance(law, Law)
    assert len(law.points) == 9


@pytest.mark.parametrize("losses", [[6.0] * 9, [5.0 + 0.1 * index for index in range(9)]])
def test_losses_that_do_not_fall_are_refused(losses: list[float]) -> None:
    assert "not shown to fall with size" in reason(fit_law(points(losses, spread=0.01)))


def test_losses_that_rise_after_a_while_are_refused() -> None:
    """The large sizes, which smaller ones beat, are no part of the lower envelope; four others are no law."""
    rising = [6.8, 6.5, 6.2, 5.9, 6.0, 6.0, 6.0, 6.0, 6.0]
    assert "only 4 of 9 tuned sizes are not beaten" in reason(fit_law(points(rising, spread=0.001)))


def test_parameters_at_their_bounds_are_refused() -> None:
    assert "E is at its bound of 0" in reason(fit_law(points([300 * size**-0.4 for size in SIZES_9])))
    in_a_line = [6.5 - 0.3 * math.log(size / 2e4) - 0.02 * math.log(size / 2e4) ** 2 for size in SIZES_9]
    assert "is at its bound" in reason(fit_law(points(in_a_line)))
    a_step = [7.0, 5.0 - 1e-9, 5.0 - 2e-9, 5.0 - 3e-9, 5.0 - 4e-9, 5.0 - 5e-9, 5.0 - 6e-9, 5.0 - 7e-9, 5.0 - 8e-9]
    assert "α is at its bound of 6" in reason(fit_law(points(a_step)))


def test_an_end_at_the_bound_of_alpha_is_left_open() -> None:
    """Losses that fall at once, and noise: α may be as large as it can be."""
    law = law_of([5.4 + 1.2 * (size / 20_260) ** -3.5 - 1e-7 * size for size in SIZES_9], 0.1)
    assert law.alpha.low is not None
    assert law.alpha.high is None
    assert interval_words(law.alpha.as_list(), ".2f") == f"{law.alpha.value:.2f} ({law.alpha.low:.2f} or more)"
    assert interval_words([1.0, None, 2.0], ".1f") == "1.0 (up to 2.0)"
    assert interval_words([1.0, 0.5, 2.0], ".1f") == "1.0 (0.5 to 2.0)"


def test_no_prediction_beyond_twice_the_largest_size() -> None:
    law = law_of([planted(size) for size in SIZES_9], 0.01)
    for size in (SIZES[9][0] / 2, 2 * SIZES[9][-1]):
        assert isinstance(law.predict(size), Interval)
    for size in (SIZES[9][0] / 2 - 1, 2 * SIZES[9][-1] + 1):
        assert "of which the law says nothing" in reason(law.predict(size))


def test_thresholds_out_of_reach() -> None:
    law = law_of([planted(size) for size in SIZES_9], 0.01)
    level = law.level
    assert level.low is not None
    assert level.high is not None
    assert "no size reaches it" in reason(law.size_for(level.low - 0.1, same_windows=True))
    assert "may never be reached" in reason(law.size_for(level.value, same_windows=True))
    assert "not reached within 324,160 parameters" in reason(law.size_for(planted(400_000), same_windows=True))
    assert "reached below 10,130 parameters" in reason(law.size_for(planted(9_000), same_windows=True))
    near = law.size_for(planted(320_000), same_windows=True)
    assert isinstance(near, Interval)
    assert near.high is None  # beyond what may be predicted


def test_the_staircase_and_the_envelope() -> None:
    """A loss that is worse by noise is no step of the staircase, but counts for the law."""
    measured = points([6.5, 6.2, 6.21, 6.0, 6.3], spread=0.02)
    names = [point.name for point in measured]
    assert [point.name for point in staircase(measured[::-1])] == [names[index] for index in (0, 1, 3)]
    kept = lower_envelope(measured[::-1], seed_noise(measured))
    assert [point.name for point in kept] == names[:4]


def test_a_similar_size_of_another_shape_beats_too() -> None:
    measured = [
        Point("0L3D", 30_390, (6.4,), (0.01,)),
        Point("2L3D", 30_684, (6.2,), (0.01,)),
        Point("0L4D", 40_520, (6.0,), (0.01,)),
    ]
    assert [point.name for point in lower_envelope(measured, seed_noise(measured))] == ["2L3D", "0L4D"]


def test_seed_noise_is_pooled() -> None:
    first = Point("a", 1, (1.0, 3.0), (0.1, 0.1))
    second = Point("b", 2, (1.0, 2.0, 3.0), (0.1, 0.1, 0.1))
    noise = seed_noise([first, second, Point("c", 3, (9.0,), (0.1,))])
    assert noise.df == 3
    assert noise.variance == pytest.approx((2 + 2) / 3)
    drawn = noise.draw(np.random.default_rng(0), 4000)
    # The mean of df / χ² with 3 degrees of freedom is 3, its median 3 / 2.366.
    assert float(np.median(drawn)) == pytest.approx(noise.variance * 3 / 2.366, rel=0.1)
