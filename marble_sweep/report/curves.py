"""metrics.csv as curves of few points, for a page."""

import numpy as np
from numpy.typing import NDArray


def shorten(values: NDArray[np.float64], num_points: int) -> NDArray[np.float64]:
    """Means (num_columns, num_points) of values (num_columns, num_steps) over bins of neighbouring steps.

    There are at most `num_points` bins of about equal length. NaN where nothing finite was measured in a bin.
    """
    num_steps = values.shape[1]
    edges = np.linspace(0, num_steps, min(num_points, num_steps), endpoint=False).astype(int)
    known = np.isfinite(values)
    counts = np.add.reduceat(known, edges, axis=1, dtype=np.int64)
    sums = np.add.reduceat(np.where(known, values, 0.0), edges, axis=1)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
