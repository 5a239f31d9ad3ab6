"""Cross-entropy of a tied head, some rows at a time: the (N, V) logits never exist as a whole.

Whatever the dtype of the operands, softmax, losses and the sums over chunks are float32. On a CPU the head is
one of products.HEADS: chunks of some hundred rows through torch's products, or compiled code.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from marble_sweep.kernels.head import fused_head
from marble_sweep.kernels.softmax import compiled_softmax, sharing_threads
from marble_sweep.model import products

CPU_CHUNK_ROWS = 256  # few enough for the caches, enough to keep a product at full speed
GPU_CHUNK_ROWS = 4096  # enough work for one kernel to fill a GPU
SAFE_LOGIT = 60.0  # up to it sums of exp(logit), and of their products with weights, are well within float32
ARGMAX_BLOCK = 128  # columns


def chunk_rows(device: torch.device) -> int:
    return CPU_CHUNK_ROWS if device.type == "cpu" else GPU_CHUNK_ROWS


@contextlib.contextmanager
def head_operands(hidden: Tensor, weight: Tensor, head: str) -> Iterator[list[Tensor]]:
    """The operands as a head multiplies them: on the CPU in float32 unless it is `bfloat16`, elsewhere as they are.

    A CPU's float32 products are exact for bfloat16 operands and need no conversion of logits. With
    `float32_as_bf16` operands that are bfloat16 may be multiplied as such inside, with float32 sums.
    """
    mkldnn: Any = torch.backends.mkldnn  # whose settings torch adds at run time
    settings = mkldnn.matmul
    before = settings.fp32_precision
    on_cpu, is_bf16 = hidden.device.type == "cpu", hidden.dtype == torch.bfloat16
    if on_cpu and is_bf16 and head == "float32_as_bf16":
        settings.fp32_precision = "bf16"
    as_they_are = not on_cpu or (is_bf16 and head == "bfloat16")
    try:
        yield [operand if as_they_are else operand.float() for operand in (hidden, weight)]
    finally:
        settings.fp32_precision = before


def needs_shift(hidden: Tensor, weight: Tensor) -> bool:
    """Whether exp(logit) might overflow, or a row's sum of them vanish, without taking off the row's maximum.

    |logit| <= |hidden row| · |weight row|. Only a CPU looks: elsewhere the host would wait for the answer.
    """
    if hidden.device.type != "cpu":
        return True
    longest_squared = hidden.square().sum(1).amax() * weight.square().sum(1).amax()
    return not longest_squared.item() < SAFE_LOGIT**2  # NaN needs it too: it must reach the loss


class HeadResult(NamedTuple):
    """What comes of all rows together. The gradients are None where nobody wants them."""

    loss: Tensor  # the sum of the rows' losses, a float32 scalar
    hidden_grad: Tensor | None  # (N, D), of that sum
    weight_grad: Tensor | None  # (V, D) float32


def chunked_head(hidden: Tensor, weight: Tensor, targets: Tensor, *, gradients: bool, head: str) -> HeadResult:
    """The head by torch's products. A gradient is worked out while a chunk's logits are at hand."""
    num_rows, chunk = hidden.shape[0], chunk_rows(hidden.device)
    loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
    hidden_grad = torch.empty_like(hidden) if gradients else None
    weight_grad = torch.zeros_like(weight, dtype=torch.float32) if gradients else None
    with head_operands(hidden, weight, head) as (states, matrix):
        buffer = matrix.new_empty(min(chunk, num_rows), len(matrix))
        shifts = needs_shift(states, matrix)
        for start in range(0, num_rows, chunk):
            rows = states[start : start + chunk]
            target = targets[start : start + chunk, None]
            logits = torch.mm(rows, matrix.T, out=buffer[: len(rows)]).float()  # (rows, V)
            if shifts:
                logits -= logits.amax(1, keepdim=True)
            target_logits = logits.gather(1, target)
            exps = logits.exp_()  # softmax is exps / sums; dividing what comes of them is less work
            sums = exps.sum(1, keepdim=True)
            loss += (sums.log() - target_logits).sum()
            if hidden_grad is not None and weight_grad is not None:
                # d loss / d logits = softmax - one-hot; the mean's 1 / N is applied in backward.
                logits_grad = exps.scatter_add_(1, target, -sums).to(matrix.dtype)  # times sums
                hidden_grad[start : start + chunk] = (logits_grad @ matrix) / sums
                scaled = (rows / sums).to(matrix.dtype)
                if weight_grad.dtype == matrix.dtype:
                    weight_grad.addmm_(logits_grad.T, scaled)
                else:
                    weight_grad += logits_grad.T @ scaled
    return HeadResult(loss, hidden_grad, weight_grad)


def compiled_softmax_head(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, gradients: bool, dtype: torch.dtype
) -> HeadResult:
    """The head by torch's products of operands of `dtype`, and compiled code between them, on the CPU.

    Raises CompilerError where there is no compiled code.
    """
    states, matrix, targets = hidden.to(dtype), weight.to(dtype), targets.contiguous()
    num_rows, vocab_size = len(hidden), len(weight)
    losses, sums = torch.empty(2, num_rows, 1)
    hidden_grad = torch.empty_like(hidden) if gradients else None
    weight_grad = torch.zeros_like(weight, dtype=torch.float32) if gradients else None
    buffer = matrix.new_empty(min(CPU_CHUNK_ROWS, num_rows), vocab_size)
    softmax, shifts = compiled_softmax(), needs_shift(states, matrix)
    with sharing_threads() as share:
        for start in range(0, num_rows, CPU_CHUNK_ROWS):
            chunk = slice(start, start + CPU_CHUNK_ROWS)
            rows, its_sums = states[chunk], sums[chunk]
            logits = torch.mm(rows, matrix.T, out=buffer[: len(rows)])
            softmax.gradient(logits, targets[chunk], its_sums, losses[chunk], needs_shift=shifts, share=share)
            if hidden_grad is not None and weight_grad is not None:
                hidden_grad[chunk] = (logits @ matrix) / its_sums
                scaled = (rows / its_sums).to(dtype)
                if dtype == torch.float32:
                    weight_grad.addmm_(logits.T, scaled)
                else:
                    softmax.accumulate(weight_grad, logits.T @ scaled, share)
    return HeadResult(losses.sum(), hidden_grad, weight_grad)


def compiled_head(hidden: Tensor, weight: Tensor, targets: Tensor, *, gradients: bool) -> HeadResult:
    """The head by compiled code, on the CPU. Raises CompilerError where there is none."""
    compiled = fused_head(hidden.shape[1])
    loss, *grads = compiled(hidden, weight, targets, safe_logit=SAFE_LOGIT, gradients=gradients)
    return HeadResult(torch.tensor(loss, dtype=torch.float32), *grads)


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient is worked out in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        gradients, head = any(ctx.needs_input_grad), products.current().head
        if head == "fused" and hidden.device.type == "cpu":
            result = compiled_head(hidden, weight, targets, gradients=gradients)
        elif head.endswith("_compiled") and hidden.device.type == "cpu":
            is_bf16 = head == "bfloat16_compiled" and hidden.dtype == torch.bfloat16
            dtype = torch.bfloat16 if is_bf16 else torch.float32
            result = compiled_softmax_head(hidden, weight, targets, gradients=gradients, dtype=dtype)
        else:
            result = chunked_head(hidden, weight, targets, gradients=gradients, head=head)
        ctx.num_rows, ctx.dtype = len(hidden), hidden.dtype
        ctx.save_for_backward(result.hidden_grad, result.weight_grad)
        return result.loss / len(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = grad_outputs[0] / ctx.num_rows
        return (hidden_grad * scale).to(ctx.dtype), (weight_grad * scale).to(ctx.dtype), None


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, of softmax(hidden @ weight.T) against targets; a float32 scalar.

    hidden (N, D) and weight (V, D) share a dtype; targets (N,) are int64.
    """
    return _LinearCrossEntropy.apply(hidden, weight, targets)


@torch.no_grad()
def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's loss in nats against each of its K targets, and its most probable token.

    hidden (N, D), weight (V, D), targets (N, K) int64 -> losses (N, K) float32, top (N,) int64.
    """
    losses = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
    top = torch.empty(len(hidden), dtype=torch.int64, device=hidden.device)
    # Ever so slightly different logits would do for training, but not for the most probable token.
    with head_operands(hidden, weight, "float32_as_bf16") as (states, matrix):
        if hidden.device.type == "cpu" and products.current().head in products.COMPILED_HEADS:
            compiled_scores(states, matrix, targets.contiguous(), losses, top)
        else:
            torch_scores(states, matrix, targets, losses, top)
    return losses, top


def compiled_scores(states: Tensor, matrix: Tensor, targets: Tensor, losses: Tensor, top: Tensor) -> None:
    """Write what token_losses returns, by torch's products and compiled code. Raises CompilerError without that."""
    softmax, num_rows, shifts = compiled_softmax(), len(states), needs_shift(states, matrix)
    buffer = matrix.new_empty(min(CPU_CHUNK_ROWS, num_rows), len(matrix))
    with sharing_threads() as share:
        for start in range(0, num_rows, CPU_CHUNK_ROWS):
            chunk = slice(start, start + CPU_CHUNK_ROWS)
            rows = states[chunk]
            logits = torch.mm(rows, matrix.T, out=buffer[: len(rows)])
            softmax.score(logits, targets[chunk], losses[chunk], top[chunk], needs_shift=shifts, share=share)


def torch_scores(states: Tensor, matrix: Tensor, targets: Tensor, losses: Tensor, top: Tensor) -> None:
    """Write what token_losses returns, by torch alone."""
    num_rows, vocab_size, chunk = len(states), len(matrix), chunk_rows(states.device)
    num_blocks = math.ceil(vocab_size / ARGMAX_BLOCK)
    shape = min(chunk, num_rows), num_blocks * ARGMAX_BLOCK
    buffer = matrix.new_full(shape, -math.inf)  # what is beyond the vocabulary stays so
    for start in range(0, num_rows, chunk):
        rows = states[start : start + chunk]
        logits = torch.mm(rows, matrix.T, out=buffer[: len(rows), :vocab_size])
        # The CPU's argmax takes ten times as long as its amax: the best block first, then the best in it.
        blocks = buffer[: len(rows)].unflatten(1, (num_blocks, ARGMAX_BLOCK))
        best_block = blocks.amax(2).argmax(1)
        peak, place = blocks[torch.arange(len(rows), device=rows.device), best_block].max(1)
        top[start : start + chunk] = best_block * ARGMAX_BLOCK + place
        logits = logits.float().sub_(peak[:, None])
        target_logits = logits.gather(1, targets[start : start + chunk])
        losses[start : start + chunk] = logits.exp_().sum(1, keepdim=True).log() - target_logits
