"""Bits of weights to steps on their lattice and back: pure functions on arrays, exact for every bit pattern.

Read as a signed integer, the bits of a floating-point number are in its order where the sign is clear and in the
opposite order where it is set. With the other bits of those turned over, neighbours on the lattice are neighbours as
integers: -0 is -1, +0 is 0, the smallest positive number is 1. The difference of two such integers is the number of
lattice points from one weight to the other. Zigzag coding (as in Protocol Buffers: 0, -1, 1, -2, ... become
0, 1, 2, 3, ...) leaves the high bits of small differences clear, which compresses well. All arithmetic is modulo 2^16,
or 2^32 for float32, so even the way from NaN to NaN comes back bit for bit.

>>> import numpy as np
>>> weights = np.array([[0x3F80, 0x0000], [0x3F7F, 0x8000]], np.uint16)  # 1 and 0, then the numbers below: -0 below 0
>>> zigzag(np.diff(ordered(weights), axis=0))
array([[1, 1]], dtype=uint16)
"""

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from marble_sweep.kernels.record import compiled_step

Bits = npt.NDArray[Any]  # uint16 or uint32

SIGNED: dict[np.dtype[Any], Any] = {np.dtype(np.uint16): np.int16, np.dtype(np.uint32): np.int32}


def ordered(bits: Bits, out: Bits | None = None) -> Bits:
    """Bits as integers in the order of the numbers, two's complement in an unsigned dtype; and back.

    The function is its own inverse: the sign bit stays, the others are turned over where it is set. `out` may be
    `bits` itself.
    """
    signed = SIGNED[bits.dtype]
    # The sign bit everywhere (0 or -1), but for the sign bit itself.
    turned = (bits.view(signed) >> (8 * bits.itemsize - 1)).view(bits.dtype)
    turned &= np.iinfo(signed).max
    return np.bitwise_xor(bits, turned, out=out)


def zigzag(differences: Bits, out: Bits | None = None) -> Bits:
    """Signed differences as unsigned numbers, the smallest first: 0, -1, 1, -2, … become 0, 1, 2, 3, …."""
    signed = SIGNED[differences.dtype]
    signs = (differences.view(signed) >> (8 * differences.itemsize - 1)).view(differences.dtype)
    return np.bitwise_xor(np.left_shift(differences, 1, out=out), signs, out=out)


def unzigzag(coded: Bits) -> Bits:
    """The differences that `zigzag` coded."""
    return (coded >> 1) ^ (0 - (coded & 1))


def encode(before: Bits | None, after: Bits, out: Bits | None = None) -> Bits:
    """The zigzagged lattice points from `before` to `after`, both `ordered`; a keyframe where `before` is None."""
    if before is None:
        return zigzag(after, out=out)
    return zigzag(np.subtract(after, before, out=out), out=out)


def code_step(weights: Bits, before: Bits | None, points: Bits, coded: Bits) -> None:
    """Write `ordered(weights)` to `points` and what `encode` makes of them to `coded`; in one pass where it can."""
    compiled = compiled_step()
    if compiled is not None:
        compiled(np.ascontiguousarray(weights), before, points, coded)
    else:
        encode(before, ordered(weights, out=points), out=coded)


def decode(coded: Bits, before: Bits | None) -> Bits:
    """The ordered weights (k, ...) of consecutive coded rows (k, ...).

    The first row is a keyframe where `before` is None, and goes on from there else. None of the others is a keyframe.
    """
    rows = unzigzag(coded)
    if before is not None:
        rows[0] += before
    for row_before, row in pairwise(rows):  # np.add.accumulate runs along columns, and takes a hundred times as long
        row += row_before
    return rows
