"""nn.Linear for bfloat16 on CPUs that multiply float32 more quickly.

Few CPUs have units for bfloat16 products that beat their float32 ones; where torch must do without, it multiplies
bfloat16 a hundred times more slowly than float32 (docs/LOG.md). There the operands are widened, which is exact,
multiplied in float32, and the result is rounded once: what the units do as well.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from marble_sweep.model import products

WIDE_ROWS = 2048


def needs_float32_matmul(operand: Tensor) -> bool:
    """Whether products of this operand, bfloat16 by itself or under autocast, are done in float32."""
    if operand.device.type != "cpu" or products.current().matmul == "bfloat16":
        return False
    return operand.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")


class _WideLinear(torch.autograd.Function):
    """Some rows at a time, and bfloat16 is what backward keeps: float32 copies of everything would be large."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        wide_weight, wide_bias = weight.float(), bias.float()
        outputs = inputs.new_empty(len(inputs), len(weight))
        with torch.autocast("cpu", enabled=False):
            for rows, out in zip(inputs.split(WIDE_ROWS), outputs.split(WIDE_ROWS), strict=True):
                out.copy_(torch.addmm(wide_bias, rows.float(), wide_weight.T))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs, weight = ctx.saved_tensors
        (grad,) = grad_outputs
        wide_weight = weight.float()
        grad_inputs, grad_weight = torch.empty_like(inputs), torch.zeros_like(wide_weight)
        with torch.autocast("cpu", enabled=False):
            for rows, its_grad, out in zip(
                *(each.split(WIDE_ROWS) for each in (inputs, grad, grad_inputs)), strict=True
            ):
                wide_grad = its_grad.float()
                out.copy_(wide_grad @ wide_weight)
                grad_weight.addmm_(wide_grad.T, rows.float())
        return grad_inputs, grad_weight.bfloat16(), grad.sum(0)


class Linear(nn.Linear):
    """inputs (..., in_features) -> (..., out_features), with a bias."""

    def forward(self, inputs: Tensor) -> Tensor:
        if not needs_float32_matmul(inputs):
            return super().forward(inputs)
        operands = (each.bfloat16() for each in (inputs.flatten(0, -2), self.weight, self.bias))
        return _WideLinear.apply(*operands).unflatten(0, inputs.shape[:-1])
