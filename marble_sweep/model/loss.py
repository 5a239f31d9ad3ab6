"""Cross-entropy of a tied head, some hundred rows at a time: the (N, V) logits never exist as a whole.

Whatever the dtype of the operands, softmax, losses and the sums over chunks are float32.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_CHUNK_ROWS = 256  # few enough for the caches, enough to keep a product at full speed
GPU_CHUNK_ROWS = 4096  # enough work for one kernel to fill a GPU
SAFE_LOGIT = 60.0  # up to it sums of exp(logit), and of their products with weights, are well within float32
ARGMAX_BLOCK = 128  # columns


def chunk_rows(device: torch.device) -> int:
    return CPU_CHUNK_ROWS if device.type == "cpu" else GPU_CHUNK_ROWS


@contextlib.contextmanager
def float32_products(*operands: Tensor) -> Iterator[list[Tensor]]:
    """The operands as the head multiplies them: on the CPU in float32, elsewhere as they are.

    A CPU's float32 products are exact for bfloat16 operands and need no conversion of logits. Where the
    operands are bfloat16, oneDNN may multiply in bfloat16 inside, with float32 sums: quick where the CPU
    has tiles for that.
    """
    mkldnn: Any = torch.backends.mkldnn  # whose settings torch adds at run time
    settings = mkldnn.matmul
    before = settings.fp32_precision
    if operands[0].device.type == "cpu" and operands[0].dtype == torch.bfloat16:
        settings.fp32_precision = "bf16"
    try:
        yield [each.float() if each.device.type == "cpu" else each for each in operands]
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


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient is worked out in the forward pass, while a chunk's logits are at hand."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        num_rows, chunk = hidden.shape[0], chunk_rows(hidden.device)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        needs_gradient = any(ctx.needs_input_grad)
        hidden_grad = torch.empty_like(hidden) if needs_gradient else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if needs_gradient else None
        with float32_products(hidden, weight) as (states, matrix):
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
        ctx.num_rows = num_rows
        ctx.save_for_backward(hidden_grad, weight_grad, weight)
        return loss / num_rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden_grad, weight_grad, weight = ctx.saved_tensors
        scale = grad_outputs[0] / ctx.num_rows
        return (hidden_grad * scale).to(hidden_grad.dtype), (weight_grad * scale).to(weight.dtype), None


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
    num_rows, vocab_size, chunk = len(hidden), len(weight), chunk_rows(hidden.device)
    losses = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
    top = torch.empty(num_rows, dtype=torch.int64, device=hidden.device)
    with float32_products(hidden, weight) as (states, matrix):
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
    return losses, top
