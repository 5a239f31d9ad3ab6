"""The bfloat16 lattice against ml_dtypes and numpy.nextafter, float64 arithmetic, and rows made by hand."""

import math

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch
from bounds import gamma
from hypothesis import given
from hypothesis import strategies as st

from marble_sweep.metrics.lattice import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    Lattice,
    Motion,
    Regimes,
    black_holes,
    cells_apart,
    equal_groups,
    lattice_displacement,
    moving,
    regimes,
    token_motion,
    ulp_bf16,
)

BITS = np.arange(1 << 16, dtype=np.uint16)
VALUES = BITS.view(ml_dtypes.bfloat16)  # every bfloat16 there is
FINITE = BITS & 0x7F80 != 0x7F80
LARGEST = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)

FINITE_BITS = st.integers(0, 0xFFFF).filter(lambda bits: bits & 0x7F80 != 0x7F80)
# Weights as they occur in training, of either sign: 2^-40 to 2^8.
ORDINARY_BITS = st.tuples(st.integers(87, 135), st.integers(0, 127), st.booleans()).map(
    lambda parts: parts[0] << 7 | parts[1] | parts[2] << 15
)


def tensor(bits: npt.ArrayLike) -> torch.Tensor:
    """Bfloat16 from bit patterns."""
    return torch.from_numpy(np.asarray(bits, dtype=np.uint16).view(np.int16).copy()).view(torch.bfloat16)


def spacing(values: np.ndarray) -> np.ndarray:
    """The distance in float64 from each finite bfloat16 to its neighbour away from zero."""
    away = np.where(np.signbit(values), -np.inf, np.inf).astype(ml_dtypes.bfloat16)
    with np.errstate(over="ignore"):
        neighbour = np.nextafter(values, away).astype(np.float64)
    # Beyond the largest value lies infinity; its cell is as wide as the one before it.
    neighbour = np.where(np.isinf(neighbour), np.sign(neighbour) * (LARGEST + 2.0**120), neighbour)
    return np.abs(neighbour - values.astype(np.float64))


def float64(bits: npt.ArrayLike) -> np.ndarray:
    return np.asarray(bits, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float64)


# ------------------------------------------------------------------------------- ULP


@pytest.mark.parametrize("widen", [False, True], ids=["bfloat16", "float32 on the grid"])
def test_ulp_of_every_bfloat16_is_the_distance_to_the_next(widen: bool) -> None:
    weights = tensor(BITS)
    ulp = ulp_bf16(weights.float() if widen else weights)
    assert ulp.dtype == torch.float32
    np.testing.assert_array_equal(ulp.numpy()[FINITE].astype(np.float64), spacing(VALUES[FINITE]))
    assert FINITE.sum() == 65_280
    assert np.isnan(ulp.numpy()[~FINITE]).all(), "infinities and NaN have no spacing"


@pytest.mark.parametrize(
    ("bits", "exponent"),
    [
        (0x0000, -133),  # +0
        (0x8000, -133),  # -0
        (0x0001, -133),  # the smallest subnormal
        (0x007F, -133),  # the largest subnormal
        (0x0080, -133),  # the smallest normal
        (0x00FF, -133),  # the last before the spacing doubles
        (0x0100, -132),
        (0x3F7F, -8),  # just below 1
        (0x3F80, -7),  # 1
        (0xBF80, -7),  # -1
        (0x7F7F, 120),  # the largest finite value
        (0xFF7F, 120),
    ],
)
def test_ulp_at_the_edges(bits: int, exponent: int) -> None:
    assert ulp_bf16(tensor([bits])).item() == 2.0**exponent


def test_ulp_keeps_the_shape_and_takes_a_transposed_view() -> None:
    weights = torch.arange(6).view(2, 3).bfloat16()
    assert ulp_bf16(weights.T).shape == (3, 2)
    assert torch.equal(ulp_bf16(weights.T), ulp_bf16(weights).T)


# ---------------------------------------------------------------------- displacement


def test_displacement_of_every_bfloat16_to_its_neighbour_away_from_zero_is_one_cell() -> None:
    inner = FINITE & (BITS & 0x7FFF != 0x7F7F)
    displacement = lattice_displacement(tensor(BITS[inner]), tensor(BITS[inner] + 1)).numpy()
    np.testing.assert_array_equal(displacement, np.where(BITS[inner] >> 15, -1.0, 1.0))


def test_displacement_towards_zero_is_half_a_cell_where_the_exponent_drops() -> None:
    before = BITS[FINITE & (BITS & 0x7FFF != 0)]
    displacement = lattice_displacement(tensor(before), tensor(before - 1)).abs().numpy()
    halves = (before & 0x7F == 0) & ((before >> 7 & 0xFF) > 1)  # a power of two above the subnormals' spacing
    np.testing.assert_array_equal(displacement, np.where(halves, 0.5, 1.0))


@given(st.lists(st.tuples(FINITE_BITS, FINITE_BITS), min_size=1, max_size=30))
def test_displacement_equals_float64_arithmetic(pairs: list[tuple[int, int]]) -> None:
    before, after = (np.array(bits, dtype=np.uint16) for bits in zip(*pairs, strict=True))
    expected = (float64(after) - float64(before)) / spacing(before.view(ml_dtypes.bfloat16))
    representable = np.abs(expected) < 2.0**127  # in float32, without overflow on the way
    representable &= np.abs(float64(after) - float64(before)) < 2.0**127
    measured = lattice_displacement(tensor(before), tensor(after))
    assert measured.dtype == torch.float32
    np.testing.assert_allclose(measured.numpy()[representable], expected[representable], rtol=2.0**-23)


def test_moving_between_the_two_zeros_is_no_motion() -> None:
    assert lattice_displacement(tensor([0x0000, 0x8000]), tensor([0x8000, 0x0000])).tolist() == [0, 0]


# ---------------------------------------------------------------------- token motion


def test_token_motion_equals_numpy_in_float64() -> None:
    generator = np.random.default_rng(0)
    before = (generator.standard_normal((200, 48)) * 0.02).astype(ml_dtypes.bfloat16)
    step = generator.standard_normal((200, 48)) * 10.0 ** generator.uniform(-6, -2, (200, 1))
    after = (before.astype(np.float64) + step).astype(ml_dtypes.bfloat16)
    cells = (after.astype(np.float64) - before.astype(np.float64)) / spacing(before)
    motion = token_motion(tensor(before.view(np.uint16)), tensor(after.view(np.uint16)))
    np.testing.assert_allclose(motion.l1.numpy(), np.abs(cells).sum(1), rtol=gamma(48 + 2))
    np.testing.assert_allclose(motion.l2.numpy(), np.sqrt((cells**2).sum(1)), rtol=gamma(48 + 2))
    np.testing.assert_allclose(motion.linf.numpy(), np.abs(cells).max(1), rtol=gamma(2))  # a difference and a quotient
    assert all(norm.dtype == torch.float32 for norm in motion)


@given(st.data(), st.sampled_from([1, 2, 7, 64]))
def test_moving_is_an_l1_above_zero(data: st.DataObject, hidden_dim: int) -> None:
    row = st.lists(FINITE_BITS, min_size=hidden_dim, max_size=hidden_dim)
    before, other = (np.array(data.draw(st.lists(row, min_size=3, max_size=3)), dtype=np.uint16) for _ in range(2))
    stays = np.array(data.draw(st.lists(st.booleans(), min_size=hidden_dim, max_size=hidden_dim)))
    after = np.stack([before[0], np.where(stays, before[1], other[1]), other[2]])
    expected = (float64(before) != float64(after)).any(axis=1)
    assert moving(tensor(before), tensor(after)).tolist() == expected.tolist()


def test_the_smallest_motion_there_is_counts_and_a_change_of_zeros_sign_does_not() -> None:
    before = tensor([[0x0000, 0x8000], [0x0000, 0x8000], [0x7F7F, 0x0001]])
    after = tensor([[0x0001, 0x8000], [0x8000, 0x0000], [0xFF7F, 0x0001]])
    assert moving(before, after).tolist() == [True, False, True]


# --------------------------------------------------------------------------- regimes


def regime_of(cells: list[float]) -> str:
    """The regime of one row that starts at 1 and moves by so many cells in each dimension."""
    before = torch.ones(1, len(cells), dtype=torch.bfloat16)
    after = (1 + torch.tensor([cells]) * 2.0**-7).bfloat16()
    assert torch.equal(lattice_displacement(before, after), torch.tensor([cells])), "must lie on the lattice"
    found = regimes(token_motion(before, after), len(cells))
    return one_name(found, 0)


def one_name(found: Regimes, token: int) -> str:
    names = [name for name, members in found._asdict().items() if members[token]]
    assert len(names) == 1, f"in {names}: exactly one regime holds"
    return names[0]


@pytest.mark.parametrize(
    ("cells", "regime"),
    [
        ([0, 0, 0, 0], "frozen"),
        ([1, 0, 0, 0], "late"),
        ([-0.5, 0, 0, 0], "late"),
        ([1, 1, -1, 1], "late"),  # L-infinity is 1 and L2 is sqrt(D), both exactly
        ([2, 0, 0, 0], "midlife"),  # L2 is sqrt(D) exactly
        ([-1, 0, 0, -1.5], "midlife"),  # -1.5 cells from 1 are three of the finer cells below it
        ([2, 1, 0, 0], "early"),  # just above sqrt(D)
        ([0, 0, -40, 0], "early"),
        ([2, 0], "early"),
        ([2, 1, 1, 1, 1, 1, 0, 0, 0], "midlife"),  # L2 = 3 = sqrt(9) exactly
        ([2, 1, 1, 1, 1, 1, 1, 0, 0], "early"),
        ([1], "late"),
        ([2], "early"),
    ],
)
def test_regime_of_rows_made_by_hand(cells: list[float], regime: str) -> None:
    assert regime_of(cells) == regime


@pytest.mark.parametrize("hidden_dim", [1, 2, 3, 16, 64, 100, 128, 192])
def test_regime_boundaries_at_the_neighbouring_float32(hidden_dim: int) -> None:
    root = np.float32(math.sqrt(hidden_dim))
    above = np.nextafter(root, np.float32(np.inf))
    one_above = float(np.nextafter(np.float32(1), np.float32(2)))
    norms = [  # l1, l2, linf, regime
        (0.0, 0.0, 0.0, "frozen"),
        (1.0, 1.0, 1.0, "late"),
        (float(above), float(above), 1.0, "late"),  # rounding in L2 must not send a late row elsewhere
        (2.0, min(1.0, float(root)), one_above, "midlife"),
        (9.0, float(root), 1.5, "midlife"),
        (9.0, float(above), 1.5, "early"),
        (math.inf, math.inf, math.inf, "early"),
    ]
    motion = Motion(*(torch.tensor(column) for column in list(zip(*norms, strict=True))[:3]))
    found = regimes(motion, hidden_dim)
    assert [one_name(found, row) for row in range(len(norms))] == [name for *_, name in norms]


@given(st.data(), st.sampled_from([1, 2, 7, 64]))
def test_every_row_is_in_exactly_one_regime(data: st.DataObject, hidden_dim: int) -> None:
    row = st.lists(ORDINARY_BITS, min_size=hidden_dim, max_size=hidden_dim)
    before = np.array(data.draw(st.lists(row, min_size=1, max_size=8)), dtype=np.uint16)
    moves = st.lists(st.integers(-3, 3) | st.just(0), min_size=hidden_dim, max_size=hidden_dim)
    shift = np.array(data.draw(st.lists(moves, min_size=len(before), max_size=len(before))))
    after = (before.astype(np.int64) + shift).astype(np.uint16)
    found = regimes(token_motion(tensor(before), tensor(after)), hidden_dim)
    cells = np.abs((float64(after) - float64(before)) / spacing(before.view(ml_dtypes.bfloat16)))
    for token, moved in enumerate(cells):
        squares = (moved**2).sum()  # exact in float64, so the boundary is too
        local = "midlife" if squares <= hidden_dim else "early"
        expected = "frozen" if not moved.any() else "late" if moved.max() <= 1 else local
        assert one_name(found, token) == expected


def test_a_row_that_becomes_nan_is_in_no_regime() -> None:
    before, after = torch.ones(2, 4).bfloat16(), torch.ones(2, 4).bfloat16()
    after[0, 0] = torch.nan
    found = torch.stack(regimes(token_motion(before, after), 4))
    assert found.sum(dim=0).tolist() == [0, 1]


# ----------------------------------------------------------------------- black holes


def test_black_holes_are_the_groups_of_identical_rows_largest_first() -> None:
    rows = [[1, 2], [3, 4], [1, 2], [5, 6], [3, 4], [3, 4], [7, 8]]
    assert black_holes(torch.tensor(rows).bfloat16()) == [[1, 4, 5], [0, 2]]


def test_no_black_holes_among_rows_that_differ() -> None:
    assert black_holes(torch.eye(5).bfloat16()) == []


def test_zeros_of_different_sign_are_different_bits() -> None:
    weights = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [0.0, 1.0], [-0.0, 1.0], [0.0, -1.0]]).bfloat16()
    assert sorted(black_holes(weights)) == [[0, 2], [1, 3]]


def test_identical_nans_are_identical_bits() -> None:
    assert black_holes(torch.full((3, 2), torch.nan).bfloat16()) == [[0, 1, 2]]


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0x0000, 0x8000, 0x3F80])), min_size=1, max_size=20))
def test_black_holes_equal_a_plain_grouping(rows: list[tuple[int, int]]) -> None:
    groups: dict[tuple[int, ...], list[int]] = {}
    for token, row in enumerate(rows):
        groups.setdefault(row, []).append(token)
    expected = [group for group in groups.values() if len(group) > 1]
    found = black_holes(tensor(rows))
    assert sorted(found) == sorted(expected)
    assert [len(group) for group in found] == sorted((len(group) for group in expected), reverse=True)


# --------------------------------------------------------------------- other lattices


def spacing_of(values: np.ndarray) -> np.ndarray:
    """The distance in float64 from each number, but the largest, to its neighbour away from zero."""
    away = np.where(np.signbit(values), -np.inf, np.inf).astype(values.dtype)
    with np.errstate(over="ignore"):
        return np.abs(np.nextafter(values, away).astype(np.float64) - values.astype(np.float64))


@pytest.mark.parametrize(
    ("lattice", "dtype"), [(BFLOAT16, ml_dtypes.bfloat16), (FLOAT16, np.float16), (FLOAT32, np.float32)]
)
def test_cells_apart_are_differences_on_the_coarser_grid(lattice: Lattice, dtype: np.dtype[np.generic]) -> None:
    generator = np.random.default_rng(0)
    scales = 10.0 ** generator.uniform(-7, 4, (2, 4000))
    scales[1, :1000] = scales[0, :1000]
    first, second = (generator.standard_normal((2, 4000)) * scales).astype(dtype)
    second[1000:2000] = np.nextafter(first[1000:2000], second[1000:2000])
    first[:10], second[5:15] = 0, -np.asarray(0, dtype)
    start = np.where(np.abs(first.astype(np.float64)) >= np.abs(second.astype(np.float64)), first, second)
    expected = np.abs(first.astype(np.float64) - second.astype(np.float64)) / spacing_of(start)
    to_torch = torch.from_numpy if dtype != ml_dtypes.bfloat16 else lambda values: tensor(values.view(np.uint16))
    first_weights, second_weights = to_torch(first), to_torch(second)
    cells = cells_apart(first_weights, second_weights, lattice)
    assert cells.dtype == torch.float32
    np.testing.assert_allclose(cells.numpy(), expected, rtol=gamma(2))  # a difference and a quotient in float32
    assert torch.equal(cells, cells_apart(second_weights, first_weights, lattice)), "the same in both directions"


@pytest.mark.parametrize(
    ("first", "second", "cells"),
    [
        (0x3F80, 0x3F7F, 0.5),  # 1 and the number below it, whose own cell is half as wide
        (0x3F80, 0x3F81, 1),
        (0x3F80, 0xBF80, 256),  # 1 and -1
        (0x0000, 0x8000, 0),  # the two zeros
        (0x0000, 0x0001, 1),  # zero and the smallest subnormal
        (0x8001, 0x0001, 2),
        (0x007F, 0x0080, 1),  # the largest subnormal and the smallest normal number
        (0x0001, 0x3F80, 128),  # next to zero: not thousands of its own cells
    ],
)
def test_cells_apart_at_the_edges(first: int, second: int, cells: float) -> None:
    assert cells_apart(tensor([first]), tensor([second])).item() == cells


def test_groups_of_equal_keys() -> None:
    assert equal_groups([b"a", b"b", b"a", b"c", b"b", b"b"]) == [[1, 4, 5], [0, 2]]
    assert equal_groups([b"b", b"a", b"a", b"b"]) == [[0, 3], [1, 2]], "of the same size: by their first position"
