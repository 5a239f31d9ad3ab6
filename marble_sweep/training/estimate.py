"""How long a run will take, estimated before its first step."""

import time

import torch

from marble_sweep.training.trainer import Trainer

CPU_TOKENS = 4096  # enough for a CPU to show its speed


def seconds_per_step(trainer: Trainer) -> float:
    """The time of one forward and backward pass, the second of two that leave no trace; seconds.

    On a CPU, whose time is that of the arithmetic, a part of the batch is timed and scaled to the whole.
    """
    windows, seq_len = trainer.config.trainer.batch_size, trainer.config.trainer.seq_len
    device = trainer.optimizer.weights.device
    timed_windows = min(windows, max(1, CPU_TOKENS // seq_len)) if device.type == "cpu" else windows
    tokens = torch.zeros((timed_windows, seq_len), dtype=torch.int64, device=device)
    for _ in range(2):  # the first warms up
        started = time.perf_counter()
        loss, _ = trainer.loss(tokens)
        loss.backward()
        loss.item()
    elapsed = time.perf_counter() - started
    trainer.model.zero_grad(set_to_none=True)
    return elapsed * windows / timed_windows
