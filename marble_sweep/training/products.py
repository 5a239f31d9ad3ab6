"""Which products a run uses on a CPU: the quickest for its shapes, measured once per machine and torch version.

Measured is the CPU time of one thread, which other work on the machine hardly changes, and which orders the candidates
as any number of threads does. The choice is kept in the user's cache, so that all jobs of a sweep and all trials
of a search make the same one, and in metadata.json, so that a resumed run goes on with the numbers it would have had.
"""

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from marble_sweep.checks import require
from marble_sweep.config import Config
from marble_sweep.data.cache import cached, content_key
from marble_sweep.kernels.compiler import CompilerError
from marble_sweep.kernels.head import MAX_WIDTH, fused_head
from marble_sweep.kernels.softmax import compiled_softmax
from marble_sweep.model.loss import linear_cross_entropy
from marble_sweep.model.products import COMPILED_HEADS, DEFAULT, FLOAT32_HEADS, HEADS, MATMULS, Products, using
from marble_sweep.model.transformer import Block
from marble_sweep.training.precision import POLICIES, PrecisionPolicy

log = logging.getLogger(__name__)

AUTO = "auto"
# What is timed.
LAYER_TOKENS = 512
MIN_ROWS, MAX_ROWS, MULTIPLICATIONS = 32, 512, 80_000_000  # rows of the head, for about so much work
PROBE = 8  # at first so small a part: what is hopeless there is not timed in full
HOPELESS = 8.0  # times the time of the quickest
REPEATS = 5  # in full
GAIN = 0.9  # of the time of what runs used before: a tenth less is needed to leave it
CPUINFO = Path("/proc/cpuinfo")
# What it says of a CPU that another one of the same model says too.
SAYS_WHICH = {"vendor_id", "cpu family", "model", "model name", "stepping", "flags", "CPU implementer", "CPU part"}
# Environment variables that take instruction sets away from the libraries.
LIMITS = ("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")

Trial = Callable[[str, int], None]  # runs a candidate once, on a part of the work: one PROBE-th, or all of it


def choose_products(config: Config, device: torch.device, vocab_size: int) -> Products:
    """What config fixes, and for the rest what is quickest here. Anything but a CPU has nothing to choose.

    Raises ValueError where config fixes what the precision policy or this machine does not have.
    """
    matmuls, heads = candidates(config, device)
    fixed = {"device.matmul": (config.device.matmul, matmuls), "device.head": (config.device.head, heads)}
    for name, (value, allowed) in fixed.items():
        there = f"{', '.join((AUTO, *allowed))} on {device.type} with this width and precision={config.precision.name}"
        require(value in (AUTO, *allowed), name, value, there)
    if device.type != "cpu":
        return DEFAULT
    matmul, head = config.device.matmul, config.device.head
    if matmul == AUTO:
        matmul = remembered_choice("matmul", matmuls, config, vocab_size)
    if head == AUTO:
        head = choose_head(heads, config, vocab_size)
    products = Products(matmul, head)
    require_head(products, config)
    return products


def candidates(config: Config, device: torch.device) -> tuple[list[str], list[str]]:
    """The products, and the heads, that a run may use on a device."""
    if device.type != "cpu":
        return [], []
    is_bf16 = POLICIES[config.precision.name].compute_dtype == torch.bfloat16
    heads = [head for head in HEADS if head != "fused" or config.model.hidden_dim <= MAX_WIDTH]
    if not is_bf16:
        return ["float32"], [head for head in heads if head in FLOAT32_HEADS]
    return list(MATMULS), heads


def choose_head(heads: list[str], config: Config, vocab_size: int) -> str:
    """The quickest head; the log says why where the compiled ones cannot be among them."""
    try:
        head = remembered_choice("head", heads, config, vocab_size)
        load_head(head, config)
        return head
    except CompilerError as error:
        log.info("The head is not compiled, and training is slower without: %s", error)
    others = [head for head in heads if head not in COMPILED_HEADS]
    return remembered_choice("head", others, config, vocab_size)


def load_head(head: str, config: Config) -> None:
    """Load what is compiled of a head, if anything. Raises CompilerError where that cannot be."""
    if head == "fused":
        fused_head(config.model.hidden_dim)
    elif head in COMPILED_HEADS:
        compiled_softmax()


def require_head(products: Products, config: Config) -> None:
    """Raise ValueError where this machine lacks the head."""
    try:
        load_head(products.head, config)
    except CompilerError as error:
        require(False, "device.head", products.head, f"another on this machine: {error}")


def recorded_products(metadata: Mapping[str, Any], config: Config, device: torch.device) -> Products:
    """What a run that is resumed was begun with. Raises ValueError where this machine lacks it."""
    recorded = metadata.get("products")
    if recorded is None:  # an earlier version's, or not a CPU's
        return DEFAULT
    matmuls, heads = candidates(config, device)
    for name, allowed in (("matmul", matmuls), ("head", heads)):
        value = recorded.get(name) if isinstance(recorded, dict) else recorded
        there = f"one that {device.type} has, to resume the run: {', '.join(allowed)}"
        require(value in allowed, f"products.{name}", value, there)
    products = Products(recorded["matmul"], recorded["head"])
    require_head(products, config)
    return products


# --------------------------------------------------------------------- measuring


def decide(seconds: Mapping[str, Sequence[float]], default: str) -> str:
    """The candidate with the least time, unless `default` is hardly slower. A candidate without times is out."""
    best = {name: min(times) for name, times in seconds.items() if times}
    quickest = min(best, key=lambda name: best[name])
    return quickest if default not in best or best[quickest] < GAIN * best[default] else default


def time_candidates(names: Sequence[str], trial: Trial) -> dict[str, list[float]]:
    """Seconds of each candidate, by turns; none of those that a small part already shows to be hopeless."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # The first call of anything is slow: that of the second round counts.
        probes = [{name: timed(trial, name, PROBE) for name in names} for _ in range(2)][1]
        hopeful = [name for name in names if probes[name] <= HOPELESS * min(probes.values())]
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(REPEATS):
            for name in hopeful:
                seconds[name].append(timed(trial, name, 1))
    finally:
        torch.set_num_threads(num_threads)
    return seconds


def timed(trial: Trial, name: str, share: int) -> float:
    """The CPU time of this thread in seconds."""
    started = time.thread_time()
    trial(name, share)
    return time.thread_time() - started


def remembered_choice(part: str, names: Sequence[str], config: Config, vocab_size: int) -> str:
    """The choice that the cache holds, or a new one, among `names`; `part` is `matmul` or `head`."""
    if len(names) == 1:
        return names[0]
    policy, model, trainer = POLICIES[config.precision.name], config.model, config.trainer
    make = {"matmul": layers_trial, "head": head_trial}[part]

    def measure() -> dict[str, bytes]:
        seconds = time_candidates(names, make(config, policy, vocab_size))
        default = getattr(DEFAULT, part)
        choice = decide(seconds, default if default in names else names[0])
        return {"choice.json": json.dumps({"choice": choice, "seconds": seconds}, indent=1).encode()}

    windows = min(trainer.batch_size, -(-LAYER_TOKENS // trainer.seq_len))
    shapes = {
        "matmul": [model.hidden_dim, model.heads, model.mlp_dim, windows, trainer.seq_len],
        "head": [model.hidden_dim, vocab_size],
    }
    dtypes = str(policy.param_dtype), str(policy.compute_dtype)
    key = content_key(part, *names, *shapes[part], *dtypes, torch.__version__, *machine())
    cached("products", key, measure)
    # Another process may have measured at the same time: what it stored first is everybody's.
    choice = json.loads(cached("products", key, measure)["choice.json"])["choice"]
    assert choice in names
    return str(choice)


def machine() -> list[str]:
    """What tells one kind of CPU from another, as far as the system says, and what its libraries may use of it."""
    try:
        lines = CPUINFO.read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    described = [line for line in lines if line.partition(":")[0].strip() in SAYS_WHICH]
    return [platform.machine(), platform.processor(), *described, *(os.environ.get(name, "") for name in LIMITS)]


def layers_trial(config: Config, policy: PrecisionPolicy, _vocab_size: int) -> Trial:
    """Forward and backward of one block of the run's model on some windows."""
    model, trainer = config.model, config.trainer
    generator = torch.Generator().manual_seed(0)
    block = Block(model.hidden_dim, model.heads, model.mlp_dim, generator).to(policy.param_dtype)
    windows = min(trainer.batch_size, -(-LAYER_TOKENS // trainer.seq_len))
    inputs = torch.randn(windows, trainer.seq_len, model.hidden_dim, generator=generator).to(policy.param_dtype)

    def trial(name: str, share: int) -> None:
        with torch.enable_grad(), using(Products(matmul=name, head=DEFAULT.head)):
            part = inputs[: -(-windows // share)].requires_grad_()
            with policy.autocast(inputs.device):
                outputs = block(part)
            outputs.backward(torch.ones_like(outputs))

    return trial


def head_trial(config: Config, policy: PrecisionPolicy, vocab_size: int) -> Trial:
    """Loss and gradients of some rows of the run's width against its vocabulary."""
    width, generator = config.model.hidden_dim, torch.Generator().manual_seed(0)
    num_rows = max(MIN_ROWS, min(MAX_ROWS, MULTIPLICATIONS // (vocab_size * width)))
    hidden = torch.randn(num_rows, width, generator=generator).to(policy.compute_dtype)
    weight = (0.02 * torch.randn(vocab_size, width, generator=generator)).to(policy.compute_dtype).requires_grad_()
    targets = torch.randint(vocab_size, (num_rows,), generator=generator)

    def trial(name: str, share: int) -> None:
        rows = num_rows // share
        with torch.enable_grad(), using(Products(matmul=DEFAULT.matmul, head=name)):
            linear_cross_entropy(hidden[:rows].requires_grad_(), weight, targets[:rows]).backward()

    return trial


def as_metadata(products: Products, device: torch.device) -> dict[str, str] | None:
    """As metadata.json has it: null where there is nothing to choose."""
    return asdict(products) if device.type == "cpu" else None
