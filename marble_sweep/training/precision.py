"""Precision policies: in which dtype weights live, states are kept, and products are computed."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Policy:
    weights: torch.dtype  # what is stored between steps
    states: torch.dtype  # optimizer states, and the arithmetic of the update
    compute: torch.dtype  # operands of the matrix products, forward and backward
    stochastic: bool = False  # how an update is rounded to the weights' dtype

    @property
    def rounds(self) -> bool:
        """Whether the update is done in a wider dtype and its result rounded to the weights'."""
        return self.weights != self.states

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """The context of every forward pass; does nothing where weights already have the compute dtype."""
        return torch.autocast(device.type, dtype=self.compute, enabled=self.compute != self.weights)


POLICIES = {
    "bf16": Policy(torch.bfloat16, torch.float32, torch.bfloat16),
    "bf16_pure": Policy(torch.bfloat16, torch.bfloat16, torch.bfloat16),
    "bf16_stochastic": Policy(torch.bfloat16, torch.float32, torch.bfloat16, stochastic=True),
    "mixed": Policy(torch.float32, torch.float32, torch.bfloat16),
    "fp32": Policy(torch.float32, torch.float32, torch.float32),
}


def round_stochastic(values: Tensor, generator: Generator) -> Tensor:
    """Round float32 to one of the two neighbouring bfloat16, the nearer the likelier: E[result] = value.

    bfloat16 is the upper half of a float32, so a uniform 16-bit number added to the lower half carries
    into the upper one with just that probability (Zamirai et al. 2020, "Revisiting BFloat16 Training").
    """
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    bits = (values.view(torch.int32) + noise) & -(1 << 16)
    return torch.where(values.isfinite(), bits.view(torch.float32), values).to(torch.bfloat16)
