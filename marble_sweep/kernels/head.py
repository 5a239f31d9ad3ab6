"""The head's loss and gradients by compiled code (head.c): for narrow widths, several times as quick as products.

The rows are cut into parts, as many whatever the number of threads. Threads take parts as they come, and
what the parts gave is added up in their order: the result depends neither on timing nor on the number of threads.
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
MAX_PARTS = 16  # and so of threads that have something to do
GROUP = 8  # rows; ROWS in head.c
MAX_LANES = 16  # of a vector in head.c


class HeadResult(NamedTuple):
    loss: float  # the sum over rows, in nats
    grad_hidden: Tensor | None  # (N, D) float32, of that sum
    grad_weight: Tensor | None  # (V, D) float32


class FusedHead:
    """The compiled head of one width. Raises CompilerError where it cannot be compiled."""

    def __init__(self, width: int) -> None:
        library = load_library("head.c", WIDTH=width)
        pointer, number = ctypes.c_void_p, ctypes.c_long
        self._head, self._add_up = library.head, library.add_up
        self._head.argtypes = [pointer] * 3 + [number] * 3 + [ctypes.c_int] + [pointer] * 3
        self._head.restype = ctypes.c_double
        self._add_up.argtypes = [pointer, number, number, number, pointer]
        self._add_up.restype = None

    def __call__(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, *, needs_shift: bool, gradients: bool
    ) -> HeadResult:
        """hidden (N, D), weight (V, D), targets (N,) int64, all on the CPU.

        `needs_shift` is whether a logit may be beyond the range of exp. Raises IndexError for a target beyond V.
        """
        (num_rows, width), vocab_size = hidden.shape, len(weight)
        require_targets(targets, vocab_size)
        hidden, targets = hidden.float().contiguous(), targets.contiguous()
        padded = -(-vocab_size // MAX_LANES) * MAX_LANES
        columns = torch.zeros(width, padded)
        columns[:, :vocab_size] = weight.T
        size = -(-num_rows // MAX_PARTS)
        size = -(-size // GROUP) * GROUP
        starts = range(0, num_rows, max(size, 1))
        grad_hidden = torch.empty(num_rows, width) if gradients else None
        grad_parts = torch.empty(len(starts), width, padded) if gradients else None
        losses = [0.0] * len(starts)
        num_threads = min(torch.get_num_threads(), max(len(starts), 1))
        buffers = torch.empty(num_threads, GROUP, padded)
        left: deque[int | None] = deque([*range(len(starts)), *[None] * num_threads])

        def work(buffer: Tensor) -> None:
            for part in iter(left.popleft, None):
                start = starts[part]
                losses[part] = self._head(
                    hidden[start:].data_ptr(),
                    columns.data_ptr(),
                    targets[start:].data_ptr(),
                    min(size, num_rows - start),
                    vocab_size,
                    padded,
                    needs_shift,
                    buffer.data_ptr(),
                    None if grad_hidden is None else grad_hidden[start:].data_ptr(),
                    None if grad_parts is None else grad_parts[part].data_ptr(),
                )

        run_in_threads(work, buffers)
        grad_weight = None
        if grad_parts is not None:
            grad_weight = torch.zeros(vocab_size, width)
            if starts:
                self._add_up(grad_parts.data_ptr(), len(starts), vocab_size, padded, grad_weight.data_ptr())
        return HeadResult(sum(losses), grad_hidden, grad_weight)


@functools.cache
def fused_head(width: int) -> FusedHead:
    """The compiled head of a width, loaded once. Raises CompilerError where it cannot be compiled."""
    return FusedHead(width)


def require_targets(targets: Tensor, vocab_size: int) -> None:
    """Compiled code would write wherever a target points."""
    if len(targets):
        low, high = torch.aminmax(targets)
        if low < 0 or high >= vocab_size:
            raise IndexError(f"targets must be in [0, {vocab_size}): they are in [{low}, {high}]")


def run_in_threads(work: Callable[[Tensor], None], buffers: Tensor) -> None:
    """Call `work` with each buffer at once; the first in this thread. What one raises is raised here."""
    first, *others = buffers
    with ThreadPoolExecutor(max(len(others), 1)) as pool:  # which starts no thread before it has work for it
        futures = [pool.submit(work, buffer) for buffer in others]
        work(first)
    for future in futures:
        future.result()
