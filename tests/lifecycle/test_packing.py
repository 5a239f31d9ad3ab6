"""Numbers come back from a page as exactly as it says."""

import base64
from typing import Any

import numpy as np
import pytest

from marble_sweep.lifecycle.packing import LARGEST, UNKNOWN, encode, encode_steps, pack_logarithms, pack_range

TYPES = {"Uint8Array": "u1", "Uint16Array": "<u2", "Int32Array": "<i4", "Float32Array": "<f4"}


def decode(packed: dict[str, str]) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(packed["data"]), TYPES[packed["type"]])


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f4"])
def test_arrays_come_back(dtype: str) -> None:
    values = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(decode(encode(values, dtype)), values.flatten())


def test_steps_that_there_are_not_are_minus_one() -> None:
    assert decode(encode_steps(np.array([np.nan, 0, 20_000]))).tolist() == [-1, 0, 20_000]


def test_positions_are_exact_to_half_a_code() -> None:
    values = np.random.default_rng(0).normal(3, 2, (50, 2)).astype(np.float32)
    values[3, 1], values[4, 0] = np.nan, np.inf
    packed = pack_range(values)
    codes = decode(packed["codes"])
    width = (packed["high"] - packed["low"]) / LARGEST
    finite = np.isfinite(values.flatten())
    assert (codes[~finite] == UNKNOWN).all()
    back = packed["low"] + codes[finite] * width
    np.testing.assert_allclose(back, values.flatten()[finite], rtol=0, atol=width / 2 * (1 + 1e-6))


@pytest.mark.parametrize("value", [0.0, -3.5])
def test_a_single_position_comes_back(value: float) -> None:
    packed = pack_range(np.full((2, 2), value, dtype=np.float32))
    assert (packed["low"], decode(packed["codes"]).tolist()) == (value, [0, 0, 0, 0])


@pytest.mark.parametrize("spread", [6, 0])
def test_traces_are_exact_to_half_a_code_of_their_logarithm(spread: int) -> None:
    values = (10 ** np.random.default_rng(0).uniform(-3, -3 + spread, 60)).astype(np.float32)
    values[:3] = 0, np.nan, np.inf
    packed = pack_logarithms(values)
    codes = decode(packed["codes"])
    assert codes[:3].tolist() == [0, UNKNOWN, UNKNOWN]
    width = (packed["high"] - packed["low"]) / (LARGEST - 1)
    back = packed["low"] + (codes[3:] - 1.0) * width
    np.testing.assert_allclose(back, np.log(values[3:].astype(np.float64)), rtol=0, atol=width / 2 + 1e-6)
