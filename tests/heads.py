"""What the tests of compiled heads measure them with: examples, float64, and a number of threads."""

import contextlib
from collections.abc import Iterator

import torch

from marble_sweep.model import products
from marble_sweep.model.loss import linear_cross_entropy
from marble_sweep.model.products import Products

CHUNKED, FUSED = Products("float32", "float32"), Products("float32", "fused")

Operands = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # hidden, weight, targets


def example(
    num_rows: int, width: int, vocab_size: int, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> Operands:
    generator = torch.Generator().manual_seed(1000 * width + num_rows)
    hidden = torch.randn(num_rows, width, generator=generator)
    weight = scale * torch.randn(vocab_size, width, generator=generator)
    targets = torch.randint(vocab_size, (num_rows,), generator=generator)
    targets[0], targets[-1] = 0, vocab_size - 1
    return hidden.to(dtype), weight.to(dtype), targets


def exact(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Mean loss and its gradients in float64, written out."""
    hidden, weight = hidden.double(), weight.double()
    log_probs = (hidden @ weight.T).log_softmax(1)
    rows = torch.arange(len(targets))
    logits_grad = log_probs.exp()
    logits_grad[rows, targets] = torch.expm1(log_probs[rows, targets])
    logits_grad /= len(targets)
    return -log_probs[rows, targets].mean(), logits_grad @ weight, logits_grad.T @ hidden


def measured(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, how: Products = FUSED
) -> tuple[torch.Tensor, ...]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    with products.using(how):
        loss = linear_cross_entropy(hidden, weight, targets)
        loss.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return loss.detach(), hidden.grad, weight.grad


def error(ours: torch.Tensor, truth: torch.Tensor) -> float:
    """Relative to the norm; of a loss, which is a difference of numbers of any size, to 1 + loss."""
    size = truth.norm() + (truth.ndim == 0)
    return ((ours.double() - truth).norm() / size).item()


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
