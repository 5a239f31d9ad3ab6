"""The intended update in cells, against ml_dtypes, float64 and every bit that stochastic rounding may add."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from bounds import FLOAT32
from compilers import needs_compiler

from marble_sweep.kernels.step_metrics import CompiledMetrics
from marble_sweep.metrics.intended import (
    BINS_PER_OCTAVE,
    FIRST_OCTAVE,
    INTENDED,
    LAST_OCTAVE,
    NUM_BINS,
    SHARES,
    Counts,
    Rounding,
    Step,
    count,
    count_compiled,
    in_cells,
    loses_decay,
    motion_chance,
    quantiles,
    shares,
    update_parts,
)


def all_weights() -> torch.Tensor:
    """Every finite bfloat16 below 2^100, (1, n): subnormals, both zeros and all powers of two among them."""
    weights = torch.arange(1 << 16).to(torch.uint16).view(torch.bfloat16).float()
    return weights[weights.abs() < 2.0**100].bfloat16()[None]


def neighbour(weights: torch.Tensor, up: bool) -> torch.Tensor:
    """The next bfloat16 above or below, float32, by numpy."""
    values = weights.float().numpy().astype(ml_dtypes.bfloat16)
    towards = np.full_like(values, np.inf if up else -np.inf)
    return torch.from_numpy(np.nextafter(values, towards).astype(np.float32))


@pytest.mark.parametrize("quarters", [0.0, 1.0, 1.999, 2.0, 2.001, 3.0, 4.0, 6.0, 9.0])
@pytest.mark.parametrize("up", [True, False])
def test_rounding_to_nearest_moves_what_the_rule_says(quarters: float, up: bool) -> None:
    """Quarters of the way to the neighbour on that side, ties among them."""
    before = all_weights()
    way = neighbour(before, up) - before.float()
    target = (before.double() + way.double() * quarters / 4).float()
    step = Step(before, target, 0.0, Rounding.NEAREST)
    rounded = target.numpy().astype(ml_dtypes.bfloat16)
    expected = rounded.astype(np.float32) != before.float().numpy()
    assert np.array_equal(motion_chance(step).bool().numpy(), expected)
    exact = (target.double() - before.double()).abs() / way.double().abs()
    assert torch.equal(in_cells(update_parts(step).whole, before.float()).double(), exact)


def test_stochastic_rounding_moves_as_often_as_the_bits_that_it_adds() -> None:
    """The oracle counts the 65,536 numbers that may be added to a float32's lower half."""
    generator = torch.Generator().manual_seed(0)
    before = (torch.randn(200, 7, generator=generator) * 0.02).bfloat16()
    before[:40] = 2.0 ** torch.randint(-9, -3, (40, 7), generator=generator).float()
    target = before.float() + torch.randn(200, 7, generator=generator) * 1e-4
    low_bits = target.numpy().view(np.uint32).astype(np.int64) & 0xFFFF
    cut = (target.numpy().view(np.uint32) & 0xFFFF0000).view(np.float32)
    stays = np.where(cut == before.float().numpy(), (1 << 16) - low_bits, 0)
    beyond = (target.numpy().view(np.uint32) & 0xFFFF0000) + np.uint32(1 << 16)
    stays += np.where(beyond.view(np.float32) == before.float().numpy(), low_bits, 0)
    chance = motion_chance(Step(before, target, 0.0, Rounding.STOCHASTIC))
    assert torch.equal(chance.double(), torch.from_numpy(1 - stays / (1 << 16)))


def steps(rounding: Rounding, width: int = 9) -> tuple[Step, torch.Tensor]:
    """A step of some size on weights of many sizes, and which tokens are dead."""
    generator = torch.Generator().manual_seed(int(rounding) + width)
    scale = 2.0 ** torch.randint(-20, 1, (60, width), generator=generator).float()
    weights = torch.randn(60, width, generator=generator) * scale
    weights[:, 0] = weights[:, 0].sign() * scale[:, 0]  # powers of two
    weights[0] = 0
    before = weights if rounding == Rounding.MASTERS else weights.bfloat16()
    sizes = 2.0 ** torch.randint(-16, -4, (60, 1), generator=generator).float()
    target = before.float() * (1 - 1e-3) + torch.randn(60, width, generator=generator) * scale * sizes
    return Step(before, target, 1e-3, rounding), torch.rand(60, generator=generator) < 0.4


@pytest.mark.parametrize("rounding", Rounding)
def test_shares_are_those_of_float64(rounding: Rounding) -> None:
    """Each count lies between those of cells that are smaller and larger by what float32 may leave."""
    step, is_dead = steps(rounding)
    before, target = step.before.double(), step.target.double()
    start = before if rounding != Rounding.TWICE else (step.before * (1 - 1e-3)).double()
    seen = step.before.bfloat16().float()
    parts = {"": target - start - (before * 1e-3 if rounding == Rounding.TWICE else 0), "decay_": -before * 1e-3}
    parts["gradient_"] = parts[""] - parts["decay_"]
    num_tokens = torch.tensor([is_dead.sum(), (~is_dead).sum()])
    values = dict(zip(INTENDED, shares(count(step, is_dead), num_tokens, step).tolist(), strict=True))
    for name, part in parts.items():
        way = torch.where(part > 0, neighbour(seen, up=True), neighbour(seen, up=False)).double() - seen.double()
        cells = part.abs() / way.abs()
        slack = 4 * FLOAT32 * (before.abs() + target.abs()) / way.abs()  # of the subtraction, in cells
        for kind, rows in (("dead", is_dead), ("live", ~is_dead)):
            least, most = ((cells + sign * slack < 0.5)[rows].double().mean() for sign in (1, -1))
            assert least - 1e-6 <= values[f"{kind}_{name}below_half"] <= most + 1e-6, name
            if name == "":
                for share in (0.5, 0.95):
                    exact = min(float(np.quantile(cells[rows], share, method="inverted_cdf")), 2.0**LAST_OCTAVE)
                    measured = values[f"{kind}_cells_{'median' if share == 0.5 else 'p95'}"]
                    assert measured == pytest.approx(exact, rel=1 / BINS_PER_OCTAVE, abs=2.0**FIRST_OCTAVE)


def test_a_decay_is_lost_where_the_weight_ends_as_it_would_without() -> None:
    weights = torch.tensor([[1.0, 1.0, 1.0, 0.0, -1.0]]).bfloat16()
    cell = 2.0**-7  # above 1; below it is half of that
    gradient = torch.tensor([[0.0, cell / 2 + 0.002, 1.1 * cell, 0.0, 0.0]])
    decay = 0.004  # of 1: more than the quarter of a cell that it takes to come down from it
    step = Step(weights, weights.float() * (1 - decay) + gradient, decay, Rounding.NEAREST)
    # It alone moves the first and the last, and keeps the second at 1; the third goes up a cell in spite of it.
    assert loses_decay(step).tolist() == [[False, False, True, True, False]]
    twice = step._replace(rounding=Rounding.TWICE)
    assert loses_decay(twice).tolist() == [[False, False, False, True, False]]
    small = Step(weights, weights.float(), 1e-5, Rounding.TWICE)
    assert loses_decay(small).all()
    masters = Step(weights.float(), weights.float(), 1e-5, Rounding.MASTERS)
    assert loses_decay(masters).tolist() == [[False, False, False, True, False]]
    assert loses_decay(masters._replace(decay=1e-8)).all()


@needs_compiler
@pytest.mark.parametrize("width", [1, 2, 3, 8, 9, 20])
@pytest.mark.parametrize("rounding", Rounding)
def test_compiled_code_counts_the_same(rounding: Rounding, width: int) -> None:
    """Its fused multiply-adds may tell a cell from another where float32 is at its end: that is said of each count."""
    step, is_dead = steps(rounding, width)
    plain, compiled = count(step, is_dead), count_compiled(CompiledMetrics(), step, is_dead)
    parts, seen = update_parts(step), step.before.bfloat16().float()
    unsure = torch.zeros(len(is_dead), dtype=torch.int64)
    for part in parts:
        cells = in_cells(part, seen)
        slack = in_cells(4 * FLOAT32 * (step.before.float().abs() + step.target.abs()), seen)
        unsure += ((cells - 0.5).abs() <= slack).sum(dim=1)
    for kind, rows in enumerate((is_dead, ~is_dead)):
        assert (plain.entries[kind] - compiled.entries[kind]).abs().max() <= unsure[rows].sum()
        assert plain.histogram[kind].sum() == compiled.histogram[kind].sum() == rows.sum() * width
    assert (plain.histogram - compiled.histogram).abs().sum() <= 2 * len(is_dead) * width // 50  # at a bin's edge
    assert torch.allclose(plain.moving, compiled.moving, rtol=width * 4 * FLOAT32, atol=width * 4 * FLOAT32)


@needs_compiler
@pytest.mark.parametrize("rounding", Rounding)
def test_compiled_code_decides_ties_the_same(rounding: Rounding) -> None:
    """Steps by quarters of a cell, without a decay: float32 holds all of it exactly."""
    generator = torch.Generator().manual_seed(1)
    before = torch.randn(400, 10, generator=generator).bfloat16()
    before[:100] = 2.0 ** torch.randint(-3, 3, (100, 10), generator=generator).float()
    quarters = torch.randint(-8, 9, before.shape, generator=generator) / 4
    way = torch.where(quarters > 0, neighbour(before, up=True), neighbour(before, up=False)) - before.float()
    table = before.float() if rounding == Rounding.MASTERS else before
    step = Step(table, before.float() + way * quarters.abs(), 0.0, rounding)
    is_dead = torch.arange(400) % 2 == 0
    plain, compiled = count(step, is_dead), count_compiled(CompiledMetrics(), step, is_dead)
    assert all(torch.equal(one, other) for one, other in zip(plain, compiled, strict=True))


def test_what_does_not_exist_is_nan() -> None:
    step, is_dead = steps(Rounding.NEAREST)
    num_tokens = torch.tensor([is_dead.sum(), (~is_dead).sum()])

    def missing(step: Step, num_tokens: torch.Tensor = num_tokens) -> list[str]:
        values = shares(count(step, is_dead), num_tokens, step)
        return [name for name, value in zip(SHARES, values[: len(SHARES)].tolist(), strict=True) if math.isnan(value)]

    assert missing(step) == []
    assert missing(step._replace(rounding=Rounding.STOCHASTIC)) == ["decay_lost"]
    assert missing(step._replace(decay=0.0)) == ["decay_below_half", "decay_lost"]
    assert missing(step._replace(decay=None)) == ["gradient_below_half", "decay_below_half", "decay_lost"]
    nobody = shares(count(step, torch.zeros_like(is_dead)), torch.tensor([0, len(is_dead)]), step)
    assert nobody[: len(SHARES)].isnan().all()
    assert not nobody[len(SHARES) :].isnan().any()


def test_quantiles_of_a_histogram() -> None:
    histogram = torch.zeros(2, NUM_BINS, dtype=torch.int64)
    histogram[0, (0 - FIRST_OCTAVE) * BINS_PER_OCTAVE] = 4  # from 1 to 1.125
    histogram[1, 0] = 3
    histogram[1, -1] = 1
    assert quantiles(histogram, 0.5, 0.95)[:, 0].tolist() == [1.0625, 0.0]
    assert quantiles(histogram, 0.95)[1] > 2.0**23
    counts = Counts(torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2), torch.zeros(2, NUM_BINS, dtype=torch.int64))
    assert quantiles(counts.histogram, 0.5).isnan().all()
