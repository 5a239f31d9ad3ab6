"""Motion on the bfloat16 lattice, in cells of the grid: pure functions, tensors in, numbers out.

bfloat16 has 8 exponent bits (bias 127) and 7 mantissa bits, so near w the grid is spaced
ULP(w) = 2^(max(E, 1) - 134), E being w's biased exponent field and 134 = 127 + 7.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_EXPONENT_BITS = 0x7F80_0000  # of a float32, which bfloat16 is the upper half of
_MANTISSA_STEP = 2.0**-7
_SMALLEST_ULP = 2.0**-133  # of zero and the subnormals


def ulp_bf16(weights: Tensor) -> Tensor:
    """The spacing of the bfloat16 grid at each weight, away from zero; float32, same shape.

    weights are bfloat16, or float32 values that lie on its grid. Infinities and NaN have no
    spacing: NaN, as numpy.spacing has it.
    """
    power = (weights.float().view(torch.int32) & _EXPONENT_BITS).view(torch.float32)  # 2^(E - 127)
    ulp = (power * _MANTISSA_STEP).clamp_min(_SMALLEST_ULP)
    return ulp.masked_fill(power == math.inf, math.nan)


def lattice_displacement(before: Tensor, after: Tensor) -> Tensor:
    """(after - before) / ULP(before): how many cells of the starting grid each weight moved; float32.

    Both are bfloat16 of one shape. Weights held in float32 are rounded to bfloat16 by the caller.
    """
    moved = after.float() - before.float()
    # What did not move is at 0 also where the device flushes the smallest ULPs to zero.
    return (moved / ulp_bf16(before)).masked_fill_(moved == 0, 0.0)


class Motion(NamedTuple):
    """What each token's row did in a step, all (V,) float32."""

    l1: Tensor  # sum of |cells| over the D dimensions
    l2: Tensor
    linf: Tensor  # the farthest any dimension moved


def token_motion(before: Tensor, after: Tensor) -> Motion:
    """Norms of each row's lattice displacement; before and after are (V, D) bfloat16."""
    displacement = lattice_displacement(before, after).abs_()
    return Motion(
        l1=displacement.sum(dim=1),
        l2=displacement.square().sum(dim=1).sqrt(),
        linf=displacement.amax(dim=1),
    )


class Regimes(NamedTuple):
    """Which regime each token is in, all (V,) bool; a token is in exactly one."""

    frozen: Tensor  # L1 = 0
    late: Tensor  # L-infinity <= 1: moved to a neighbouring cell at most
    midlife: Tensor  # farther, but L2 <= sqrt(D)
    early: Tensor  # L2 > sqrt(D): a multi-cell jump


def regimes(motion: Motion, hidden_dim: int) -> Regimes:
    """Sort tokens by how they moved. Tokens with a NaN displacement are in none."""
    moved = motion.l1 > 0
    near = motion.linf <= 1
    local = motion.l2 <= math.sqrt(hidden_dim)
    return Regimes(
        frozen=motion.l1 == 0,
        late=moved & near,
        midlife=moved & ~near & local,
        early=moved & ~near & (motion.l2 > math.sqrt(hidden_dim)),
    )


def black_holes(weights: Tensor) -> list[list[int]]:
    """Groups of two or more tokens whose rows are bit-for-bit identical, largest group first.

    weights (V, D) bfloat16. +0 and -0 are different bits.
    """
    _, group, sizes = weights.view(torch.int16).unique(dim=0, return_inverse=True, return_counts=True)
    members: dict[int, list[int]] = {}
    for token in torch.nonzero(sizes[group] > 1).flatten().tolist():
        members.setdefault(int(group[token]), []).append(token)
    return sorted(members.values(), key=len, reverse=True)
