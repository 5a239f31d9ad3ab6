"""Where tokens were at a few steps of a run, for a picture that moves."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Frames:
    """F recorded steps, evenly spread over the record, and P of its tokens, in the order of `Lifecycle.tokens`.

    frame_steps: (F,) int64, the first and the last recorded step among them.
    tokens: (P,) int64, ids: dead tokens, all stragglers among them, and live ones where they were recorded.
    positions: (F, P, 2) float32, along `Lifecycle.axis` and `Lifecycle.across`, the same two directions in every
        frame. NaN where the record has no positions.
    phases: (F, P) uint8, the retrospective phase: 0 early, 1 midlife, 2 late, 3 frozen.
    traces: (F, P) float32, the mean L1 displacement, in cells, of the transitions since the frame before; 0 in the
        first frame.
    """

    frame_steps: NDArray[np.int64]
    tokens: NDArray[np.int64]
    positions: NDArray[np.float32]
    phases: NDArray[np.uint8]
    traces: NDArray[np.float32]
