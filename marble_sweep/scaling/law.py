"""The scaling law L(N) = E + A N^-α of the best losses that sizes reach, with intervals on all that it says.

Fitted to the lower envelope of the tuned points, weighted by the inverse of their variance. Its residuals may be larger
than the noise of seeds and windows: recipes are tuned to a grid, and no true curve is exactly a power law. So the
replicates of the bootstrap have the noise of seeds (with the uncertainty of their spread) and of windows, times the
misfit that the residuals show (with the uncertainty of that). Least squares serves, not a robust loss: with five to ten
points and three parameters there is no majority that could outvote an outlier, and the misfit widens all intervals
instead. docs/truth.md says how often the intervals hold.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from marble_sweep.scaling.points import (
    CONFIDENCE,
    LEAST_ERROR,
    Numbers,
    Point,
    Refusal,
    SeedNoise,
    lower_envelope,
    seed_noise,
    variances,
)
from marble_sweep.scaling.profile import MAX_ALPHA, MIN_ALPHA, Curves, fit_curve, fit_curves

# Three parameters leave two degrees of freedom, by which misfit can be seen; one widens intervals 12.7 times.
MIN_POINTS = 5
REACH = 2.0  # nothing is said beyond so many times the largest size, or below the smallest divided by it
LOWEST_ALPHA, HIGHEST_ALPHA = MIN_ALPHA * 1.001, MAX_ALPHA / 1.001  # nearer to its bounds α counts as at them
NUM_REPLICATES = 2000
FLAT_PROBABILITY = 0.02  # that losses which size does not matter to seem to fall; of 5 points, two orders of 120
NUM_ORDERS = 9999


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95 % interval; an end is None where it lies beyond what can be told."""

    value: float
    low: float | None
    high: float | None

    def as_list(self) -> list[float | None]:
        return [self.value, self.low, self.high]


@dataclass(frozen=True)
class Law:
    """A fitted law. Losses are in nats per token, sizes in parameters."""

    points: tuple[Point, ...]  # the lower envelope, by size
    middle: float  # log of the size at which `drop` counts: the mean over the points
    curve: Curves  # one law
    replicates: Curves  # of the bootstrap
    run_deviations: Numbers  # (num_replicates,) of one run on a fresh seed around the law
    common_error: float  # what windows add to all losses alike

    @property
    def min_size(self) -> float:
        return self.points[0].n_params / REACH

    @property
    def max_size(self) -> float:
        return self.points[-1].n_params * REACH

    @functools.cached_property
    def _common(self) -> Numbers:
        """What the choice of windows adds to all losses in each replicate."""
        return np.random.default_rng(1).normal(0.0, 1.0, len(self.replicates.alpha)) * self.common_error

    @property
    def level(self) -> Interval:
        """E: where the loss levels off."""
        return _interval(float(self.curve.level[0]), np.maximum(self.replicates.level + self._common, 0.0))

    @property
    def alpha(self) -> Interval:
        """An end is None where it stands at the bound of what is fitted, and so cannot be told."""
        ends = _interval(float(self.curve.alpha[0]), self.replicates.alpha)
        low = None if ends.low is None or ends.low <= LOWEST_ALPHA else ends.low
        return Interval(ends.value, low, None if ends.high is None or ends.high >= HIGHEST_ALPHA else ends.high)

    @property
    def drop(self) -> Interval:
        """A: how far above E one parameter would be."""
        logs = np.log(np.maximum(self.replicates.drop, np.finfo(float).tiny)) + self.replicates.alpha * self.middle
        log = _interval(math.log(self.curve.drop[0]) + self.curve.alpha[0] * self.middle, logs)
        return Interval(*(math.exp(min(float(end or 0.0), 700.0)) for end in (log.value, log.low, log.high)))

    def loss(self, n_params: float) -> float:
        """The law itself at a size."""
        return float(self.curve.at(np.array([math.log(n_params) - self.middle]))[0, 0])

    def predict(self, n_params: float) -> Interval | Refusal:
        """The loss at a size, with the interval for a run of its best recipe on a fresh seed and the same windows.

        Refused beyond REACH times the largest size, and below the smallest one divided by it.
        """
        if not self.min_size <= n_params <= self.max_size:
            return Refusal(f"{n_params:,.0f} parameters lie outside {self.span}, of which the law says nothing")
        return self._predict(n_params)

    def curve_points(self, num: int) -> list[tuple[float, Interval]]:
        """Sizes at equal ratios over all that may be predicted, with the prediction at each."""
        sizes = np.geomspace(self.min_size, self.max_size, num)
        return [(float(size), self._predict(float(size))) for size in sizes]

    def _predict(self, n_params: float) -> Interval:
        at = self.replicates.at(np.array([math.log(n_params) - self.middle]))[:, 0]
        draws = np.random.default_rng(2).normal(0.0, 1.0, len(at))
        return _interval(self.loss(n_params), at + draws * self.run_deviations)

    def size_for(self, loss: float, *, same_windows: bool) -> Interval | Refusal:
        """The size at which the law reaches a loss.

        Refused where E may be as high, and where the size lies beyond what may be predicted. With `same_windows` the
        loss is a baseline's on the windows of the points: then what windows add to all of them does not matter.
        """
        shift = 0.0 if same_windows else self._common
        levels = self.replicates.level + shift
        level = _interval(float(self.curve.level[0]), levels)
        assert level.high is not None
        if loss <= level.high:
            at_most = f"the law levels off at {level.value:.3f} (95 % interval {level.low:.3f} to {level.high:.3f})"
            never = level.low is not None and loss < level.low
            return Refusal(f"{'no size reaches it' if never else 'it may never be reached'}: {at_most}")
        size = float(self._size(self.curve, loss)[0])
        if size > self.max_size:
            return Refusal(f"it is not reached within {self.max_size:,.0f} parameters, twice the largest size")
        if size < self.min_size:
            return Refusal(f"it is reached below {self.min_size:,.0f} parameters, half of the smallest size")
        ends = _interval(size, self._size(self.replicates, loss - shift))
        assert ends.low is not None
        assert ends.high is not None
        low = ends.low if ends.low >= self.min_size else None
        return Interval(size, low, ends.high if ends.high <= self.max_size else None)

    def _size(self, curves: Curves, loss: float | Numbers) -> Numbers:
        """The sizes (num,) at which curves reach a loss; infinite where they never do."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            logs = self.middle - np.log((loss - curves.level) / curves.drop) / curves.alpha
            return np.where(loss > curves.level, np.exp(logs), np.inf)

    @property
    def span(self) -> str:
        return f"{self.min_size:,.0f} to {self.max_size:,.0f} parameters (half of the smallest to twice the largest)"


def fit_law(points: Sequence[Point], common_error: float = 0.0) -> Law | Refusal:
    """The law of the tuned points, or why there is none.

    `common_error` is the standard error that all losses share, as they are of the same windows.
    """
    tuned = [point for point in points if point.tuned]
    if len(tuned) < MIN_POINTS:
        return Refusal(f"a law needs {MIN_POINTS} tuned sizes, and there are {len(tuned)}")
    if _may_be_flat(tuned):
        return Refusal(
            f"the loss is not shown to fall with size: more than {FLAT_PROBABILITY:.0%} of all orders of the "
            f"{len(tuned)} losses fall as clearly"
        )
    noise = seed_noise(tuned)
    kept = lower_envelope(tuned, noise)
    if len(kept) < MIN_POINTS:
        beaten = f"only {len(kept)} of {len(tuned)} tuned sizes are not beaten by a smaller one"
        return Refusal(f"the loss does not go on falling with size: {beaten}, and a law needs {MIN_POINTS}")
    logs = np.log([point.n_params for point in kept])
    if len(set(logs)) < MIN_POINTS:
        return Refusal(f"a law needs {MIN_POINTS} different numbers of parameters, and there are {len(set(logs))}")
    losses, variance = np.array([point.loss for point in kept]), variances(kept, noise)
    curve = fit_curve(logs - logs.mean(), losses, 1 / variance)
    if (bound := _bound(curve)) is not None:
        return Refusal(f"the law is not identified: {bound}")
    return _bootstrap(kept, logs, variance, noise, curve, common_error)


def _may_be_flat(points: Sequence[Point]) -> bool:
    """Whether more than FLAT_PROBABILITY of all orders of these losses would fall as clearly with size.

    An exact test where size does not matter, whatever the noise is like: Pitman's permutation test of the correlation
    of loss and log N ("Significance tests which may be applied to samples from any populations, II", Supplement to the
    Journal of the Royal Statistical Society 4, 1937), on random orders.
    """
    logs = np.log([point.n_params for point in points])
    losses = np.array([point.loss for point in points])
    orders = np.random.default_rng(0).permuted(np.tile(losses, (NUM_ORDERS, 1)), axis=1)
    slopes, ours = orders @ (logs - logs.mean()), losses @ (logs - logs.mean())
    as_steep = (slopes <= ours + 1e-9 * abs(ours)).sum()  # sums in another order may differ in their last digits
    return bool((1 + as_steep) / (1 + NUM_ORDERS) > FLAT_PROBABILITY)


def _bound(curve: Curves) -> str | None:
    """The parameter that stands at its bound, in words."""
    level, alpha = curve.level[0], curve.alpha[0]
    if level <= 0:
        return "E is at its bound of 0, the losses do not show where they level off"
    if alpha <= LOWEST_ALPHA:
        return f"α is at its bound of {MIN_ALPHA}, the losses fall along a line in log N and show no levelling off"
    if alpha >= HIGHEST_ALPHA:
        return f"α is at its bound of {MAX_ALPHA:g}, the losses fall in a single step"
    return None


def _bootstrap(
    points: Sequence[Point],
    logs: Numbers,
    variance: Numbers,
    noise: SeedNoise,
    curve: Curves,
    common_error: float,
) -> Law:
    """The law with its replicates: the fitted losses with noise drawn anew, fitted again.

    Per replicate the misfit is √(squares / χ²), at least 1: residuals of n - 3 degrees of freedom do not tell it any
    better. So a law that fits by chance is not taken to be exact.
    """
    df, rng = len(points) - 3, np.random.default_rng(0)
    windows = np.array([max(point.error, LEAST_ERROR) for point in points]) ** 2
    seeds = noise.draw(rng, NUM_REPLICATES)
    misfit = np.maximum(1.0, curve.squares[0] / rng.chisquare(df, NUM_REPLICATES))  # of variances
    num_seeds = np.array([len(point.losses) for point in points])
    deviations = np.sqrt((seeds[:, None] / num_seeds + windows) * misfit[:, None])
    x = logs - logs.mean()
    noisy = curve.at(x) + rng.normal(0.0, 1.0, deviations.shape) * deviations
    scatter = (misfit - 1) * variance.mean()  # of sizes around the law
    run_deviations = np.sqrt(seeds + windows.mean() + scatter)
    replicates = fit_curves(x, noisy, 1 / variance)
    return Law(tuple(points), float(logs.mean()), curve, replicates, run_deviations, common_error)


def _interval(value: float, replicates: Numbers) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(replicates, (tail, 1 - tail), method="inverted_cdf")
    return Interval(value, float(low), float(high))
