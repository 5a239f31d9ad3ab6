"""Coding loses no bit, and counts lattice points: against ml_dtypes and plain Python."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from compilers import has_compiler, needs_compiler
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from marble_sweep.record import lattice_coding
from marble_sweep.record.lattice_coding import code_step, decode, encode, ordered, unzigzag, zigzag

EVERY_BFLOAT16 = np.arange(2**16, dtype=np.uint16)
DTYPES = (np.uint16, np.uint32)


def test_neighbours_on_the_lattice_are_neighbours_as_integers() -> None:
    """All finite bfloat16 from the lowest to the highest, as ml_dtypes steps through them."""
    integers = ordered(EVERY_BFLOAT16).view(np.int16)
    values = (EVERY_BFLOAT16.astype(np.uint32) << 16).view(np.float32)
    is_finite = np.isfinite(values)
    by_integer = values[is_finite][np.argsort(integers[is_finite])]
    assert (np.diff(by_integer) >= 0).all()
    assert (np.diff(by_integer) == 0).sum() == 1  # -0 and +0, which are two points
    assert np.array_equal(np.sort(integers[is_finite]), np.arange(-0x7F80, 0x7F80))
    has_next = is_finite & (values != 0) & (values < values[is_finite].max())
    up = np.nextafter(EVERY_BFLOAT16[has_next].view(ml_dtypes.bfloat16), ml_dtypes.bfloat16(np.inf)).view(np.uint16)
    assert (ordered(up).view(np.int16) - integers[has_next] == 1).all()


def test_zeros_are_two_points() -> None:
    assert ordered(np.array([0x8000, 0x0000, 0x0001, 0x8001], np.uint16)).view(np.int16).tolist() == [-1, 0, 1, -2]


def test_every_bit_pattern_comes_back() -> None:
    assert np.array_equal(ordered(ordered(EVERY_BFLOAT16)), EVERY_BFLOAT16)
    assert np.array_equal(unzigzag(zigzag(EVERY_BFLOAT16)), EVERY_BFLOAT16)


def test_zigzag_counts_small_steps_first() -> None:
    assert zigzag(np.array([0, -1, 1, -2, 2], np.int16).view(np.uint16)).tolist() == [0, 1, 2, 3, 4]
    assert zigzag(np.array([-(2**31), 2**31 - 1], np.int32).view(np.uint32)).tolist() == [2**32 - 1, 2**32 - 2]


def test_the_way_between_any_two_bfloat16_comes_back() -> None:
    """Each pattern next to 64 others, which a shuffle picks."""
    generator = np.random.default_rng(0)
    rows = np.stack([generator.permutation(EVERY_BFLOAT16) for _ in range(65)])
    assert np.array_equal(round_trip(rows), rows)


def round_trip(rows: Any) -> Any:
    """Coded step by step as a run does, decoded in two blocks."""
    points = ordered(rows)
    coded = np.stack([encode(None, points[0]), *map(encode, points, points[1:])])
    cut = len(rows) // 2 + 1
    first = decode(coded[:cut], None)
    later = [decode(coded[cut:], first[-1])] if cut < len(rows) else []
    return ordered(np.concatenate([first, *later]))


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_any_rows_come_back(dtype: type, data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3)))
    rows = data.draw(arrays(dtype, shape, elements=st.integers(0, np.iinfo(dtype).max)))
    assert np.array_equal(round_trip(rows), rows)


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_that_are_given_are_written_to(dtype: type) -> None:
    generator = np.random.default_rng(1)
    pair: Any = generator.integers(0, np.iinfo(dtype).max, (2, 100), dtype, endpoint=True)
    before, after = pair
    expected = encode(ordered(before), ordered(after))
    out, scratch = np.empty_like(before), after.copy()
    assert ordered(scratch, out=scratch) is scratch
    assert encode(ordered(before), scratch, out=out) is out
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("way", ["compiled", "numpy"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 21), (64,), (5, 77)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_is_coded_in_one_pass(
    dtype: type, shape: tuple[int, ...], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "numpy":
        monkeypatch.setattr(lattice_coding, "compiled_step", lambda: None)
    elif not has_compiler():
        pytest.skip("no C compiler is here")
    generator = np.random.default_rng(2)
    before, weights = generator.integers(0, np.iinfo(dtype).max, (2, *shape), dtype, endpoint=True)
    for start in (None, before):
        points, coded = np.empty((2, *shape), dtype)
        code_step(weights, start, points, coded)
        assert np.array_equal(points, ordered(weights))
        assert np.array_equal(coded, encode(start, ordered(weights)))
    if way == "compiled" and len(shape) > 1:
        code_step(np.asfortranarray(weights), before, points, coded)
        assert np.array_equal(coded, encode(before, ordered(weights)))


@needs_compiler
def test_a_step_into_another_kind_of_array_is_refused() -> None:
    weights, before = np.zeros((2, 4, 3), np.uint16)
    for wrong in (np.empty((4, 2), np.uint16), np.empty((4, 3), np.uint32), np.empty((3, 4), np.uint16).T):
        for arrays_ in ((before, wrong, before), (before, before, wrong), (wrong, before, before)):
            with pytest.raises(TypeError, match=r"^must be contiguous, uint16 of \(4, 3\)$"):
                code_step(weights, *arrays_)
    wide = np.zeros((4, 3), np.uint64)
    with pytest.raises(TypeError, match=r"^must be uint16 or uint32, not uint64$"):
        code_step(wide, wide, wide, wide)
