"""A step never waits for its device: on the meta device, which holds no data, whoever looks at a value fails."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import tiny_config

from marble_sweep.data.batches import Batches
from marble_sweep.run import build_model
from marble_sweep.training import optimizer as updater
from marble_sweep.training.precision import POLICIES, PrecisionPolicy
from marble_sweep.training.progress import Progress
from marble_sweep.training.trainer import Trainer

META = torch.device("meta")
V = 300


@pytest.fixture
def _meta_as_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch has on every accelerator and not on meta: autocast, generators and fused optimizers."""
    build = updater.build_optimizers

    class Generator(torch.Generator):
        def __new__(cls, device: torch.device | str = "cpu") -> "Generator":
            return super().__new__(cls, "cpu")  # type: ignore[call-arg] # torch's stub knows only its __init__

    monkeypatch.setattr(PrecisionPolicy, "autocast", lambda self, device: contextlib.nullcontext())
    monkeypatch.setattr(updater, "build_optimizers", lambda *args, reference: build(*args, reference=True))
    monkeypatch.setattr(torch, "Generator", Generator)


@pytest.fixture
def trainer(_meta_as_a_device: None, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Trainer]:
    config = tiny_config(f"precision={request.param}")
    model = build_model(config, V).to(META, POLICIES[request.param].param_dtype)
    windows = torch.zeros(32, config.trainer.seq_len, dtype=torch.int32, device=META)
    batches = Batches(windows, config.trainer.batch_size, config.seed)
    trainer = Trainer(config, model, batches, None, torch.arange(V) % 3 == 0, tmp_path, Progress(10, show=False))
    for name in ("tokens", "history"):  # looked for once, before the first step
        setattr(trainer.metrics, name, getattr(trainer.metrics, name).to(META))
    yield trainer
    trainer.step_rows.close()
    trainer.eval_rows.close()


@pytest.mark.parametrize("trainer", ["bf16", "bf16_pure", "fp32"], indirect=True)
def test_a_step_looks_at_no_value(trainer: Trainer) -> None:
    for _ in range(2 * trainer.batches.steps_per_epoch):
        trainer.take_step()
    assert {row.device for row in trainer.pending.device} == {META}
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        trainer.pending.device[0].tolist()
