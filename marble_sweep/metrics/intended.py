"""The intended update in cells of the bfloat16 lattice, and what rounding makes of it: pure functions of tensors.

A cell is the distance from a weight to its neighbour in the direction of the update: ULP(w), or half of it where w is a
power of two and the update goes towards zero. Rounding to nearest moves a weight if and only if the update is beyond
half a cell; at exactly half it moves to the neighbour with the even mantissa. So what is below half a cell is lost.
"""

import enum
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from marble_sweep.kernels.step_metrics import CellCounts, CompiledMetrics
from marble_sweep.metrics.lattice import BFLOAT16, power_below


class Rounding(enum.IntEnum):
    """How a policy brings an intended update into the weights; step_metrics.c has the same numbers."""

    NEAREST = 0  # once, after decay and gradient are added up in float32
    TWICE = 1  # to nearest after the decay, and again after the gradient: all arithmetic is bfloat16
    STOCHASTIC = 2  # once, to one of the two neighbours, the nearer the likelier
    MASTERS = 3  # float32 weights, whose motion is that of what bfloat16 shows of them: it adds up


SHARES = (
    "below_half",  # of the entries: the whole update does not reach half a cell
    "gradient_below_half",  # ... its part that comes from the gradient
    "decay_below_half",  # ... its part that comes from decay
    "decay_lost",  # of the entries with a decay: they end as they would without it
    "cells_median",  # of the entries: the update in cells
    "cells_p95",
    "predicted_moving",  # of the tokens: the rule moves at least one of their dimensions
)
# What a step's vector holds, in this order.
INTENDED = tuple(f"{kind}_{share}" for kind in ("dead", "live") for share in SHARES)

BINS_PER_OCTAVE = 8
FIRST_OCTAVE, LAST_OCTAVE = -24, 24  # cells below 2^-24 are counted in the first bin, those from 2^24 on in the last
NUM_BINS = BINS_PER_OCTAVE * (LAST_OCTAVE - FIRST_OCTAVE)
_BIN_SHIFT = 20  # of a float32's bits: what is left is the exponent and three bits of the mantissa
_FIRST_BIN = (127 + FIRST_OCTAVE) * BINS_PER_OCTAVE


class Step(NamedTuple):
    """What an optimizer meant to do with a table of weights in one step."""

    before: Tensor  # (V, D) bfloat16, or float32 with MASTERS
    target: Tensor  # (V, D) float32: what it arrived at before the (last) rounding
    decay: float | None  # the decay of a weight is -decay * weight; None where it is no part of its own
    rounding: Rounding


class Parts(NamedTuple):
    """An update and its two parts, all (V, D) float32, in the weights' unit."""

    whole: Tensor
    gradient: Tensor
    decay: Tensor


def update_parts(step: Step) -> Parts:
    """The intended update before any rounding, and what gradient and decay have in it."""
    weights = step.before.float()
    decay = weights * -(step.decay or 0.0)
    if step.rounding == Rounding.TWICE:
        gradient = step.target - decayed(step)
        return Parts(gradient + decay, gradient, decay)
    whole = step.target - weights
    return Parts(whole, whole - decay, decay)


def decayed(step: Step) -> Tensor:
    """The weights after their decay, as bfloat16 arithmetic leaves them; float32."""
    return (step.before * (1 - (step.decay or 0.0))).bfloat16().float()


def seen(step: Step) -> Tensor:
    """The weights before the step as bfloat16 shows them; float32."""
    return step.before.bfloat16().float()


def in_cells(update: Tensor, weights: Tensor) -> Tensor:
    """|update| in cells; float32. weights lie on the bfloat16 lattice."""
    power = power_below(weights, BFLOAT16)
    towards_zero = (update < 0) != (weights < 0)
    is_power = (weights.abs() == power) & (power > BFLOAT16.smallest_power)
    cells = update.abs().div_(power).mul_(2**BFLOAT16.mantissa_bits)
    return torch.where(towards_zero & is_power, 2 * cells, cells)


def moves(cells: Tensor, weights: Tensor) -> Tensor:
    """Whether rounding to nearest moves a weight by an update of so many cells, bool."""
    is_odd = (weights.bfloat16().view(torch.int16) & 1).bool()
    return (cells > 0.5) | ((cells == 0.5) & is_odd)


def motion_chance(step: Step) -> Tensor:
    """How likely each entry moves on the lattice, (V, D) float32: 0 or 1, and between them with stochastic rounding."""
    weights = seen(step)
    if step.rounding in (Rounding.TWICE, Rounding.MASTERS):
        return (step.target.bfloat16().float() != weights).float()
    cells = in_cells(update_parts(step).whole, weights)
    return cells.clamp(max=1) if step.rounding == Rounding.STOCHASTIC else moves(cells, weights).float()


def loses_decay(step: Step) -> Tensor:
    """Whether each weight ends as it would without its decay, (V, D) bool. Not defined for stochastic rounding."""
    if step.rounding == Rounding.TWICE:
        return decayed(step) == step.before.float()
    decay = update_parts(step).decay
    if step.rounding == Rounding.MASTERS:
        return step.before + decay == step.before
    return step.target.bfloat16() == (step.target - decay).bfloat16()


class Counts(NamedTuple):
    """What `shares` divides, of the dead tokens first and then of the live ones."""

    entries: Tensor  # (2, 5) int64: below half a cell by the whole update, gradient and decay; decays lost; decays
    moving: Tensor  # (2,) float32: tokens that move, or are expected to
    histogram: Tensor  # (2, NUM_BINS) int64: entries by their update in cells


def count(step: Step, is_dead: Tensor) -> Counts:
    """Of all entries of a table; is_dead (V,) bool."""
    weights, parts = seen(step), update_parts(step)
    cells = [in_cells(part, weights) for part in parts]
    below = [~moves(part, weights) for part in cells]
    decays = parts.decay != 0
    kinds = torch.stack([is_dead, ~is_dead])  # (2, V)
    per_token = torch.stack([value.sum(dim=1) for value in (*below, loses_decay(step) & decays, decays)])  # (5, V)
    chance = 1 - (1 - motion_chance(step)).prod(dim=1)
    bins = (cells[0].view(torch.int32) >> _BIN_SHIFT).sub_(_FIRST_BIN).clamp_(0, NUM_BINS - 1)
    bins += NUM_BINS * (~is_dead)[:, None]
    histogram = torch.zeros(2 * NUM_BINS, dtype=torch.int64, device=bins.device)
    histogram.index_add_(0, bins.flatten(), torch.ones_like(bins, dtype=torch.int64).flatten())
    moving = torch.where(kinds, chance, 0).sum(dim=1)
    return Counts(torch.where(kinds[:, None], per_token, 0).sum(dim=2), moving, histogram.view(2, NUM_BINS))


def count_compiled(compiled: CompiledMetrics, step: Step, is_dead: Tensor) -> Counts:
    """The same by compiled code, in one pass; on the CPU."""
    parts = compiled.intended_update(step.before, step.target, step.decay or 0.0, step.rounding, is_dead)
    entries, moving, histogram = (
        torch.tensor(np.array([[getattr(kind, name) for kind in part] for part in parts])).sum(dim=0)
        for name, _ in CellCounts._fields_
    )
    return Counts(entries, moving.float(), histogram)


def shares(counts: Counts, num_tokens: Tensor, step: Step) -> Tensor:
    """One step's values in INTENDED's order, (len(INTENDED),) float32; num_tokens (2,) are the dead and the live.

    Shares of nothing are NaN. So are those of decay where there is none or where it is no part of its own, and
    `decay_lost` with stochastic rounding, which keeps a decay on average.
    """
    num_entries = (num_tokens * step.before.shape[1])[:, None]
    below = counts.entries[:, :3] / num_entries
    lost = counts.entries[:, 3:4] / counts.entries[:, 4:]
    if not step.decay:
        below[:, 1 if step.decay is None else 2 :] = math.nan
    if not step.decay or step.rounding == Rounding.STOCHASTIC:
        lost = torch.full_like(lost, math.nan)
    values = quantiles(counts.histogram, 0.5, 0.95)
    moving = (counts.moving / num_tokens)[:, None]
    return torch.cat([below, lost, values, moving], dim=1).flatten().float()


def quantiles(histogram: Tensor, *shares: float) -> Tensor:
    """The values below which each share of the counted entries lies, (2, S) float32: exact to the width of a bin, 1/8.

    Within a bin the entries count as evenly spread. NaN where nothing is counted, 0 in the first bin.
    """
    reached = histogram.cumsum(dim=1).float()
    wanted = torch.cat([share * reached[:, -1:] for share in shares], dim=1)
    bins = torch.searchsorted(reached, wanted).clamp_(max=NUM_BINS - 1)
    inside = histogram.gather(1, bins)
    past = (wanted - (reached.gather(1, bins) - inside)) / inside
    octave, part = bins // BINS_PER_OCTAVE, bins % BINS_PER_OCTAVE
    values = torch.exp2((octave + FIRST_OCTAVE).float()) * (1 + (part + past) / BINS_PER_OCTAVE)
    return torch.where(bins == 0, values * 0, values)
