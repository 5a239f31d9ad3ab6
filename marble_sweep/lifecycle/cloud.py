"""The cloud of the dead tokens: where it is, how wide it is, how it moves. Sums are in float64."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from marble_sweep.lifecycle.motion import Bits, Floats, changed_rows, values

Numbers = NDArray[np.float64]
MAX_SAMPLED = 256  # recorded steps that the principal components, and the black holes, are taken from


def sampled_places(num_steps: int) -> NDArray[np.int64]:
    """The places of at most MAX_SAMPLED recorded steps, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, num_steps - 1, min(num_steps, MAX_SAMPLED)).round().astype(np.int64))


def axis_along(h_mean: Floats, dim: int) -> Numbers:
    """-h_mean (m, D) of the last step at which it is finite, normalised; NaN where there is none."""
    finite = np.flatnonzero(np.isfinite(h_mean).all(axis=1))
    last = -h_mean[finite[-1]].astype(np.float64) if len(finite) else np.zeros(dim)
    norm = np.linalg.norm(last)
    return last / norm if norm > 0 else np.full(dim, np.nan)


class Extent(NamedTuple):
    """A cloud's place and width at one step, in units of the weights."""

    centroid: Numbers  # (D,)
    radius: float
    spread_along: float
    spread_across: float


def measure_extent(rows: Floats, axis: Numbers, near: Numbers) -> Extent:
    """Of the rows (N, D). `near` (D,) is a point near the centroid: around it, squares do not cancel out."""
    around = rows - near  # float64
    offset = around.mean(axis=0)
    variance = np.einsum("nd,nd->", around, around) / len(rows) - offset @ offset
    projected = around @ axis
    along = np.square(projected - projected.mean()).mean()
    radius, spread_along, spread_across = np.sqrt(np.maximum([variance, along, variance - along], 0))
    return Extent(near + offset, float(radius), float(spread_along), float(spread_across))


def coherence(before: Bits, after: Bits) -> float:
    """The mean cosine between the displacement of a row that moved and the mean displacement of all (N, D) rows.

    NaN where none moved, or the displacements add up to nothing.
    """
    rows = changed_rows(before, after)
    moved = values(after[rows]).astype(np.float64) - values(before[rows])
    lengths = np.sqrt(np.einsum("nd,nd->n", moved, moved))
    moved, lengths = moved[lengths > 0], lengths[lengths > 0]  # from +0 to -0 is no motion
    total = moved.sum(axis=0)
    norm = np.linalg.norm(total)
    return float(((moved @ total) / lengths).mean() / norm) if norm > 0 else float("nan")


class Scatter:
    """The covariance of rows that come a few at a time, in float64."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.origin = np.full(dim, np.nan)  # the first rows' mean: near all of them, so that squares do not cancel out
        self.total = np.zeros(dim)
        self.products = np.zeros((dim, dim))

    def add(self, rows: Floats) -> None:
        """Rows (N, D), of finite numbers."""
        if not self.count:
            self.origin = rows.mean(axis=0, dtype=np.float64)
        around = rows - self.origin
        self.count += len(rows)
        self.total += around.sum(axis=0)
        self.products += around.T @ around

    @property
    def covariance(self) -> Numbers:
        """(D, D); zeros where no row was added."""
        if not self.count:
            return self.products
        mean = self.total / self.count
        return self.products / self.count - np.outer(mean, mean)


def principal_directions(covariance: Numbers, motion: Numbers, number: int) -> Numbers:
    """The (number, D) directions of most variance, in which the centroid's whole motion (D,) does not go backwards."""
    directions = np.linalg.eigh(covariance).eigenvectors[:, ::-1].T[:number]
    return np.where(directions @ motion < 0, -1.0, 1.0)[:, None] * directions


def across_direction(covariance: Numbers, axis: Numbers, motion: Numbers) -> Numbers:
    """(D,) the direction of most variance among those at right angles to the axis; NaN where there is no axis."""
    if np.isnan(axis).any():
        return axis
    remove = np.eye(len(axis)) - np.outer(axis, axis)
    return principal_directions(remove @ covariance @ remove, motion, 1)[0]


def path_columns(steps: NDArray[np.int64], centroids: Numbers, axis: Numbers, principal: Numbers) -> dict[str, Numbers]:
    """Position and speed of the centroid in transitions; steps (n + 1,) and centroids (n + 1, D) have their starts."""
    moved = np.diff(centroids, axis=0) / np.diff(steps)[:, None]
    along, moved_along = centroids @ axis, moved @ axis
    columns = {
        "centroid_norm": np.linalg.norm(centroids, axis=1)[1:],
        "centroid_along": along[1:],
        "centroid_across": np.linalg.norm(centroids - np.outer(along, axis), axis=1)[1:],
        "speed_along": moved_along,
        "speed_across": np.linalg.norm(moved - np.outer(moved_along, axis), axis=1),
    }
    for number, direction in enumerate(principal, start=1):
        columns[f"centroid_pc{number}"] = (centroids @ direction)[1:]
        columns[f"speed_pc{number}"] = moved @ direction
    return columns


def lift_off_step(steps: NDArray[np.int64], centroid_norm: Numbers, radius: Numbers) -> int | None:
    """The first step from which on the origin lies outside the cloud: the centroid is farther from it than the radius.

    It stays outside to the end of the record; None where it does not.
    """
    inside = np.flatnonzero(~(centroid_norm > radius))
    first = inside[-1] + 1 if len(inside) else 0
    return int(steps[first]) if first < len(steps) else None
