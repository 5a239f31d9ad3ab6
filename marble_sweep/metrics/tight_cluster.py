"""The rule that finds a tight cluster of rows: suspected dead rows. Pure functions on numpy arrays.

A cluster is the rows within some radius of a centre, if a ball of twice that radius holds hardly any more rows.
Rows that were trained have no such ball. They fill many dimensions, where nearly all of them are about as far from
each other as any two, so a ball that holds a few of them holds nearly all when it is twice as wide.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

MIN_ROWS = 16
MAX_SHARE = 0.75  # of all rows: a ball around the bulk of the rows is no cluster
WIDER = 2.0  # times the radius
MAX_MORE = 0.05  # share of rows that a ball so much wider may hold beyond the cluster's


def cluster_size(distances: NDArray[np.float64]) -> int | None:
    """How many of the rows nearest to a centre are a tight cluster, None if there is none.

    distances (n,) from the centre, in any order, finite. The radius is the largest one of a row for which the ball
    holds at least MIN_ROWS, and one of WIDER times the radius at most MAX_MORE more and MAX_SHARE of all. Of the few
    rows between half of that radius and the next row beyond it some may be no members: the boundary is where
    the next distance is the largest multiple of the one before.
    """
    ordered = np.sort(distances)
    within = np.asarray(np.searchsorted(ordered, ordered, side="right"))  # rows that are as far belong together
    more = np.searchsorted(ordered, WIDER * ordered, side="right") - within
    fits = (within >= MIN_ROWS) & (within + more <= MAX_SHARE * len(ordered)) & (more <= MAX_MORE * within)
    if not fits.any():
        return None
    last = int(within[fits][-1])
    first = max(int(np.searchsorted(ordered, ordered[last - 1] / 2)), MIN_ROWS - 1)
    inner, outer = ordered[first:last], ordered[first + 1 : last + 1]
    ratios = np.divide(outer, inner, out=np.where(outer > inner, np.inf, 1.0), where=inner > 0)
    return first + int(ratios.argmax()) + 1


def nearest_neighbours(points: NDArray[np.float64], num_rows: int) -> NDArray[np.int64]:
    """(num_rows, MIN_ROWS) the rows whose neighbours are nearest, densest first: themselves and their neighbours.

    points (n, few), n at least MIN_ROWS.
    """
    distances, neighbours = map(np.asarray, cKDTree(points).query(points, k=MIN_ROWS))
    return neighbours[np.argsort(distances[:, -1], kind="stable")[:num_rows]]
