"""Arrays as a page holds them: base64 of typed arrays, which a browser reads without parsing numbers."""

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

JAVASCRIPT = {
    "<u1": "Uint8Array",
    "|u1": "Uint8Array",
    "<u2": "Uint16Array",
    "<i4": "Int32Array",
    "<f4": "Float32Array",
}
LARGEST = 65534  # of the codes that stand for numbers; 65535 stands for NaN and infinities
UNKNOWN = 65535


def encode(values: NDArray[Any], dtype: str) -> dict[str, str]:
    """The values as `dtype` (u1, u2, i4 or f4), flat, with the name of JavaScript's class for them."""
    array = np.ascontiguousarray(values, dtype=f"<{dtype}")
    return {"type": JAVASCRIPT[array.dtype.str], "data": base64.b64encode(array.tobytes()).decode("ascii")}


def encode_steps(values: Any) -> dict[str, str]:
    """Steps as integers, -1 where there is none (NaN)."""
    return encode(np.nan_to_num(np.asarray(values, dtype=np.float64), nan=-1), "i4")


def quantise(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint16]:
    """Values between low and high as 16-bit codes. The error is at most (high - low) / 65534 / 2."""
    finite = np.isfinite(values)
    width = (high - low) or 1.0
    codes = np.rint((np.where(finite, values, low).astype(np.float64) - low) / width * LARGEST)
    return np.where(finite, np.clip(codes, 0, LARGEST), UNKNOWN).astype(np.uint16)


def pack_range(values: NDArray[np.float32]) -> dict[str, Any]:
    """Values as 16-bit codes between their own `low` and `high`."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    return {"low": low, "high": high, "codes": encode(quantise(values, low, high), "u2")}


def pack_logarithms(values: NDArray[np.float32]) -> dict[str, Any]:
    """Values from 0 up as 16-bit codes: 0 for 0, and from 1 on for logarithms between `low` and `high`."""
    positive = values[np.isfinite(values) & (values > 0)]
    low, high = (float(np.log(positive.min())), float(np.log(positive.max()))) if positive.size else (0.0, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms = np.where(values > 0, np.log(values), np.nan)
    above = np.rint((np.nan_to_num(logarithms, nan=low, posinf=low) - low) / ((high - low) or 1.0) * (LARGEST - 1)) + 1
    codes = np.where(values == 0, 0, np.where(np.isfinite(logarithms), above, UNKNOWN))
    return {"low": low, "high": high, "codes": encode(codes, "u2")}
