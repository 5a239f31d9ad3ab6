"""The head's loss and gradients by compiled code (head.c): for narrow widths, several times as quick as products.

The rows are cut into parts, as many as the shapes say, whatever the number of threads. Threads take parts as they
come, and what the parts gave is added up in their order: the result depends neither on timing nor on the number of
threads.
"""

import ctypes
import functools
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from marble_sweep.kernels.compiler import load_library

MAX_WIDTH = 48  # far beyond what pays on any CPU measured (docs/performance.md)
MIN_PARTS, MAX_PARTS = 2, 16  # and so of threads that have something to do
PARTS_SIZE = 2**25  # numbers in the weight gradients of all parts: 128 MiB, unless the fewest parts take more
GROUP = 8  # rows; ROWS in head.c
MAX_LANES = 16  # of a vector in head.c


class HeadResult(NamedTuple):
    loss: float  # the sum over rows, in nats
    grad_hidden: Tensor | None  # (N, D) float32, of that sum
    grad_weight: Tensor | None  # (V, D) float32


class FusedHead:
    """The compiled head of one width. Raises CompilerError where it cannot be compiled."""

    def __init__(self, width: int) -> None:
        self.width = width
        library = load_library("head.c", WIDTH=width)
        pointer, number = ctypes.c_void_p, ctypes.c_long
        self._head, self._add_up, self._widen = library.head, library.add_up, library.widen
        self._head.argtypes = [pointer] * 3 + [number] * 3 + [ctypes.c_int] + [pointer] * 3
        self._head.restype = ctypes.c_double
        self._add_up.argtypes = [pointer, number, number, number, pointer]
        self._add_up.restype = None
        self._widen.argtypes = [pointer, ctypes.c_int, number, number, number, pointer]
        self._widen.restype = ctypes.c_float

    def __call__(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, *, safe_logit: float, gradients: bool
    ) -> HeadResult:
        """hidden (N, D), weight (V, D), both float32 or bfloat16, targets (N,) int64, all on the CPU.

        Rows whose logits might be larger than `safe_logit` are shifted by the largest one before exp. Raises
        TypeError or IndexError for what the compiled code must not be given.
        """
        (num_rows, width), vocab_size = hidden.shape, len(weight)
        self._require_operands(hidden, weight, targets)
        targets = targets.contiguous()
        padded = -(-vocab_size // MAX_LANES) * MAX_LANES
        # Torch would wake its own threads for some of this, which takes longer than to do it here.
        rows, columns = torch.empty(num_rows, width), torch.empty(width, padded)
        columns[:, vocab_size:] = 0
        longest = self._widened(hidden, rows, width, 1) * self._widened(weight, columns, 1, padded)
        needs_shift = not longest < safe_logit**2  # NaN needs it too: it must reach the loss
        size = -(-num_rows // (most_parts(width, padded) * GROUP)) * GROUP
        starts = range(0, num_rows, max(size, 1))
        grad_hidden = torch.empty(num_rows, width) if gradients else None
        grad_parts = torch.empty(len(starts), width, padded) if gradients else None
        losses = [0.0] * len(starts)
        num_threads = min(torch.get_num_threads(), max(len(starts), 1))
        left: deque[int | None] = deque([*range(len(starts)), *[None] * num_threads])

        def work(buffer: Tensor) -> None:
            for part in iter(left.popleft, None):
                start = starts[part]
                losses[part] = self._head(
                    *(pointer_to(rows, start), pointer_to(columns), pointer_to(targets, start)),
                    *(min(size, num_rows - start), vocab_size, padded, needs_shift),
                    *(pointer_to(buffer), pointer_to(grad_hidden, start), pointer_to(grad_parts, part)),
                )

        run_in_threads(work, torch.empty(num_threads, GROUP, padded))
        grad_weight = None if grad_parts is None else self._added_up(grad_parts, vocab_size)
        return HeadResult(sum(losses), grad_hidden, grad_weight)

    def _require_operands(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
        """Compiled code reads whatever it is pointed at, and writes wherever a target points."""
        for operand in (hidden, weight):
            if operand.dtype not in (torch.float32, torch.bfloat16) or operand.device.type != "cpu":
                kind = f"{operand.dtype} on {operand.device}"
                raise TypeError(f"operands must be float32 or bfloat16 on the CPU, not {kind}")
            if operand.shape[1] != self.width:
                raise TypeError(f"operands must be of width {self.width}, not {operand.shape[1]}")
        require_targets(targets, len(hidden), len(weight))

    def _added_up(self, parts: Tensor, vocab_size: int) -> Tensor:
        """The sum of parts (num_parts, D, padded) in their order, (V, D)."""
        num_parts, width, padded = parts.shape
        total = torch.zeros(vocab_size, width)
        if num_parts:
            self._add_up(parts.data_ptr(), num_parts, vocab_size, padded, total.data_ptr())
        return total

    def _widened(self, values: Tensor, out: Tensor, row_stride: int, column_stride: int) -> float:
        """Have `out` hold the values in float32; returns the largest squared length of a row."""
        values = values.contiguous()
        is_bf16 = values.dtype == torch.bfloat16
        return self._widen(values.data_ptr(), is_bf16, len(values), row_stride, column_stride, out.data_ptr())


@functools.cache
def fused_head(width: int) -> FusedHead:
    """The compiled head of a width, loaded once. Raises CompilerError where it cannot be compiled."""
    return FusedHead(width)


def most_parts(width: int, padded: int) -> int:
    """Into how many parts the rows are cut at most. A large vocabulary has fewer: each holds a gradient of its own."""
    return max(MIN_PARTS, min(MAX_PARTS, PARTS_SIZE // (width * padded)))


def require_targets(targets: Tensor, num_rows: int, vocab_size: int) -> None:
    """Raise TypeError or IndexError unless there is an int64 target within the vocabulary for every row."""
    if len(targets) != num_rows or targets.dtype != torch.int64:
        raise TypeError(f"targets must be {num_rows} of int64, not {len(targets)} of {targets.dtype}")
    if num_rows:
        low, high = torch.aminmax(targets)
        if low < 0 or high >= vocab_size:
            raise IndexError(f"targets must be in [0, {vocab_size}): they are in [{low}, {high}]")


def pointer_to(values: Tensor | None, index: int = 0) -> int | None:
    """Where values[index] begins; null where there are none."""
    return None if values is None else values[index:].data_ptr()


def run_in_threads(work: Callable[[Tensor], None], buffers: Tensor) -> None:
    """Call `work` with each buffer at once; the first in this thread. What one raises is raised here."""
    first, *others = buffers
    with ThreadPoolExecutor(max(len(others), 1)) as pool:  # which starts no thread before it has work for it
        futures = [pool.submit(work, buffer) for buffer in others]
        work(first)
    for future in futures:
        future.result()
