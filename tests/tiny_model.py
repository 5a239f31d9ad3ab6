"""A model with parameters of every kind that the transformer has, and gradients for it."""

import torch
from torch import nn


class Tiny(nn.Module):
    """Parameters of every kind that the transformer has, under the names that it gives them."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding(20, 6)
        self.blocks = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 6)])
        self.final_norm = nn.LayerNorm(6)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        self.to(dtype)


def gradients(model: nn.Module, step: int, scale: float = 1e-2) -> list[torch.Tensor]:
    """A step's gradients in the weights' dtype, a third of them zero."""
    generator = torch.Generator().manual_seed(100 + step)
    drawn = [torch.randn(each.shape, generator=generator) * scale for each in model.parameters()]
    return [each.masked_fill(each.abs() < 0.43 * scale, 0).to(next(model.parameters()).dtype) for each in drawn]


def give(model: nn.Module, grads: list[torch.Tensor]) -> None:
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        parameter.grad = grad.clone()
