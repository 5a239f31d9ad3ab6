"""A step never waits for its device: on the meta device, which holds no data, whoever looks at a value fails."""

from collections.abc import Callable

import pytest
import torch

from marble_sweep.training.trainer import Trainer


@pytest.mark.parametrize("precision", ["bf16", "bf16_pure", "fp32"])
def test_a_step_looks_at_no_value(precision: str, meta_trainer: Callable[..., Trainer]) -> None:
    trainer = meta_trainer(f"precision={precision}")
    for _ in range(2 * trainer.batches.steps_per_epoch):
        trainer.take_step()
    assert {row.device for row in trainer.pending.device} == {torch.device("meta")}
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        trainer.pending.device[0].tolist()
