"""Least squares of y = E + A exp(-α x), E >= 0 and A >= 0, by variable projection.

For a given α the best E and A are linear (Golub and Pereyra, "The differentiation of pseudo-inverses and nonlinear
least squares problems whose variables separate", SIAM Journal on Numerical Analysis 10, 1973). What is left is a
function of α alone, whose minimum cannot be missed: all of MIN_ALPHA to MAX_ALPHA is looked at. No start is chosen, and
nothing is fitted in log space, where a parabola or a line misleads as soon as E is above 0.
"""

from dataclasses import dataclass

import numpy as np

from marble_sweep.scaling.points import Numbers

MIN_ALPHA, MAX_ALPHA = 0.02, 6.0  # below, the law is a line in log N; above, a step
GRID = np.geomspace(MIN_ALPHA, MAX_ALPHA, 200)  # neighbours differ by 2.9 %


@dataclass(frozen=True)
class Curves:
    """Laws (num,), one for every series of losses that was fitted."""

    level: Numbers  # E
    drop: Numbers  # A, at x = 0
    alpha: Numbers
    squares: Numbers  # the weighted sum of squared residuals

    def at(self, x: Numbers) -> Numbers:
        """The losses (num, num_x)."""
        return self.level[:, None] + self.drop[:, None] * np.exp(-np.outer(self.alpha, x))


def project(x: Numbers, y: Numbers, weights: Numbers, alphas: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """E, A and the weighted squared residuals (num, num_alphas) of each series `y` (num, num_x) at every α.

    E and A are those of least squares under E >= 0 and A >= 0.
    """
    total = weights.sum()
    falls = np.exp(-np.outer(x, alphas))  # (num_x, num_alphas)
    mean_fall, mean_y = weights @ falls / total, y @ weights / total
    centred, around = falls - mean_fall, y - mean_y[:, None]
    slope_squares = weights @ centred**2
    products = (around * weights) @ centred
    drop = np.maximum(products / slope_squares, 0.0)
    level = mean_y[:, None] - drop * mean_fall
    squares = (around**2 @ weights)[:, None] - drop**2 * slope_squares
    # Where that E is negative, 0 is the best one: the sum of squares is convex in E and A.
    fall_squares = weights @ falls**2
    drop_alone = (y * weights) @ falls / fall_squares
    squares_alone = (y**2 @ weights)[:, None] - drop_alone**2 * fall_squares
    below = level < 0
    return np.where(below, 0.0, level), np.where(below, drop_alone, drop), np.where(below, squares_alone, squares)


def fit_curves(x: Numbers, y: Numbers, weights: Numbers) -> Curves:
    """The best law for each series `y` (num, num_x), with α to a grid of 2.9 %: good enough for replicates."""
    level, drop, squares = project(x, y, weights, GRID)
    best = squares.argmin(axis=1)
    rows = np.arange(len(y))
    return Curves(level[rows, best], drop[rows, best], GRID[best], squares[rows, best])


def fit_curve(x: Numbers, y: Numbers, weights: Numbers) -> Curves:
    """The best law for one series `y` (num_x,): the best α of the grid, refined between its neighbours."""
    from scipy.optimize import minimize_scalar  # late: importing it takes 0.2 s

    best = int(project(x, y[None], weights, GRID)[2].argmin())
    ends = GRID[max(best - 1, 0)], GRID[min(best + 1, len(GRID) - 1)]

    def squares_at(alpha: float) -> float:
        return float(project(x, y[None], weights, np.array([alpha]))[2][0, 0])

    refined = float(minimize_scalar(squares_at, bounds=ends, method="bounded", options={"xatol": 1e-10}).x)
    alpha = min((refined, *ends), key=squares_at)
    level, drop, squares = project(x, y[None], weights, np.array([alpha]))
    return Curves(level[:, 0], drop[:, 0], np.array([alpha]), squares[:, 0])
