"""Summaries of hidden states against loops in float64."""

import math

import numpy as np
import pytest
import torch
from bounds import gamma

from marble_sweep.metrics.hidden import cosines, summarise


def plain_summary(hidden: torch.Tensor) -> tuple[np.ndarray, float, float]:
    """Mean, mean norm and spread of hidden (B, T, D), one vector at a time in float64."""
    vectors = [vector.tolist() for window in hidden.double() for vector in window]
    width = len(vectors[0])
    mean = [sum(vector[d] for vector in vectors) / len(vectors) for d in range(width)]
    mean_length = math.sqrt(sum(value**2 for value in mean))
    lengths = [math.sqrt(sum(value**2 for value in vector)) for vector in vectors]
    cosines = [
        sum(a * b for a, b in zip(vector, mean, strict=True)) / (length * mean_length)
        for vector, length in zip(vectors, lengths, strict=True)
    ]
    return np.array(mean), sum(lengths) / len(lengths), 1 - sum(cosines) / len(cosines)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_summary_equals_a_loop_in_float64(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = (torch.randn(3, 5, 7, generator=generator) + torch.linspace(-1, 1, 7)).to(dtype)
    mean, norm, spread = plain_summary(hidden)
    summary = summarise(hidden)
    # Sums of 15 vectors and of 7 dimensions, of entries up to 4; a cosine takes four of them.
    np.testing.assert_allclose(summary.mean.numpy(), mean, rtol=0, atol=4 * gamma(16))
    assert summary.norm.item() == pytest.approx(norm, rel=gamma(15 + 7 + 2))
    assert summary.spread.item() == pytest.approx(spread, abs=4 * gamma(16))
    assert {part.dtype for part in summary} == {torch.float32}


def test_bfloat16_is_accumulated_in_float32() -> None:
    hidden = torch.ones(64, 128, 4, dtype=torch.bfloat16)
    hidden[0, 0] = 1.5  # in bfloat16, a mean of 1 + 0.5 / 8192 would be 1
    assert summarise(hidden).mean.tolist() == pytest.approx([1 + 0.5 / 8192] * 4, rel=2.0**-24)  # the sum is exact


def test_spread_at_its_ends() -> None:
    same = torch.tensor([1.0, 2.0, 3.0]).expand(2, 4, 3)
    assert summarise(same).spread.item() == pytest.approx(0, abs=gamma(16))  # two norms, a product, a quotient
    assert summarise(same).norm.item() == pytest.approx(math.sqrt(14))
    right_angle = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert summarise(right_angle).spread.item() == pytest.approx(1 - math.sqrt(0.5))


def test_lengths_do_not_enter_the_spread_but_the_mean() -> None:
    hidden = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]])
    summary = summarise(hidden)
    assert summary.mean.tolist() == [1.5, 0.5]
    assert summary.norm.item() == 2
    assert summary.spread.item() == pytest.approx(1 - (3 + 1) / (2 * math.sqrt(10)))


def test_summary_holds_no_graph() -> None:
    assert not any(part.requires_grad for part in summarise(torch.ones(1, 2, 3, requires_grad=True)))


def test_cosines() -> None:
    first, second = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])
    others = torch.stack([second, -2 * first, torch.tensor([-4.0, 3.0]), torch.zeros(2), torch.full((2,), torch.nan)])
    assert cosines(others, first).tolist() == pytest.approx([24 / 25, -1, 0, math.nan, math.nan], nan_ok=True)
    assert cosines(others, torch.zeros(2)).isnan().all()
