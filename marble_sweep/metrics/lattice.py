"""Motion on the bfloat16 lattice, in cells of the grid: pure functions, tensors in, numbers out.

bfloat16 has 8 exponent bits (bias 127) and 7 mantissa bits, so near w the grid is spaced
ULP(w) = 2^(max(E, 1) - 134), E being w's biased exponent field and 134 = 127 + 7. Published embeddings also come in
float16 and float32, whose lattices differ only in these numbers.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

_EXPONENT_BITS = 0x7F80_0000  # of a float32, which bfloat16 is the upper half of


class Lattice(NamedTuple):
    """The numbers of a binary floating-point format: ULP(w) = 2^(max(E, 1) - bias - mantissa_bits)."""

    name: str
    exponent_bits: int
    mantissa_bits: int  # 2^mantissa_bits cells lie between a power of two and the next

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def smallest_power(self) -> float:
        """The smallest normal number; the subnormals' spacing is that of the normal numbers above it."""
        return 2.0 ** (1 - self.bias)


BFLOAT16 = Lattice("bfloat16", 8, 7)
FLOAT16 = Lattice("float16", 5, 10)
FLOAT32 = Lattice("float32", 8, 23)


def ulp_bf16(weights: Tensor) -> Tensor:
    """The spacing of the bfloat16 grid at each weight, away from zero; float32, same shape.

    weights are bfloat16, or float32 values that lie on its grid. Infinities and NaN have no
    spacing: NaN, as numpy.spacing has it.
    """
    power = power_below(weights, BFLOAT16)
    return (power / 2**BFLOAT16.mantissa_bits).masked_fill(power == math.inf, math.nan)


def power_below(weights: Tensor, lattice: Lattice) -> Tensor:
    """2^(max(E, 1) - bias), the power of two at or below |weight|; infinity for infinities and NaN."""
    bits = weights.to(torch.float32, copy=True).view(torch.int32)
    return bits.bitwise_and_(_EXPONENT_BITS).view(torch.float32).clamp_min_(lattice.smallest_power)


def lattice_displacement(before: Tensor, after: Tensor, lattice: Lattice = BFLOAT16) -> Tensor:
    """(after - before) / ULP(before): how many cells of the starting grid each weight moved; float32.

    Both are of one shape and lie on the lattice. Weights held in float32 are rounded to bfloat16 by the caller.
    """
    # The ULP itself may be so small that a device takes it for zero; the power of two is not. In place,
    # and without comparisons, which take several times as long as arithmetic on the CPU.
    distance = after.to(torch.float32, copy=True).sub_(before)
    return distance.div_(power_below(before, lattice)).mul_(2**lattice.mantissa_bits)


def cells_apart(first: Tensor, second: Tensor, lattice: Lattice = BFLOAT16) -> Tensor:
    """How many cells lie between two weights, counted on the coarser of their two grids; float32, never negative.

    It is the lattice displacement from the weight that is farther from zero, so it is the same in both directions.
    On the finer grid a weight next to zero would be any number of cells away from every other.
    """
    farther = first.abs() >= second.abs()
    start, end = torch.where(farther, first, second), torch.where(farther, second, first)
    return lattice_displacement(start, end, lattice).abs_()


class Motion(NamedTuple):
    """What each token's row did in a step, all (V,) float32."""

    l1: Tensor  # sum of |cells| over the D dimensions
    l2: Tensor
    linf: Tensor  # the farthest any dimension moved


def token_motion(before: Tensor, after: Tensor) -> Motion:
    """Norms of each row's lattice displacement; before and after are (V, D) bfloat16."""
    distance = lattice_displacement(before, after).abs_()
    return Motion(l1=distance.sum(dim=1), l2=torch.linalg.vector_norm(distance, dim=1), linf=distance.amax(dim=1))


def moving(before: Tensor, after: Tensor) -> Tensor:
    """Which rows moved in any dimension, (V,) bool; before and after are (V, D) bfloat16.

    The same as token_motion(before, after).l1 > 0, for less work: distinct bfloat16 never differ by zero.
    """
    distance = (after - before).abs_()
    # As integers the bits of what is not negative are in the same order, and quicker to compare on the CPU.
    return distance.view(torch.int16).amax(dim=1) > 0


class Regimes(NamedTuple):
    """Which regime each token is in, all (V,) bool; a token is in exactly one."""

    frozen: Tensor  # L1 = 0
    late: Tensor  # L-infinity <= 1: moved to a neighbouring cell at most
    midlife: Tensor  # farther, but L2 <= sqrt(D)
    early: Tensor  # L2 > sqrt(D): a multi-cell jump


def regimes(motion: Motion, hidden_dim: int) -> Regimes:
    """Sort tokens by how they moved. Tokens with a NaN displacement are in none."""
    far = motion.linf > 1
    midlife = far & (motion.l2 <= math.sqrt(hidden_dim))
    late = (motion.l1 > 0) & (motion.linf <= 1)
    return Regimes(frozen=motion.l1 == 0, late=late, midlife=midlife, early=far ^ midlife)


def black_holes(weights: Tensor) -> list[list[int]]:
    """Groups of two or more tokens whose rows are bit-for-bit identical, largest group first.

    weights (V, D) bfloat16. +0 and -0 are different bits.
    """
    bits = weights.contiguous().view(torch.int16).cpu().numpy()
    return equal_groups(row.tobytes() for row in bits)


def equal_groups(keys: Iterable[bytes]) -> list[list[int]]:
    """The positions of equal keys, groups of two or more of them, largest group first, then by first position."""
    members: dict[bytes, list[int]] = {}
    for position, key in enumerate(keys):
        members.setdefault(key, []).append(position)
    return sorted((group for group in members.values() if len(group) > 1), key=len, reverse=True)
