"""The measurements that a scaling law is fitted to: held-out losses of sizes, and how noisy they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from marble_sweep.uncertainty.student import two_sided_errors

Numbers = NDArray[np.float64]

CONFIDENCE = 0.95
BEATEN_ERRORS = (
    2.0  # a size is beaten by a smaller one whose loss is lower by so many standard errors of the difference
)
SIMILAR = 1.05  # sizes of other shapes are compared if they have so many times the parameters, or fewer
LEAST_ERROR = 1e-6  # nats per token: no loss is known more exactly


@dataclass(frozen=True)
class Point:
    """One size at its best recipe, trained on the whole budget."""

    name: str
    n_params: int
    losses: tuple[float, ...]  # held-out, nats per token, one for every seed
    errors: tuple[float, ...]  # of each loss: its standard error over windows, without what all sizes share
    tuned: bool = True  # whether its best recipe has worse neighbours on both sides

    @property
    def loss(self) -> float:
        """The mean over seeds."""
        return float(np.mean(self.losses))

    @property
    def error(self) -> float:
        """The standard error that windows give to the mean: all seeds are evaluated on the same ones."""
        return float(np.mean(self.errors))


@dataclass(frozen=True)
class Refusal:
    """Why there is no law, or no prediction: a sentence."""

    reason: str


@dataclass(frozen=True)
class SeedNoise:
    """How far seeds of one recipe spread, pooled over the sizes that have several."""

    variance: float  # of one run's loss; 0 where no size has several seeds
    df: int

    def draw(self, rng: np.random.Generator, num: int) -> Numbers:
        """Variances (num,) that the spread is compatible with: s² df / χ², as Student's t has it."""
        return self.variance * self.df / rng.chisquare(self.df, num) if self.df else np.zeros(num)


def seed_noise(points: Sequence[Point]) -> SeedNoise:
    """The pooled variance of losses around their size's mean."""
    squares = sum(float(((np.array(point.losses) - point.loss) ** 2).sum()) for point in points)
    df = sum(len(point.losses) - 1 for point in points)
    return SeedNoise(squares / df if df else 0.0, df)


def variances(points: Sequence[Point], noise: SeedNoise) -> Numbers:
    """The variance (num_points,) of each size's mean loss: of its seeds, and of its windows."""
    return np.array([noise.variance / len(point.losses) + max(point.error, LEAST_ERROR) ** 2 for point in points])


def mean_interval(point: Point, noise: SeedNoise) -> tuple[float, float]:
    """The 95 % interval of a size's mean loss, by Student's t with the degrees of freedom of the seeds."""
    error = math.sqrt(float(variances([point], noise)[0]))
    reach = two_sided_errors(CONFIDENCE, noise.df or math.inf) * error
    return point.loss - reach, point.loss + reach


def staircase(points: Sequence[Point]) -> list[Point]:
    """The points, by size, whose loss is lower than that of every smaller size."""
    steps: list[Point] = []
    for point in sorted(points, key=lambda point: (point.n_params, point.loss)):
        if not steps or point.loss < steps[-1].loss:
            steps.append(point)
    return steps


def lower_envelope(points: Sequence[Point], noise: SeedNoise) -> list[Point]:
    """The points, by size, that no smaller or SIMILAR size beats by more than noise (BEATEN_ERRORS).

    The staircase itself would keep only lucky losses where the law is nearly flat, and bend it down.
    """
    ordered = sorted(points, key=lambda point: (point.n_params, point.loss))
    variance = variances(ordered, noise)

    def beats(other: int, index: int) -> bool:
        noise_of_both = math.sqrt(variance[index] + variance[other])
        is_small = ordered[other].n_params <= SIMILAR * ordered[index].n_params
        return is_small and ordered[index].loss - ordered[other].loss > BEATEN_ERRORS * noise_of_both

    indices = range(len(ordered))
    return [ordered[index] for index in indices if not any(beats(other, index) for other in indices)]
