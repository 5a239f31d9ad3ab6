"""How far rows of weights moved in a step, from their bits: the norms that a record of dead tokens keeps.

The same as metrics.lattice.token_motion, by compiled code or in numpy: torch's operators would take the threads that
train.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from marble_sweep.kernels.step_metrics import compiled_metrics
from marble_sweep.record.lattice_coding import Bits

Floats = npt.NDArray[np.float32]

BLOCK = 1 << 16  # numbers that are measured at a time, so that what is worked out stays in the cache
_EXPONENT_BITS = np.uint32(0x7F80_0000)
_SMALLEST_POWER = np.float32(2.0**-126)
_CELLS = np.float32(2**7)  # from a power of two to the next


def floats(bits: Bits) -> Floats:
    """The numbers that bits of bfloat16 (uint16) or float32 (uint32) stand for, as float32."""
    if bits.dtype == np.uint32:
        return bits.view(np.float32)
    wide: npt.NDArray[Any] = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def rounded(values: Floats) -> Floats:
    """Values on the bfloat16 grid: rounded to nearest, ties to even; NaN stays."""
    bits = values.view(np.uint32)
    nearest = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) & np.uint32(0xFFFF_0000)
    return np.where(np.isnan(values), values, nearest.view(np.float32))


def motion_norms(before: Bits, after: Bits) -> Floats:
    """L1, L2 and L-infinity of the lattice displacement in cells, and the L2 norm of the change: (R, 4).

    before and after are bits (R, D). float32 weights are rounded to bfloat16 for the first three, and not for the last.
    """
    compiled = compiled_metrics(torch.device("cpu"))
    if compiled is not None:
        return compiled.motion_norms(before, after)
    norms = np.empty((len(before), 4), np.float32)
    num_rows = max(1, BLOCK // before.shape[1])
    with np.errstate(all="ignore"):  # infinities and NaN give NaN
        for first in range(0, len(before), num_rows):
            rows = slice(first, first + num_rows)
            _measure(before[rows], after[rows], norms[rows])
    return norms


def _measure(before: Bits, after: Bits, norms: Floats) -> None:
    first, last = floats(before), floats(after)
    change = last - first
    norms[:, 3] = _l2(change.astype(np.float64))
    if before.dtype == np.uint32:
        first, last = rounded(first), rounded(last)
        change = last - first
    power = np.maximum((first.view(np.uint32) & _EXPONENT_BITS).view(np.float32), _SMALLEST_POWER)
    np.divide(change, power, out=change)
    np.multiply(change, _CELLS, out=change)
    cells = np.abs(change, out=change).astype(np.float64)
    norms[:, 0] = np.add.reduce(cells, axis=1)
    norms[:, 1] = _l2(cells)
    norms[:, 2] = np.max(change, axis=1)


def _l2(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.sqrt(np.einsum("rd,rd->r", values, values))
