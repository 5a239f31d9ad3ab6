"""The estimate of a run's length, made before its first step."""

import time
from pathlib import Path

import pytest
import torch
from helpers import tiny_config

from marble_sweep.data.batches import Batches
from marble_sweep.run import build_model
from marble_sweep.training import trainer as module
from marble_sweep.training.progress import Progress
from marble_sweep.training.trainer import Trainer


@pytest.mark.parametrize(("most_tokens", "windows_tried"), [(10_000, 8), (48, 3), (5, 1)])
def test_a_part_of_the_batch_is_timed_and_scaled_to_the_whole(
    most_tokens: int, windows_tried: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("precision=fp32")  # batches of 8 x 16 tokens
    batches = Batches(torch.zeros(32, 16, dtype=torch.int32), 8, seed=0)
    model = build_model(config, 64)
    trainer = Trainer(config, model, batches, None, torch.arange(64) % 3 == 0, tmp_path, Progress(10, show=False))
    now, tried = [0.0], list[int]()
    loss = trainer.loss

    def slow_loss(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tried.append(len(tokens))
        now[0] += (100.0 if len(tried) == 1 else 0.5) * len(tokens)  # the first pass warms up
        return loss(tokens)

    monkeypatch.setattr(module, "ESTIMATE_TOKENS", most_tokens)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(trainer, "loss", slow_loss)
    before = [parameter.clone() for parameter in model.parameters()]
    assert trainer.seconds_per_step() == 0.5 * 8
    assert tried == [windows_tried] * 2
    assert all(map(torch.equal, before, model.parameters()))
    assert all(parameter.grad is None for parameter in model.parameters())
    trainer.step_rows.close()
    trainer.eval_rows.close()
