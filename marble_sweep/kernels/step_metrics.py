"""What a step's metrics need of weights and hidden states, by compiled code (step_metrics.c) in one pass over each.

All sums are in float64 and have a fixed order. Tensors are cut into parts of a fixed size, and what parts give is added
up in their order: the results depend on neither the CPU nor the number of threads.
"""

import ctypes
import functools
import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from marble_sweep.kernels.compiler import CompilerError, load_library

log = logging.getLogger(__name__)
Part = TypeVar("Part")

PART = 1 << 21  # numbers; to go over them takes a millisecond or two, to wake a thread a tenth of one
FLOATS = (torch.float32, torch.bfloat16)


class HiddenMeans(NamedTuple):
    mean: Tensor  # (D,) float32
    norm: float  # the mean one
    cosine: float  # the mean one with the mean


class Motion(ctypes.Structure):
    """How the rows of an embedding moved in a step, and which of them are nearest to h_mean."""

    early: int  # dead tokens in this regime
    midlife: int
    late: int
    frozen: int
    dead_moving: int
    live_moving: int
    l1: float  # of all dead tokens together, in cells
    linf: float  # the farthest that any dimension of a dead token moved; NaN where one is NaN
    tokens: "ctypes.Array[ctypes.c_int64]"  # the three with the largest products, the largest first
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("early", "midlife", "late", "frozen", "dead_moving", "live_moving")),
        *((name, ctypes.c_double) for name in ("l1", "linf")),
        ("tokens", ctypes.c_int64 * 3),
        ("logits", ctypes.c_double * 3),
    )


class CellCounts(ctypes.Structure):
    """What a step meant to do with some tokens; metrics/intended.py says what is counted."""

    entries: "ctypes.Array[ctypes.c_int64]"
    moving: float
    histogram: "ctypes.Array[ctypes.c_int64]"
    _fields_ = (("entries", ctypes.c_int64 * 5), ("moving", ctypes.c_double), ("histogram", ctypes.c_int64 * 384))


class CompiledMetrics:
    """The compiled functions. Raises CompilerError where they cannot be compiled.

    Tensors of numbers must be float32 or bfloat16, and all be on the CPU; a method raises TypeError for any other.
    """

    def __init__(self) -> None:
        library = load_library("step_metrics.c")
        pointer, number, flag = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
        self._summarise, self._remember = library.summarise, library.remember
        self._motion, self._add_motion = library.embedding_motion, library.add_motion
        self._squared_norm, self._count_updates = library.squared_norm, library.count_updates
        self._summarise.argtypes = [pointer, flag, number, number, *[pointer] * 3]
        self._remember.argtypes = [pointer, *[number] * 3, pointer, pointer]
        self._motion.argtypes = [pointer, pointer, flag, *[number] * 3, *[pointer] * 3]
        self._add_motion.argtypes = [pointer, pointer]
        self._intended = library.intended_update
        self._intended.argtypes = [pointer, pointer, flag, flag, ctypes.c_double, *[number] * 3, pointer, pointer]
        self._motion_norms = library.motion_norms
        self._motion_norms.argtypes = [pointer, pointer, flag, number, number, pointer]
        self._intended.restype = self._motion_norms.restype = None
        self._squared_norm.argtypes = [pointer, flag, number, number]
        self._count_updates.argtypes = [pointer, flag, pointer, pointer, flag, flag, *[number] * 3, pointer]
        self._squared_norm.restype = ctypes.c_double
        self._summarise.restype = self._remember.restype = self._count_updates.restype = None
        self._motion.restype = self._add_motion.restype = None

    def summarise(self, hidden: Tensor) -> HiddenMeans:
        """Mean, mean norm and mean cosine with the mean of hidden states (..., D)."""
        hidden, width = readable(hidden), hidden.shape[-1]
        mean, norm, cosine = torch.empty(width), ctypes.c_double(), ctypes.c_double()
        self._summarise(
            *(hidden.data_ptr(), hidden.dtype == torch.bfloat16, hidden.numel() // width, width),
            *(mean.data_ptr(), ctypes.byref(norm), ctypes.byref(cosine)),
        )
        return HiddenMeans(mean, norm.value, cosine.value)

    def remember(self, history: Tensor, step: int, mean: Tensor) -> tuple[float, float]:
        """The cosines of h_mean with that of the step before and that of `lag` steps before; NaN where one is zero.

        history (lag, D) float32 holds those of the last steps, that of step n in row n % lag; `mean` (D,) becomes
        part of it.
        """
        lag, width = history.shape
        if readable(history, torch.float32) is not history or readable(mean, torch.float32).numel() != width:
            raise TypeError(f"must be contiguous, of {width} numbers a step")
        cosines = (ctypes.c_double * 2)()
        self._remember(history.data_ptr(), width, (step - 1) % lag, step % lag, mean.data_ptr(), cosines)
        return cosines[0], cosines[1]

    def norm(self, values: Tensor) -> float:
        """The L2 norm of all values."""
        values = readable(values)
        address, is_bf16 = values.data_ptr(), values.dtype == torch.bfloat16
        squares = in_parts(lambda first, last: self._squared_norm(address, is_bf16, first, last), values.numel(), PART)
        return math.sqrt(sum(squares))

    def embedding_motion(self, before: Tensor, after: Tensor, is_dead: Tensor, h_mean: Tensor) -> Motion:
        """From one embedding (V, D) to another, rounded to bfloat16 first; is_dead (V,) bool, h_mean (D,) float32."""
        before, after = readable(before), readable(after)
        dead, mean = readable(is_dead, torch.bool), readable(h_mean, torch.float32)
        require_alike(before, after)
        vocab_size, width = before.shape
        if dead.numel() != vocab_size or mean.numel() != width:
            raise TypeError(
                f"{dead.numel()} tokens and {mean.numel()} dimensions are not those of {vocab_size} x {width}"
            )
        tables = before.data_ptr(), after.data_ptr(), before.dtype == torch.bfloat16

        def move(first: int, last: int) -> Motion:
            motion = Motion()
            self._motion(*tables, first, last, width, dead.data_ptr(), mean.data_ptr(), ctypes.byref(motion))
            return motion

        motion, *others = in_parts(move, vocab_size, max(PART // width, 1))
        for other in others:
            self._add_motion(ctypes.byref(motion), ctypes.byref(other))
        return motion

    def motion_norms(self, before: npt.NDArray[Any], after: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """What record.norms.motion_norms gives of bits (R, D), uint16 of bfloat16 or uint32 of float32: (R, 4)."""
        before, after = np.ascontiguousarray(before), np.ascontiguousarray(after)
        are_alike = before.shape == after.shape and before.dtype == after.dtype
        if not are_alike or before.ndim != 2 or before.dtype not in (np.uint16, np.uint32):
            kinds = " and ".join(f"{bits.dtype} {bits.shape}" for bits in (before, after))
            raise TypeError(f"must be uint16 or uint32 of one shape (R, D), not {kinds}")
        norms = np.empty((len(before), 4), np.float32)
        tables = before.ctypes.data, after.ctypes.data, before.dtype == np.uint16
        self._motion_norms(*tables, *before.shape, norms.ctypes.data)
        return norms

    def intended_update(
        self, before: Tensor, target: Tensor, decay: float, rounding: int, is_dead: Tensor
    ) -> "list[ctypes.Array[CellCounts]]":
        """The counts of the dead and of the live tokens, for parts of a table (V, D) that add up to the whole.

        before may be bfloat16, target is float32; the decay of a weight is -decay * weight.
        """
        before, target = readable(before), readable(target, torch.float32)
        dead = readable(is_dead, torch.bool)
        vocab_size, width = before.shape
        if target.numel() != before.numel() or dead.numel() != vocab_size:
            raise TypeError(
                f"{target.numel()} targets and {dead.numel()} tokens are not those of {vocab_size} x {width}"
            )
        table = before.data_ptr(), target.data_ptr(), before.dtype == torch.bfloat16

        def count(first: int, last: int) -> "ctypes.Array[CellCounts]":
            counts = (CellCounts * 2)()
            self._intended(*table, rounding, decay, first, last, width, dead.data_ptr(), counts)
            return counts

        return in_parts(count, vocab_size, max(PART // 16 // width, 1))

    def count_updates(
        self, directions: Tensor, before: Tensor, after: Tensor, offset: int, *, decays: bool
    ) -> tuple[int, int]:
        """How many weights were to change, and how many of these did.

        To change are those whose direction is not zero and, if weights decay, those that are not zero. directions are
        those of the weights from `offset` on, before and after are all weights, flat.
        """
        directions, before, after = readable(directions), readable(before), readable(after)
        require_alike(before, after)
        size = directions.numel()
        if not 0 <= offset <= before.numel() - size:
            raise TypeError(f"{size} directions from {offset} on are not of {before.numel()} weights")
        are_bf16 = directions.dtype == torch.bfloat16
        weights = before.data_ptr(), after.data_ptr(), before.dtype == torch.bfloat16

        def count(first: int, last: int) -> tuple[int, int]:
            counts = (ctypes.c_int64 * 2)()
            self._count_updates(directions.data_ptr(), are_bf16, *weights, decays, offset, first, last, counts)
            return counts[0], counts[1]

        intended, changed = zip(*in_parts(count, size, PART), strict=True)
        return sum(intended), sum(changed)


@functools.cache
def _compiled_metrics() -> CompiledMetrics | None:
    try:
        return CompiledMetrics()
    except CompilerError as error:
        log.info("Metrics are not compiled, and take longer without: %s", error)
        return None


def compiled_metrics(device: torch.device) -> CompiledMetrics | None:
    """The compiled functions, loaded once; None for tensors that are not on the CPU and where there is no compiler."""
    return _compiled_metrics() if device.type == "cpu" else None


def readable(values: Tensor, *dtypes: torch.dtype) -> Tensor:
    """The values one after the other in memory. Raises TypeError where compiled code would take them for others."""
    if not values.is_cpu or values.dtype not in (dtypes or FLOATS):
        allowed = " or ".join(map(str, dtypes or FLOATS))
        raise TypeError(f"must be {allowed} on the CPU, not {values.dtype} on {values.device}")
    return values if values.is_contiguous() else values.contiguous()


def require_alike(one: Tensor, other: Tensor) -> None:
    """Raise TypeError unless both have one size and dtype."""
    if one.numel() != other.numel() or one.dtype != other.dtype:
        kinds = " and ".join(f"{tensor.numel()} of {tensor.dtype}" for tensor in (one, other))
        raise TypeError(f"must be of one size and dtype, not {kinds}")


def in_parts(work: Callable[[int, int], Part], size: int, part: int) -> list[Part]:
    """What work(first, last) gives for the parts of range(size), in their order; in threads where there are several."""
    if size <= part:
        return [work(0, size)]
    firsts = range(0, size, part)
    lasts = [min(first + part, size) for first in firsts]
    with ThreadPoolExecutor(min(torch.get_num_threads(), len(firsts))) as pool:
        return list(pool.map(work, firsts, lasts))
