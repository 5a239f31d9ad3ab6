"""Which products a run uses on a CPU: the quickest for its shapes, measured once per machine and torch version.

Measured is the CPU time of one thread, which other work on the machine hardly changes, and which orders the candidates
as any number of threads does. The choice is kept in the user's cache, for all runs on the machine; in the folder of
the sweep, where the first job of a shape decides for all others, on whatever machine they run; and in metadata.json
and the state, so that a resumed run goes on with the numbers it would have had.
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

from marble_sweep.checks import CheckError, require
from marble_sweep.config import Config
from marble_sweep.data.cache import cached, content_key
from marble_sweep.kernels.compiler import CompilerError
from marble_sweep.kernels.head import MAX_WIDTH, fused_head
from marble_sweep.kernels.softmax import compiled_softmax
from marble_sweep.model.loss import linear_cross_entropy
from marble_sweep.model.products import COMPILED_HEADS, DEFAULT, FLOAT32_HEADS, HEADS, MATMULS, Products, using
from marble_sweep.model.transformer import Block
from marble_sweep.runs.damage import DamageError, read_json
from marble_sweep.runs.files import write_exclusive
from marble_sweep.training.precision import POLICIES, PrecisionPolicy

log = logging.getLogger(__name__)

AUTO = "auto"
# What is timed.
LAYER_TOKENS = 512
MIN_ROWS, MAX_ROWS, MULTIPLICATIONS = 32, 512, 80_000_000  # rows of the head, for about so much work
PROBE = 8  # at first so small a part: what is hopeless there is not timed in full
HOPELESS = 8.0  # times the time of the quickest
REPEATS, MAX_REPEATS = 5, 15  # in full; more than the fewest while the least times are those of a single moment
AGREEMENT = 1.1  # the second least time, in times of the least, that confirms it
GAIN = 0.9  # of the time of what runs used before: a tenth less is needed to leave it
CPUINFO = Path("/proc/cpuinfo")
# What it says of a CPU that another one of the same model says too.
SAYS_WHICH = {"vendor_id", "cpu family", "model", "model name", "stepping", "flags", "CPU implementer", "CPU part"}
# Environment variables that take instruction sets away from the libraries.
LIMITS = ("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")

CLAIM_SECONDS = 5.0  # to wait for another job's choice, where the file system has no hard links

Trial = Callable[[str, int], None]  # runs a candidate once, on a part of the work: one PROBE-th, or all of it


def choose_products(config: Config, device: torch.device, vocab_size: int, shared: Path | None = None) -> Products:
    """What config fixes, and for the rest what the sweep has chosen in `shared`, a folder, or is quickest here.

    Anything but a CPU has nothing to choose. Raises ValueError where config fixes, or the sweep has chosen, what the
    precision policy or this machine does not have.
    """
    matmuls, heads = candidates(config, device)
    fixed = {"device.matmul": (config.device.matmul, matmuls), "device.head": (config.device.head, heads)}
    for name, (value, allowed) in fixed.items():
        there = f"{', '.join((AUTO, *allowed))} on {device.type} with this width and precision={config.precision.name}"
        require(value in (AUTO, *allowed), name, value, there)
    if device.type != "cpu":
        return DEFAULT
    matmul, head = config.device.matmul, config.device.head
    if matmul == AUTO and len(matmuls) > 1:
        path = shared_path(shared, "matmul", config, vocab_size)
        matmul = shared_choice(path, matmuls, lambda: remembered_choice("matmul", matmuls, config, vocab_size))
    elif matmul == AUTO:
        (matmul,) = matmuls
    if head == AUTO:
        path = shared_path(shared, "head", config, vocab_size)
        head = shared_choice(path, heads, lambda: choose_head(heads, config, vocab_size))
        if path is not None:
            require_head(head, config, f"possible on every machine of the sweep, which chose it ({path}); on this one")
    else:
        require_head(head, config, "another on this machine")
    return Products(matmul, head)


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


def require_head(head: str, config: Config, allowed: str) -> None:
    """Raise ValueError, which says what is allowed instead, where this machine lacks the head."""
    try:
        load_head(head, config)
    except CompilerError as error:
        require(False, "device.head", head, f"{allowed}: {error}")


def shared_path(folder: Path | None, part: str, config: Config, vocab_size: int) -> Path | None:
    """The file with the choice of a sweep for these shapes; None for a run that is in no sweep."""
    if folder is None:
        return None
    shape = "x".join(map(str, shapes(part, config, vocab_size)))
    return folder / f"{part}-{shape}-{config.precision.name}.json"


def shared_choice(path: Path | None, allowed: Sequence[str], choose: Callable[[], str]) -> str:
    """The choice in a file of the sweep, or this job's where it is the first to choose.

    Raises ValueError where the file holds none that is allowed.
    """
    if path is None:
        return choose()
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        if not write_exclusive(path, json.dumps({"choice": choose()}) + "\n"):
            await_file(path)
    try:
        choice = read_json(path).get("choice")
    except DamageError:
        choice = None
    if choice not in allowed:
        raise CheckError(f"{path}: must hold the sweep's choice, one of {', '.join(allowed)}")
    return str(choice)


def await_file(path: Path) -> None:
    """Wait until another process, which was the first to claim a file, has written it."""
    ends = time.monotonic() + CLAIM_SECONDS
    while not path.exists() and time.monotonic() < ends:
        time.sleep(0.01)


def recorded_products(metadata: Mapping[str, Any], config: Config, device: torch.device) -> Products:
    """What a run that is resumed was begun with. Raises ValueError where this machine, or its config, lacks it."""
    recorded = metadata.get("products")
    if recorded is None:  # an earlier version's, or not a CPU's
        return DEFAULT
    require(device.type == "cpu", "device.type", device.type, "cpu, to resume a run that began on one")
    for name, allowed in zip(("matmul", "head"), candidates(config, device), strict=True):
        value = recorded.get(name) if isinstance(recorded, dict) else recorded
        there = f"one that {device.type} has, to resume the run: {', '.join(allowed)}"
        require(value in allowed, f"products.{name}", value, there)
        fixed = getattr(config.device, name)
        require(fixed in (AUTO, value), f"device.{name}", fixed, f"auto or {value}, with which the run began")
    require_head(recorded["head"], config, "possible on this machine, to resume the run")
    return Products(recorded["matmul"], recorded["head"])


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
        for repeat in range(MAX_REPEATS):
            for name in hopeful:
                if repeat < REPEATS or not is_confirmed(seconds[name]):
                    seconds[name].append(timed(trial, name, 1))
    finally:
        torch.set_num_threads(num_threads)
    return seconds


def is_confirmed(times: Sequence[float]) -> bool:
    """Whether the least time came twice, but for noise: other work on the machine seldom leaves it so."""
    least, second = sorted(times)[:2]
    return second <= AGREEMENT * least


def timed(trial: Trial, name: str, share: int) -> float:
    """The CPU time of this thread in seconds."""
    started = time.thread_time()
    trial(name, share)
    return time.thread_time() - started


def remembered_choice(part: str, names: Sequence[str], config: Config, vocab_size: int) -> str:
    """The choice that the cache holds, or a new one, among `names`; `part` is `matmul` or `head`."""
    if len(names) == 1:
        return names[0]
    policy = POLICIES[config.precision.name]
    make = {"matmul": layers_trial, "head": head_trial}[part]

    def measure() -> dict[str, bytes]:
        seconds = time_candidates(names, make(config, policy, vocab_size))
        default = getattr(DEFAULT, part)
        choice = decide(seconds, default if default in names else names[0])
        return {"choice.json": json.dumps({"choice": choice, "seconds": seconds}, indent=1).encode()}

    dtypes = str(policy.param_dtype), str(policy.compute_dtype)
    key = content_key(part, *names, *shapes(part, config, vocab_size), *dtypes, torch.__version__, *machine())
    cached("products", key, measure)
    # Another process may have measured at the same time: what it stored first is everybody's.
    choice = json.loads(cached("products", key, measure)["choice.json"])["choice"]
    assert choice in names
    return str(choice)


def shapes(part: str, config: Config, vocab_size: int) -> list[int]:
    """The numbers that a choice depends on beside the dtypes."""
    model, seq_len = config.model, config.trainer.seq_len
    if part == "head":
        return [model.hidden_dim, vocab_size]
    return [model.hidden_dim, model.heads, model.mlp_dim, measured_windows(config), seq_len]


def measured_windows(config: Config) -> int:
    return min(config.trainer.batch_size, -(-LAYER_TOKENS // config.trainer.seq_len))


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
    model, windows = config.model, measured_windows(config)
    generator = torch.Generator().manual_seed(0)
    block = Block(model.hidden_dim, model.heads, model.mlp_dim, generator).to(policy.param_dtype)
    inputs = torch.randn(windows, config.trainer.seq_len, model.hidden_dim, generator=generator).to(policy.param_dtype)

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
