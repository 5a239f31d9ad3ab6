"""How a step of weights is coded for a record, by compiled code (record.c)."""

import ctypes
import functools
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from marble_sweep.kernels.compiler import CompilerError, load_library

log = logging.getLogger(__name__)
LatticeStep = Callable[[npt.NDArray[Any], npt.NDArray[Any] | None, npt.NDArray[Any], npt.NDArray[Any]], None]
FUNCTIONS = {np.dtype(np.uint16): "lattice_step_16", np.dtype(np.uint32): "lattice_step_32"}


@functools.cache
def compiled_step() -> LatticeStep | None:
    """A function of weights, before, points and coded, as `record.lattice_coding.code_step` has them.

    It raises TypeError for arrays that are not contiguous, or not of one shape and dtype, uint16 or uint32. None
    without a compiler.
    """
    try:
        library = load_library("record.c")
    except CompilerError as error:
        log.info("The steps of a record are not coded by compiled code, and take longer: %s", error)
        return None
    functions = {dtype: getattr(library, name) for dtype, name in FUNCTIONS.items()}
    for function in functions.values():
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        function.restype = None

    def step(
        weights: npt.NDArray[Any], before: npt.NDArray[Any] | None, points: npt.NDArray[Any], coded: npt.NDArray[Any]
    ) -> None:
        if weights.dtype not in functions:
            raise TypeError(f"must be uint16 or uint32, not {weights.dtype}")
        for array in (weights, points, coded, *(() if before is None else (before,))):
            if not array.flags.c_contiguous or array.dtype != weights.dtype or array.shape != weights.shape:
                raise TypeError(f"must be contiguous, {weights.dtype} of {weights.shape}")
        address = None if before is None else before.ctypes.data
        functions[weights.dtype](weights.ctypes.data, address, weights.size, points.ctypes.data, coded.ctypes.data)

    return step
