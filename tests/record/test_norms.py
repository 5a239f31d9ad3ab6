"""The norms of a record of dead tokens, by compiled code and by numpy, against float64."""

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from compilers import has_compiler

from marble_sweep.record import norms
from marble_sweep.record.norms import motion_norms

DTYPES = {"bfloat16": (ml_dtypes.bfloat16, np.uint16), "float32": (np.float32, np.uint32)}


@pytest.fixture(params=["compiled", "numpy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(norms, "compiled_metrics", lambda _: None)
    elif not has_compiler():
        pytest.skip("no C compiler is here")
    return str(request.param)


def in_float64(before: npt.NDArray[np.float32], after: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """L1, L2 and L-infinity in cells and the L2 norm of the change, (R, 4), in float64."""
    first, last = (values.astype(ml_dtypes.bfloat16).astype(np.float64) for values in (before, after))
    exponent = np.maximum(np.frexp(first)[1] - 1, -126)  # that of zero counts as the smallest
    exponent[first == 0] = -126
    cells = np.abs(last - first) / np.exp2(exponent - 7)
    change = after.astype(np.float64) - before
    lengths = (np.sqrt((values**2).sum(axis=1)) for values in (cells, change))
    l2, update_l2 = lengths
    return np.stack([cells.sum(axis=1), l2, cells.max(axis=1), update_l2], axis=1)


@pytest.mark.parametrize("width", [1, 3, 8, 19, 128])
@pytest.mark.parametrize("bits", DTYPES)
def test_norms_are_those_in_float64(bits: str, width: int, way: str) -> None:
    """Weights of many magnitudes, zeros and subnormal ones among them, some of which stay and some cross a power."""
    generator = np.random.default_rng(width)
    dtype, unsigned = DTYPES[bits]
    magnitudes = np.exp2(generator.integers(-133, 3, (200, width)).astype(np.float64))
    before = (generator.normal(size=(200, width)) * magnitudes).astype(dtype)
    before[generator.random((200, width)) < 0.1] = 0
    relative = np.exp2(generator.integers(-12, 2, (200, width))) * generator.normal(size=(200, width))
    after = (before.astype(np.float64) * (1 + relative)).astype(dtype)
    after[:20] = before[:20]
    measured = motion_norms(before.view(unsigned), after.view(unsigned))
    # A difference of two float32 is rounded once, and so is a norm of such differences in float64.
    expected = in_float64(before.astype(np.float32), after.astype(np.float32))
    np.testing.assert_allclose(measured, expected, rtol=3 * 2**-24, atol=2**-149)
    assert (measured[:20] == 0).all()


def test_rows_of_another_order_in_memory_are_read_in_theirs(way: str) -> None:
    generator = np.random.default_rng(0)
    before, after = generator.normal(size=(2, 6, 9)).astype(np.float32).view(np.uint32)
    expected = motion_norms(before, after)
    assert np.array_equal(motion_norms(np.asfortranarray(before), np.asfortranarray(after)), expected)


@pytest.mark.skipif(not has_compiler(), reason="no C compiler is here")
def test_bits_of_unlike_tables_are_refused() -> None:
    table, line = np.zeros((4, 3), np.uint16), r"^must be uint16 or uint32 of one shape \(R, D\), not "
    for other in (np.zeros((4, 2), np.uint16), np.zeros((4, 3), np.uint32), np.zeros((3, 3), np.uint16)):
        with pytest.raises(
            TypeError, match=r"^must be uint16 or uint32 of one shape \(R, D\), not uint16 \(4, 3\) and "
        ):
            motion_norms(table, other)
    for bits in (table[0], table[None], table.astype(np.uint8)):
        with pytest.raises(TypeError, match=line):
            motion_norms(bits, bits)
