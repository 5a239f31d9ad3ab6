"""Motion from bits, against metrics/lattice.py, ml_dtypes and plain arithmetic."""

import ml_dtypes
import numpy as np
import pytest
import torch
from plain_lifecycle import ulp
from planted_records import bfloat16_bits, from_ordered, ordered, random_walk

from marble_sweep.lifecycle.motion import Bits, Motion, all_finite, displacement, regimes, row_motion, seen, values
from marble_sweep.metrics import lattice

ALL = np.arange(1 << 16, dtype=np.uint16)
FINITE = ALL[(ALL & 0x7F80) != 0x7F80]


def test_bits_are_the_numbers_that_ml_dtypes_reads() -> None:
    np.testing.assert_array_equal(values(FINITE), FINITE.view(ml_dtypes.bfloat16).astype(np.float32))
    masters = np.array([0.1, -3.5, 0.0], dtype=np.float32)
    np.testing.assert_array_equal(values(masters.view(np.uint32)), masters)


def test_masters_are_rounded_as_ml_dtypes_rounds_them() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 200_000, dtype=np.uint32)
    halfway = (FINITE.astype(np.uint32) << 16) | np.uint32(0x8000)  # ties go to the even one
    special = np.array([np.inf, -np.inf, 3.4e38, -3.4e38, 0.0, -0.0], dtype=np.float32).view(np.uint32)
    nans = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF], dtype=np.uint32)
    bits = np.concatenate([bits, halfway, halfway - 1, halfway + 1, special])
    bits = bits[~np.isnan(bits.view(np.float32))]
    with np.errstate(over="ignore"):
        expected = bits.view(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
    np.testing.assert_array_equal(seen(bits), expected)
    assert np.isnan(values(seen(nans))).all()


def test_numbers_are_finite_where_bfloat16_has_them() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    near = (every[:, None].astype(np.uint32) << 16) + np.array([0, 0x7FFF, 0x8000, 0xFFFF], dtype=np.uint32)
    samples: list[Bits] = [every, near.astype(np.uint32)]
    for bits in samples:
        with np.errstate(all="ignore"):
            rounded = values(seen(bits))
        is_finite = np.isfinite(rounded)
        assert all_finite(bits[is_finite])
        assert not any(map(all_finite, bits[~is_finite]))


def test_every_weight_is_one_cell_from_its_neighbour_away_from_zero() -> None:
    positive = FINITE[FINITE < 0x7F7F]
    assert (displacement(positive, positive + np.uint16(1)) == 1).all()
    negative = positive | np.uint16(0x8000)
    assert (displacement(negative, negative + np.uint16(1)) == -1).all()


def test_a_displacement_is_in_the_cells_where_it_begins() -> None:
    starts = np.concatenate([FINITE[::97], bfloat16_bits(np.array([0.0, -0.0, 1.0, 2.0**-126, 2.0**-133]))])
    ends = from_ordered(np.clip(ordered(starts) + np.resize([-300, -1, 2, 5], len(starts)), -32_000, 32_000))
    expected = [(b - a) / ulp(a) for a, b in zip(values(starts).astype(float), values(ends).astype(float), strict=True)]
    np.testing.assert_allclose(displacement(starts, ends), expected, rtol=2.0**-22)


def test_zero_has_no_side() -> None:
    """From +0 to -0 other bits are stored, and nothing moved."""
    before = np.zeros((1, 4), dtype=np.uint16)
    after = np.full((1, 4), 0x8000, dtype=np.uint16)
    assert row_motion(before, after) == Motion(*np.zeros((3, 1), dtype=np.float32))


@pytest.mark.parametrize("dim", [3, 64])
def test_norms_and_regimes_are_those_of_the_metrics(dim: int) -> None:
    walk = random_walk(np.random.default_rng(dim), 30, 40, dim)
    for before, after in zip(walk, walk[1:], strict=False):
        old, new = (torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16) for bits in (before, after))
        expected = lattice.token_motion(old, new)
        motion = row_motion(before, after)
        for norm, reference in zip(motion, expected, strict=True):
            np.testing.assert_allclose(norm, reference.numpy(), rtol=dim * 2.0**-23)
        sorted_rows, reference_rows = regimes(motion, dim), lattice.regimes(expected, dim)
        for name in ("early", "midlife", "late"):
            np.testing.assert_array_equal(getattr(sorted_rows, name), getattr(reference_rows, name).numpy())
        np.testing.assert_array_equal(~sorted_rows.moved, reference_rows.frozen.numpy())
