"""metrics.csv as curves short enough to send to a browser."""

import numpy as np
from numpy.typing import NDArray


def shorten(values: NDArray[np.float64], num_points: int) -> NDArray[np.float64]:
    """Means of (num_columns, num_steps) over at most `num_points` runs of neighbouring steps of equal length.

    (num_columns, num_points), NaN where nothing in a run of steps was measured. A mean is what a noisy curve
    is read for; one that ends in an infinity ends there.
    """
    num_steps = values.shape[1]
    edges = np.linspace(0, num_steps, min(num_points, num_steps), endpoint=False).astype(int)
    known = np.isfinite(values)
    counts = np.add.reduceat(known, edges, axis=1, dtype=np.int64)
    sums = np.add.reduceat(np.where(known, values, 0.0), edges, axis=1)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
