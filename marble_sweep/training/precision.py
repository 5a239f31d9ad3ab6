"""Precision policies: in which dtype weights live, states are kept, and products are computed."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class PrecisionPolicy:
    param_dtype: torch.dtype  # what is stored between steps
    optimizer_dtype: torch.dtype  # optimizer states, and the arithmetic of the update
    compute_dtype: torch.dtype  # operands of the matrix products, forward and backward
    stochastic: bool = False  # how an update is rounded to the weights' dtype

    @property
    def rounds(self) -> bool:
        """Whether the update is done in a wider dtype and its result rounded to the weights'."""
        return self.param_dtype != self.optimizer_dtype

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """The context of every forward pass; does nothing where weights already have the compute dtype."""
        return torch.autocast(device.type, dtype=self.compute_dtype, enabled=self.compute_dtype != self.param_dtype)


POLICIES = {
    "bf16": PrecisionPolicy(torch.bfloat16, torch.float32, torch.bfloat16),
    "bf16_pure": PrecisionPolicy(torch.bfloat16, torch.bfloat16, torch.bfloat16),
    "bf16_stochastic": PrecisionPolicy(torch.bfloat16, torch.float32, torch.bfloat16, stochastic=True),
    "mixed": PrecisionPolicy(torch.float32, torch.float32, torch.bfloat16),
    "fp32": PrecisionPolicy(torch.float32, torch.float32, torch.float32),
}


def round_stochastic(values: Tensor, generator: Generator) -> Tensor:
    """Round float32 to one of the two neighbouring bfloat16, the nearer the likelier: E[result] = value.

    bfloat16 is the upper half of a float32, so a uniform 16-bit number added to the lower half carries
    into the upper one with just that probability (Zamirai et al. 2020, "Revisiting BFloat16 Training").
    """
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    bits = (values.view(torch.int32) + noise) & -(1 << 16)
    return torch.where(values.isfinite(), bits.view(torch.float32), values).to(torch.bfloat16)
