"""The memory that a run needs at least, and what is available: a run that cannot fit is refused before it starts.

Every figure is a lower bound: a sum over tensors that exist at the same moment. A run that fits is never refused.
"""

import os
from pathlib import Path

import torch

from marble_sweep.checks import require
from marble_sweep.config import Config
from marble_sweep.groups import MarkovConfig, MuonConfig, OptimizerConfig, SGDConfig
from marble_sweep.kernels.head import GROUP, MAX_WIDTH
from marble_sweep.model.loss import chunk_rows
from marble_sweep.training.precision import POLICIES

GIB = 2**30
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
# The setting that an error names where a part is the largest.
SETTING_OF_PART = {
    "weights and optimizer": "model.hidden_dim",
    "activations": "trainer.batch_size",
    "means of h": "verdict.direction_lag",
    "corpus": "data.num_tokens",
}
MEMORY_SETTINGS = ("model.num_layers", "model.hidden_dim", "data.vocab_size", "trainer.batch_size", "trainer.seq_len")


def training_bytes(config: Config, device: torch.device) -> dict[str, int]:
    """The bytes of each part of what training holds when a backward pass begins, on its device."""
    policy, model, trainer = POLICIES[config.precision.name], config.model, config.trainer
    param_bytes, state_bytes = policy.param_dtype.itemsize, policy.optimizer_dtype.itemsize
    # The weights, and the ones before the step; the gradients as the optimizer sees them. Those that backward leaves
    # are let go before the next activations are made.
    per_weight = 2 * param_bytes + state_bytes + (state_bytes if policy.rounds else 0)
    per_weight += num_moments(config.optimizer) * state_bytes
    tokens, width = trainer.batch_size * trainer.seq_len, model.hidden_dim
    # Backward needs the operands of each layer's products: four of the width, and the MLP's before and after GELU,
    # unless it works those out again.
    is_recomputed = policy.compute_dtype == torch.float32
    kept = model.num_layers * (4 * width + (1 if is_recomputed else 2) * model.mlp_dim) + width
    # The logits of some rows, in the operands' dtype; for narrow widths compiled code may hold fewer, in float32.
    rows = trainer.batch_size * (trainer.seq_len - 1)
    if device.type == "cpu" and width <= MAX_WIDTH:
        logits = min(rows, GROUP) * config.data.vocab_size * 4
    else:
        logits = min(rows, chunk_rows(device)) * config.data.vocab_size * policy.compute_dtype.itemsize
    activations = tokens * kept * policy.compute_dtype.itemsize + logits
    if device.type == "cpu" and policy.compute_dtype == torch.bfloat16 and config.device.matmul == "bfloat16":
        # Attention there writes its scores out. With `auto` it is not known yet whether it will.
        activations += model.num_layers * model.heads * tokens * trainer.seq_len * policy.compute_dtype.itemsize
    return {
        "weights and optimizer": config.num_parameters * per_weight,
        "activations": activations,
        "means of h": config.autocorrelation_lag * width * 4,
    }


def num_moments(optimizer: OptimizerConfig) -> int:
    """How many numbers the optimizer remembers of each weight, at least."""
    if isinstance(optimizer, SGDConfig):
        return int(optimizer.momentum > 0)
    return 1 if isinstance(optimizer, MuonConfig) else 2


def corpus_bytes(config: Config) -> int:
    """The bytes that making the corpus takes; 0 where that depends on its text."""
    data = config.data
    if not isinstance(data, MarkovConfig):
        return 0
    # A draw and a list entry a token; a successor, its flow and a list entry an edge of the chain.
    return 16 * data.num_tokens + 24 * data.num_live * data.branching


def available_bytes(device: torch.device) -> int | None:
    """The free memory of a device in bytes; None where it is unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_here()


def available_here() -> int | None:
    """The bytes that this process can still allocate on the machine, within its container; None where it is unknown."""
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        machine_bytes = sum(int(lines[name].split()[0]) * 1024 for name in ("MemAvailable", "SwapFree"))
    except (OSError, ValueError, KeyError):
        if "SC_PHYS_PAGES" not in os.sysconf_names:
            return None
        machine_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    in_container = container_bytes()
    return machine_bytes if in_container is None else min(machine_bytes, in_container)


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


def require_memory(config: Config, device: torch.device) -> None:
    """Raise ValueError where the run cannot fit, before anything of it is made."""
    needed = training_bytes(config, device)
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
    group, _, name = SETTING_OF_PART[largest].partition(".")
    shares = ", ".join(f"{name} {size / GIB:,.1f}" for name, size in parts.items())
    others = ", ".join(setting for setting in MEMORY_SETTINGS if setting != SETTING_OF_PART[largest])
    allowed = (
        f"smaller for the run to fit in memory ({where}): it takes at least {total / GIB:,.1f} GiB ({shares}) "
        f"and {available / GIB:,.1f} are free; {others} count too"
    )
    require(False, SETTING_OF_PART[largest], getattr(getattr(config, group), name), allowed)
