"""A trainer on the meta device, which holds no data."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import tiny_config

from marble_sweep.data.batches import Batches
from marble_sweep.run import build_model
from marble_sweep.training import optimizer as module
from marble_sweep.training.precision import POLICIES, PrecisionPolicy
from marble_sweep.training.progress import Progress
from marble_sweep.training.trainer import Trainer
from marble_sweep.training.writer import RunWriter

META = torch.device("meta")
VOCAB_SIZE = 300


@pytest.fixture
def _meta_as_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch has on every accelerator and not on meta: autocast, generators and fused optimizers."""
    build = module.build_optimizers

    class Generator(torch.Generator):
        def __new__(cls, device: torch.device | str = "cpu") -> "Generator":
            return super().__new__(cls, "cpu")  # type: ignore[call-arg] # torch's stub knows only its __init__

    monkeypatch.setattr(PrecisionPolicy, "autocast", lambda self, device: contextlib.nullcontext())
    monkeypatch.setattr(module, "build_optimizers", lambda *args, reference: build(*args, reference=True))
    monkeypatch.setattr(torch, "Generator", Generator)


@pytest.fixture
def meta_trainer(_meta_as_a_device: None, tmp_path: Path) -> Iterator[Callable[..., Trainer]]:
    """Called with overrides, gives a trainer on the meta device before its first step."""
    writer: RunWriter | None = None

    def build(*overrides: str) -> Trainer:
        nonlocal writer
        config = tiny_config(*overrides)
        model = build_model(config, VOCAB_SIZE).to(META, POLICIES[config.precision.name].param_dtype)
        windows = torch.zeros(32, config.trainer.seq_len, dtype=torch.int32, device=META)
        batches = Batches(windows, config.trainer.batch_size, config.seed)
        dead_mask = torch.arange(VOCAB_SIZE) % 3 == 0
        writer = RunWriter(tmp_path, dead_mask)
        trainer = Trainer(config, model, batches, dead_mask, writer, Progress(10, show=False))
        trainer.metrics.compiled = None
        for name in ("tokens", "history"):  # looked for once, before the first step
            setattr(trainer.metrics, name, getattr(trainer.metrics, name).to(META))
        return trainer

    yield build
    if writer is not None:
        writer.close()
