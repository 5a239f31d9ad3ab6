"""nn.Linear for bfloat16 on CPUs that cannot multiply it.

Few CPUs have units for bfloat16 products that beat their float32 ones; where torch must do without, it multiplies
bfloat16 a hundred times more slowly than float32 (docs/performance.md). There the operands are widened, which is exact,
multiplied in float32, and the result is rounded once: what the units do as well.
"""

from typing import Any

import torch
from torch import Tensor, nn

# Tiles (AMX); a torch that cannot tell is taken to have none.
CPU_MULTIPLIES_BF16 = hasattr(torch.cpu, "get_capabilities") and torch.cpu.get_capabilities().get("amx_bf16", False)


def widens(operand: Tensor) -> bool:
    """Whether products of this bfloat16 (or autocast) operand are better done in float32."""
    if operand.device.type != "cpu" or CPU_MULTIPLIES_BF16:
        return False
    return operand.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")


class _WideLinear(torch.autograd.Function):
    """Keeps the bfloat16 operands for backward, not their float32 copies, which are twice as large."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        with torch.autocast("cpu", enabled=False):
            return torch.mm(inputs.float(), weight.float().T).add_(bias).bfloat16()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs, weight = ctx.saved_tensors
        grad = grad_outputs[0].float()
        with torch.autocast("cpu", enabled=False):
            grad_inputs, grad_weight = grad @ weight.float(), grad.T @ inputs.float()
        return grad_inputs.bfloat16(), grad_weight.bfloat16(), grad.sum(0).bfloat16()


class Linear(nn.Linear):
    """inputs (..., in_features) -> (..., out_features), with a bias."""

    def forward(self, inputs: Tensor) -> Tensor:
        if not widens(inputs):
            return super().forward(inputs)
        operands = (each.bfloat16() for each in (inputs.flatten(0, -2), self.weight, self.bias))
        return _WideLinear.apply(*operands).unflatten(0, inputs.shape[:-1])
