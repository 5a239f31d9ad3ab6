"""What a run needs of memory at the very least, and what there is: a run that cannot fit is refused at once.

Every figure is a lower bound, made of tensors that are all there at the same moment. What fits is never refused.
"""

import os
from pathlib import Path

import torch

from marble_sweep.checks import require
from marble_sweep.config import Config
from marble_sweep.groups import MarkovConfig, MuonConfig, OptimizerConfig, SGDConfig
from marble_sweep.kernels.head import GROUP, MAX_WIDTH
from marble_sweep.model import products
from marble_sweep.model.loss import chunk_rows
from marble_sweep.training.precision import POLICIES

GIB = 2**30
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
# The setting that a complaint names where a part is the largest.
KNOBS = {
    "weights and optimizer": "model.hidden_dim",
    "activations": "trainer.batch_size",
    "means of h": "verdict.direction_lag",
    "corpus": "data.num_tokens",
}
TURNED = ("model.num_layers", "model.hidden_dim", "data.vocab_size", "trainer.batch_size", "trainer.seq_len")


def training_bytes(config: Config, device: torch.device, lag: int) -> dict[str, int]:
    """The bytes of each part of what training holds at the end of a backward pass, on its device."""
    policy, model, trainer = POLICIES[config.precision.name], config.model, config.trainer
    stored, states = policy.param_dtype.itemsize, policy.optimizer_dtype.itemsize
    # The weights, the ones before the step, and backward's gradients; the gradients as the optimizer sees them.
    of_weight = 3 * stored + states + (states if policy.rounds else 0)
    of_weight += num_moments(config.optimizer) * states
    tokens, width = trainer.batch_size * trainer.seq_len, model.hidden_dim
    # Backward needs the operands of each layer's products: four of the width, and the MLP's before and after GELU.
    kept = model.num_layers * (4 * width + 2 * model.mlp_dim) + width
    # The compiled head, where there is one, has a buffer of few rows.
    is_narrow = device.type == "cpu" and width <= MAX_WIDTH
    rows = min(trainer.batch_size * (trainer.seq_len - 1), GROUP if is_narrow else chunk_rows(device))
    activations = tokens * kept * policy.compute_dtype.itemsize + rows * config.data.vocab_size * 4
    if device.type == "cpu" and policy.compute_dtype == torch.bfloat16 and products.current().matmul == "bfloat16":
        # Attention there writes its scores out.
        activations += model.num_layers * model.heads * tokens * trainer.seq_len * policy.compute_dtype.itemsize
    return {
        "weights and optimizer": config.num_parameters * of_weight,
        "activations": activations,
        "means of h": lag * width * 4,
    }


def num_moments(optimizer: OptimizerConfig) -> int:
    """How many numbers the optimizer remembers of each weight, at least."""
    if isinstance(optimizer, SGDConfig):
        return int(optimizer.momentum > 0)
    return 1 if isinstance(optimizer, MuonConfig) else 2


def corpus_bytes(config: Config) -> int:
    """The bytes that a corpus takes while it is made; 0 where only its text can tell."""
    data = config.data
    if not isinstance(data, MarkovConfig):
        return 0
    # A draw and a list entry a token; a successor, its flow and a list entry an edge of the chain.
    return 16 * data.num_tokens + 24 * data.num_live * data.branching


def available_bytes(device: torch.device) -> int | None:
    """What can still be taken on a device; None where that cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_here()


def available_here() -> int | None:
    """What this process can still take of the machine's memory, within its container; None where it cannot be told."""
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        of_machine = sum(int(lines[name].split()[0]) * 1024 for name in ("MemAvailable", "SwapFree"))
    except (OSError, ValueError, KeyError):
        if "SC_PHYS_PAGES" not in os.sysconf_names:
            return None
        of_machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    of_container = container_bytes()
    return of_machine if of_container is None else min(of_machine, of_container)


def container_bytes() -> int | None:
    """What is left of the limit of this process's control group (version 2); None without one."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        lines = (line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        cached = next(int(value) for name, value in lines if name == "file")  # given back when memory is short
        return int(limit) - used + cached if limit != "max" else None
    except (OSError, ValueError, StopIteration):
        return None


def require_memory(config: Config, device: torch.device, lag: int) -> None:
    """Raise ValueError where the run cannot fit, before anything of it is made.

    `lag` is the number of means of h that the step's metrics remember.
    """
    needed = training_bytes(config, device, lag)
    require_room(config, needed, available_bytes(device), device.type)
    # The weights are drawn in float32 on the CPU; the corpus is made before them.
    on_host = {"weights and optimizer": 4 * config.num_parameters}
    for parts in (on_host, {"corpus": corpus_bytes(config)}):
        require_room(config, parts, available_here(), "cpu")


def require_room(config: Config, parts: dict[str, int], available: int | None, where: str) -> None:
    total = sum(parts.values())
    if available is None or total <= available:
        return
    largest = max(parts, key=lambda name: parts[name])
    group, _, name = KNOBS[largest].partition(".")
    shares = ", ".join(f"{name} {size / GIB:,.1f}" for name, size in parts.items())
    others = ", ".join(knob for knob in TURNED if knob != KNOBS[largest])
    allowed = (
        f"smaller for the run to fit in memory ({where}): it takes at least {total / GIB:,.1f} GiB ({shares}) "
        f"and {available / GIB:,.1f} are free; {others} count too"
    )
    require(False, KNOBS[largest], getattr(getattr(config, group), name), allowed)
