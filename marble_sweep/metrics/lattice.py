"""Motion on the bfloat16 lattice, in cells of the grid: pure functions, tensors in, numbers out.

bfloat16 has 8 exponent bits (bias 127) and 7 mantissa bits, so near w the grid is spaced
ULP(w) = 2^(max(E, 1) - 134), E being w's biased exponent field and 134 = 127 + 7.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_EXPONENT_BITS = 0x7F80_0000  # of a float32, which bfloat16 is the upper half of
_CELLS = 2.0**7  # between a power of two and the next
_SMALLEST_POWER = 2.0**-126  # the subnormals' spacing is that of the smallest normal numbers


def ulp_bf16(weights: Tensor) -> Tensor:
    """The spacing of the bfloat16 grid at each weight, away from zero; float32, same shape.

    weights are bfloat16, or float32 values that lie on its grid. Infinities and NaN have no
    spacing: NaN, as numpy.spacing has it.
    """
    power = _power_below(weights)
    return (power / _CELLS).masked_fill(power == math.inf, math.nan)


def _power_below(weights: Tensor) -> Tensor:
    """2^(max(E, 1) - 127), the power of two at or below |weight|; infinity for infinities and NaN."""
    bits = weights.to(torch.float32, copy=True).view(torch.int32)
    return bits.bitwise_and_(_EXPONENT_BITS).view(torch.float32).clamp_min_(_SMALLEST_POWER)


def lattice_displacement(before: Tensor, after: Tensor) -> Tensor:
    """(after - before) / ULP(before): how many cells of the starting grid each weight moved; float32.

    Both are bfloat16 of one shape. Weights held in float32 are rounded to bfloat16 by the caller.
    """
    # The ULP itself may be so small that a device takes it for zero; the power of two is not. In place,
    # and without comparisons, which take several times as long as arithmetic on the CPU.
    distance = after.to(torch.float32, copy=True).sub_(before)
    return distance.div_(_power_below(before)).mul_(_CELLS)


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
    _, group, sizes = weights.view(torch.int16).unique(dim=0, return_inverse=True, return_counts=True)
    members: dict[int, list[int]] = {}
    for token in torch.nonzero(sizes[group] > 1).flatten().tolist():
        members.setdefault(int(group[token]), []).append(token)
    return sorted(members.values(), key=len, reverse=True)
