"""The benchmark of token scores: its contenders give the same answers, and every one has a row."""

import pytest
import scores
import torch
from compilers import needs_compiler

pytestmark = needs_compiler


@pytest.mark.parametrize("width", [3, 64])
def test_all_contenders_score_alike(width: int) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(300, width, generator=generator).bfloat16()
    weight = (0.3 * torch.randn(500, width, generator=generator)).bfloat16()
    targets = torch.randint(500, (300, scores.NUM_TARGETS), generator=generator)
    expected, words = scores.by_torch(hidden, weight, targets)
    bound = width * (hidden.float().abs() @ weight.float().abs().T).amax().item() * 2.0**-22
    for score in scores.CONTENDERS.values():
        losses, its_words = score(hidden, weight, targets)
        assert (losses - expected).abs().max() <= bound
        rows = torch.arange(300)
        logits = hidden.double() @ weight.double().T
        assert (logits[rows, words] - logits[rows, its_words]).abs().max() <= bound


def test_every_contender_has_a_row() -> None:
    rows = scores.measure(2, 40, rounds=2)
    assert [row[1] for row in rows] == list(scores.CONTENDERS)
    assert rows[0][3] == "1.00"  # torch against itself
