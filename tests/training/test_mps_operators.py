"""Every operator of a step has an implementation on Apple's GPUs, as torch declares them. No Mac is needed to see that.

A step is traced on the meta device, and its operators are looked up in `native_functions.yaml`, which torchgen carries.
"""

import functools
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from marble_sweep.metrics import step as step_metrics
from marble_sweep.training.precision import POLICIES
from marble_sweep.training.trainer import Trainer

# On the meta device plain operators stand in for these, which torch has on accelerators.
FUSED = {"adamw": "_fused_adamw_", "adam": "_fused_adam_", "sgd": "_fused_sgd_", "muon": "_fused_adamw_"}


class Trace(TorchDispatchMode):
    """The names of the operators called, and of those that gave float64."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[str] = set()
        self.float64: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        namespace, _, name = func.name().partition("::")
        if namespace != "aten":  # a profiler's mark
            return result
        self.operators.add(name)
        outputs = result if isinstance(result, tuple | list) else [result]
        if any(isinstance(output, torch.Tensor) and output.dtype == torch.float64 for output in outputs):
            self.float64.add(name)
        return result


@functools.cache
def declarations() -> dict[str, dict[str, Any]]:
    """The entries of native_functions.yaml by the operator's name, overload included."""
    path = resources.files("torchgen") / "packaged/ATen/native/native_functions.yaml"
    entries = yaml.load(path.read_bytes(), yaml.CSafeLoader)  # a safe loader
    return {entry["func"].partition("(")[0]: entry for entry in entries}


def runs_on_mps(name: str) -> bool:
    """Whether an operator has a kernel for MPS, its own or that of its out variant, or is made of others."""
    entry = declarations()[name]
    if "structured_delegate" in entry:
        return runs_on_mps(entry["structured_delegate"])
    if "dispatch" not in entry:  # made of other operators, which are traced themselves
        return True
    keys = {key.strip() for keys in entry["dispatch"] for key in keys.split(",")}
    return "MPS" in keys or any(key.startswith("Composite") for key in keys)


def test_what_mps_has_and_lacks_is_told_apart() -> None:
    assert all(map(runs_on_mps, ["mm", "mm.out", "add.Tensor", "view", "_fused_adamw_"]))
    assert not any(map(runs_on_mps, ["geqrf", "_fused_adagrad_"]))


@pytest.mark.parametrize("optimizer", FUSED)
@pytest.mark.parametrize("precision", POLICIES)
def test_mps_has_every_operator_of_a_step(
    precision: str, optimizer: str, meta_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_metrics, "WITHOUT_FLOAT64", ("mps", "meta"))
    trainer = meta_trainer(f"precision={precision}", f"optimizer={optimizer}")
    with Trace() as trace:
        for _ in range(2):
            trainer.take_step()
    assert "mm" in trace.operators
    assert [name for name in {*trace.operators, FUSED[optimizer]} if not runs_on_mps(name)] == []
    assert trace.float64 == set()
