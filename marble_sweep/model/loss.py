"""Cross-entropy of a tied head, a few hundred rows at a time: the (N, V) logits never exist as a whole.

Whatever the dtype of the matrix products, softmax, losses and the sums over chunks are float32.
"""

from typing import Any

import torch
from torch import Tensor

CPU_CHUNK_ROWS = 128  # the logits of so many rows stay in a core's cache
GPU_CHUNK_ROWS = 4096  # enough work for one kernel to fill a GPU


def chunk_rows(device: torch.device) -> int:
    return CPU_CHUNK_ROWS if device.type == "cpu" else GPU_CHUNK_ROWS


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient is worked out in the forward pass, while a chunk's logits are at hand."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        num_rows = hidden.shape[0]
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        needs_gradient = any(ctx.needs_input_grad)
        hidden_grad = torch.empty_like(hidden) if needs_gradient else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if needs_gradient else None
        chunk = chunk_rows(hidden.device)
        for start in range(0, num_rows, chunk):
            rows = slice(start, start + chunk)
            logits = hidden[rows] @ weight.T  # (rows, V)
            probs = logits.softmax(-1, dtype=torch.float32)
            target = targets[rows, None]
            # log-sum-exp from the likeliest token: a target's own probability may be too small for a float32.
            peak_logit, peak = logits.max(dim=-1, keepdim=True)
            log_sum_exp = peak_logit.float() - probs.gather(1, peak).log()
            loss += (log_sum_exp - logits.gather(1, target).float()).sum()
            if hidden_grad is not None and weight_grad is not None:
                # d loss / d logits = softmax - one-hot; the mean's 1 / N is applied in backward.
                probs.scatter_add_(1, target, torch.full_like(target, -1, dtype=torch.float32))
                logits_grad = probs.to(hidden.dtype)
                hidden_grad[rows] = logits_grad @ weight
                weight_grad += logits_grad.T @ hidden[rows]
        ctx.num_rows = num_rows
        ctx.save_for_backward(hidden_grad, weight_grad, weight)
        return loss / num_rows

    @staticmethod
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
def score(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's loss in nats against each of its K targets, and its most probable token.

    hidden (N, D), weight (V, D), targets (N, K) int64 -> losses (N, K) float32, top (N,) int64.
    """
    losses = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
    top = torch.empty(hidden.shape[0], dtype=torch.int64, device=hidden.device)
    chunk = chunk_rows(hidden.device)
    for start in range(0, hidden.shape[0], chunk):
        rows = slice(start, start + chunk)
        log_probs = (hidden[rows] @ weight.T).log_softmax(-1, dtype=torch.float32)
        losses[rows] = -log_probs.gather(1, targets[rows])
        top[rows] = log_probs.argmax(-1)
    return losses, top
