"""What a head does between its products, by compiled code (softmax.c): one pass over the logits instead of several.

Threads take parts of the work as they come. No part depends on another one, so their number changes no bit.
"""

import ctypes
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from marble_sweep.kernels.compiler import load_library
from marble_sweep.kernels.head import pointer_to, require_targets

GROUP = 16  # rows of logits that a thread takes at a time
SCORED = 64  # of a score, which is quicker
PARTS = 4  # of an accumulation

Share = Callable[[Iterable[int], Callable[[int], None]], None]  # calls a function with all numbers, by all threads


class CompiledSoftmax:
    """Raises CompilerError where it cannot be compiled."""

    def __init__(self) -> None:
        library = load_library("softmax.c")
        pointer, number = ctypes.c_void_p, ctypes.c_long
        self._gradient, self._accumulate = library.softmax_gradient, library.accumulate
        self._gradient.argtypes = [pointer, ctypes.c_int, pointer, number, number, ctypes.c_int, pointer, pointer]
        self._accumulate.argtypes = [pointer, pointer, number]
        self._score = library.score
        self._score.argtypes = [pointer, pointer, number, number, number, ctypes.c_int, pointer, pointer]
        self._gradient.restype = self._accumulate.restype = self._score.restype = None

    def gradient(
        self, logits: Tensor, targets: Tensor, sums: Tensor, losses: Tensor, *, needs_shift: bool, share: Share
    ) -> None:
        """Replace logits (N, V), contiguous float32 or bfloat16, by (softmax - one-hot) * sums, in their dtype.

        targets are (N,) int64. sums and losses, N contiguous float32, are written: the sums of a row's exponentials,
        and its loss in nats. Without shifts no logit may be larger than 87 in size. Raises TypeError or IndexError for
        targets that the compiled code must not be given.
        """
        num_rows, vocab_size = logits.shape
        require_targets(targets, num_rows, vocab_size)
        is_bf16 = logits.dtype == torch.bfloat16

        def work(start: int) -> None:
            self._gradient(
                *(pointer_to(logits, start), is_bf16, pointer_to(targets, start)),
                *(min(GROUP, num_rows - start), vocab_size, needs_shift),
                *(pointer_to(sums, start), pointer_to(losses, start)),
            )

        share(range(0, num_rows, GROUP), work)

    def score(
        self, logits: Tensor, targets: Tensor, losses: Tensor, words: Tensor, *, needs_shift: bool, share: Share
    ) -> None:
        """Write the loss of each row of logits (N, V) against each of its K targets, in nats, and its likeliest word.

        logits and losses (N, K) are float32, targets (N, K) and words (N,) int64, all contiguous. Of equally likely
        words it is the first. Without shifts no logit may be larger than 87 in size. Raises TypeError or IndexError for
        targets that the compiled code must not be given.
        """
        num_rows, vocab_size = logits.shape
        require_targets(targets, num_rows, vocab_size)

        def work(start: int) -> None:
            self._score(
                *(pointer_to(logits, start), pointer_to(targets, start)),
                *(min(SCORED, num_rows - start), targets.shape[1], vocab_size, needs_shift),
                *(pointer_to(losses, start), pointer_to(words, start)),
            )

        share(range(0, num_rows, SCORED), work)

    def accumulate(self, total: Tensor, values: Tensor, share: Share) -> None:
        """Add values, contiguous bfloat16, to a total of their shape, contiguous float32, in place."""
        size = -(-len(total) // PARTS)
        numel = total[0].numel()

        def work(start: int) -> None:
            rows = min(size, len(total) - start)
            self._accumulate(pointer_to(total, start), pointer_to(values, start), rows * numel)

        share(range(0, len(total), size), work)


@functools.cache
def compiled_softmax() -> CompiledSoftmax:
    """The compiled code, loaded once. Raises CompilerError where it cannot be compiled."""
    return CompiledSoftmax()


@contextmanager
def sharing_threads() -> Iterator[Share]:
    """As many threads as torch has, for several rounds of work; what one of them raises is raised by the call."""
    num_others = torch.get_num_threads() - 1
    with ThreadPoolExecutor(max(num_others, 1)) as pool:  # which starts no thread before it has work for it

        def share(numbers: Iterable[int], work: Callable[[int], None]) -> None:
            left: deque[int | None] = deque([*numbers, *[None] * (num_others + 1)])

            def take() -> None:
                for number in iter(left.popleft, None):
                    work(number)

            futures = [pool.submit(take) for _ in range(min(num_others, len(left) - num_others - 2))]
            take()
            for future in futures:
                if not future.cancel():  # on a busy machine a thread may not have begun: nothing is left for it
                    future.result()

        yield share
