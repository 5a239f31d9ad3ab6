"""What the final hidden states h (B, T, D) do: their mean, their length, their spread."""

from typing import NamedTuple

import torch
from torch import Tensor


class HiddenSummary(NamedTuple):
    mean: Tensor  # (D,) float32: h averaged over batch and sequence
    norm: Tensor  # scalar: mean L2 norm of the single h
    spread: Tensor  # scalar: mean of 1 - cosine(h, h_mean), in [0, 2]


def summarise(hidden: Tensor) -> HiddenSummary:
    """Mean, norm and spread of hidden (B, T, D), in float32 whatever its dtype."""
    vectors = hidden.detach().flatten(0, 1).float()  # (B*T, D)
    mean = vectors.mean(dim=0)
    norms = torch.linalg.vector_norm(vectors, dim=1)
    spread = 1 - cosines(vectors, mean).mean()
    return HiddenSummary(mean, norms.mean(), spread)


def cosines(vectors: Tensor, other: Tensor) -> Tensor:
    """Cosine of the angle between each of (N, D) vectors and another one (D,); NaN where either is zero; (N,)."""
    return vectors @ other / (torch.linalg.vector_norm(vectors, dim=1) * torch.linalg.vector_norm(other))
