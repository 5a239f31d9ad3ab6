"""optimizer.grad_clip against torch's own clip_grad_norm_ in float64, and what a run says of it."""

import csv
import json
import logging
from pathlib import Path

import pytest
import torch
from bounds import BFLOAT16, gamma
from helpers import tiny_config, train_only
from tiny_model import Tiny, give, gradients

from marble_sweep.groups import AdamWConfig, MuonConfig, OptimizerConfig
from marble_sweep.run import run
from marble_sweep.training import optimizer as module
from marble_sweep.training.optimizer import FlatOptimizer
from marble_sweep.training.precision import POLICIES


@pytest.mark.parametrize("max_norm", [1e-3, 1e3], ids=["clips", "leaves it"])
@pytest.mark.parametrize("measured_by", ["compiled code", "torch"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_pure"])
@pytest.mark.parametrize("config", [AdamWConfig(), MuonConfig()], ids=["adamw", "muon"])
def test_the_gradient_is_scaled_as_torch_scales_it(
    config: OptimizerConfig, precision: str, measured_by: str, max_norm: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if measured_by == "torch":
        monkeypatch.setattr(module, "compiled_metrics", lambda device: None)
    policy = POLICIES[precision]
    model = Tiny(policy.param_dtype)
    config.grad_clip = max_norm
    flat_optimizer = FlatOptimizer(model, config, policy, seed=0)
    grads = gradients(model, step=0)
    give(model, grads)
    flat_optimizer.step(1e-3)

    twins = [torch.zeros_like(grad, dtype=torch.float64, requires_grad=True) for grad in grads]
    for twin, grad in zip(twins, grads, strict=True):
        twin.grad = grad.double()
    norm = torch.nn.utils.clip_grad_norm_(twins, max_norm)
    expected = torch.cat([twin.grad.flatten() for twin in twins if twin.grad is not None])
    # The factor has four roundings of float32, the norm some 200 of its squares; the product one of its own dtype.
    rounding = gamma(210) + (BFLOAT16 if policy.optimizer_dtype == torch.bfloat16 else 0)
    torch.testing.assert_close(flat_optimizer.gradient.double(), expected, rtol=rounding, atol=0)
    assert flat_optimizer.norm_before_clipping is not None
    assert flat_optimizer.norm_before_clipping.item() == pytest.approx(norm.item(), rel=gamma(210))
    if max_norm > norm:
        assert torch.equal(
            flat_optimizer.gradient, torch.cat([each.flatten() for each in grads]).to(policy.optimizer_dtype)
        )


def columns(directory: Path, *names: str) -> list[tuple[float, ...]]:
    with (directory / "metrics.csv").open(newline="") as file:
        return [tuple(float(row[name]) for name in names) for row in csv.DictReader(file)]


def test_grad_norm_is_that_before_clipping(tmp_path: Path) -> None:
    """The first step's is that of a run that clips nothing; a step of plain SGD is then as long as the clipped one."""
    settings = ("precision=fp32", "optimizer=sgd", "optimizer.lr=1e-2", "optimizer.momentum=0", "trainer.total_steps=2")
    free, clipped = (tiny_config(*settings, *clip) for clip in ((), ("optimizer.grad_clip=0.01",)))
    train_only(free, tmp_path / "free")
    train_only(clipped, tmp_path / "clipped")
    [first, _] = columns(tmp_path / "free", "grad_norm", "loss")
    [same, second] = columns(tmp_path / "clipped", "grad_norm", "loss")
    assert same == first
    assert first[0] > 0.01
    assert abs(second[1] - columns(tmp_path / "free", "grad_norm", "loss")[1][1]) > 0


def test_a_run_says_how_often_its_gradient_was_clipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run(tiny_config("optimizer.grad_clip=0.5", "trainer.total_steps=20"), tmp_path / "run", show=False)
    norms = [norm for (norm,) in columns(tmp_path / "run", "grad_norm")]
    share = sum(norm > 0.5 for norm in norms) / 20
    assert 0 < share < 1, "of no use here"
    metadata = json.loads((tmp_path / "run" / "metadata.json").read_text())
    assert (metadata["grad_clip"], metadata["grad_clipped"]) == (0.5, share)
    assert "gradient norm clipped to 0.5, constant" in caplog.text
    assert f"The gradient was clipped in {100 * share:.1f}% of the steps." in caplog.text
