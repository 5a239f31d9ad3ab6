"""Motion on the bfloat16 lattice, from the bits of weights: the definitions of metrics/lattice.py, without torch."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint16] | NDArray[np.uint32]  # of bfloat16, or of float32 masters
Floats = NDArray[np.float32]
MANTISSA_CELLS = np.float32(2**7)  # from a power of two to the next
EXPONENT, SMALLEST_NORMAL = np.uint16(0x7F80), np.uint16(0x0080)  # bits of a bfloat16
INFINITY, QUIET = np.uint32(0x7F80_0000), np.uint16(0x0040)
ROUNDS_TO_INFINITY = np.uint32(0x7F7F_8000)  # the first float32 beyond which bfloat16 has no finite number


def seen(bits: Bits) -> NDArray[np.uint16]:
    """The bfloat16 bits that the lattice is seen in: those of float32 masters are rounded, ties to even."""
    if bits.dtype == np.uint16:
        return bits.astype(np.uint16, copy=False)
    upper = (bits >> 16).astype(np.uint16)
    rounded = ((bits + np.uint32(0x7FFF) + (upper & np.uint16(1))) >> 16).astype(np.uint16)
    is_nan = (bits & np.uint32(0x7FFF_FFFF)) > INFINITY  # rounding might make it infinite, or wrap around
    return np.where(is_nan, upper | QUIET, rounded)


def all_finite(bits: Bits) -> bool:
    """Whether neither NaN nor infinity is among the bits; float32 masters count as rounded to bfloat16."""
    if bits.dtype == np.uint16:
        return bool(((bits & np.uint16(0x7FFF)) < EXPONENT).all())
    return bool(((bits & np.uint32(0x7FFF_FFFF)) < ROUNDS_TO_INFINITY).all())


def values(bits: Bits) -> Floats:
    """The numbers that bits stand for."""
    if bits.dtype == np.uint16:
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float32)


def displacement(before: NDArray[np.uint16], after: NDArray[np.uint16]) -> Floats:
    """(after - before) / ULP(before), in cells of the grid at the start; both are bfloat16 bits of one shape."""
    power = values(np.maximum(before & EXPONENT, SMALLEST_NORMAL))  # 2^(max(E, 1) - 127)
    cells = values(after)
    # Far from zero and next to it, a distance of that many cells is no finite float32.
    with np.errstate(over="ignore", invalid="ignore"):
        cells -= values(before)
        cells /= power
        cells *= MANTISSA_CELLS
    return cells


class Motion(NamedTuple):
    """How far rows moved, in cells; arrays of one shape, (R,) or (k, R) float32."""

    l1: Floats
    l2: Floats
    linf: Floats


def row_motion(before: NDArray[np.uint16], after: NDArray[np.uint16]) -> Motion:
    """The norms of each row's displacement, (R,) float32; before and after are (R, D) bfloat16 bits."""
    norms = np.zeros((3, len(before)), dtype=np.float32)
    rows = changed_rows(before, after)
    if len(rows):
        everything = len(rows) == len(before)  # taking rows copies them
        cells = displacement(before, after) if everything else displacement(before[rows], after[rows])
        np.abs(cells, out=cells)
        with np.errstate(over="ignore"):
            norms[0, rows] = cells.sum(axis=1)
            norms[1, rows] = np.sqrt(np.einsum("rd,rd->r", cells, cells))
        norms[2, rows] = cells.max(axis=1)
    return Motion(*norms)


def changed_rows(before: Bits, after: Bits) -> NDArray[np.intp]:
    """The rows in which any bit differs."""
    return np.flatnonzero((before != after).any(axis=1))


class Regimes(NamedTuple):
    """Which rows moved how, in the shape of their motion; bool. A row that did not move is in none."""

    early: NDArray[np.bool_]  # L2 > sqrt(D): a jump of many cells
    midlife: NDArray[np.bool_]  # else L-infinity > 1
    late: NDArray[np.bool_]  # to a neighbouring cell at most

    @property
    def moved(self) -> NDArray[np.bool_]:
        return self.early | self.midlife | self.late


def regimes(motion: Motion, dim: int) -> Regimes:
    """Sort rows by how they moved; those with a NaN displacement are in none."""
    far = motion.linf > 1
    early = far & (motion.l2 > np.float32(math.sqrt(dim)))
    return Regimes(early, far & ~early, (motion.l1 > 0) & (motion.linf <= 1))
