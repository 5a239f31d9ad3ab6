"""How quick is a training step? marble_sweep beside the notebook's plain loop and transformers' GPT-2.

    pip install --constraint constraints.txt --editable '.[bench]'
    python benchmarks/step.py [--settings 4L128D@128x128 ...] [--rounds 5] [--seconds 8] [--device cpu] [--json FILE]

A contender runs in a process of its own, `--seconds` long after a warm-up, and contenders take turns: a round is one
process of each, the next round begins with another one. Figures are medians over rounds, ratios the medians of the
rounds' ratios to the notebook's loop. Every contender trains on the same windows of a Zipf distribution.

- notebook: benchmarks/notebook_loop.py, bfloat16, with the notebook's metrics at every step
- gpt2 bf16, gpt2 fp32: GPT-2 of the same shape in transformers' own Trainer, without metrics
- plain bf16, plain fp32: benchmarks/plain_gpt.py, a plain loop over plain torch, without metrics
- torch's head: plain fp32 with torch's own linear_cross_entropy, in the chunks that it chooses; from torch 2.13 on
- the precision policies: marble_sweep's own loop, all its metrics at every step, rows written; `bf16 bare`: no metrics;
  `bf16 unmeasured`: the products that a run has where none are chosen by measurement

Peak memory is the process's (on a GPU, what torch allocated there). `first step` counts from the start of the process.
Then one more process per setting says where the time of a bf16 step goes.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from step_table import table

if TYPE_CHECKING:
    import torch

    from marble_sweep.config import Config
    from marble_sweep.training.trainer import Trainer

VOCAB_SIZE, NUM_LIVE = 10_000, 6_300  # the rest are dead tokens, as in the notebook's corpus
# Written out: importing marble_sweep before torch would set how the peers' threads wait.
POLICIES = ("bf16", "bf16_pure", "bf16_stochastic", "mixed", "fp32")
TORCHS_HEAD = "torch's head"
PEERS = ("notebook", "gpt2 bf16", "gpt2 fp32", "plain bf16", "plain fp32", TORCHS_HEAD)
CONTENDERS = (*PEERS, *POLICIES, "bf16 bare", "bf16 unmeasured")
IN_FLOAT32 = ("gpt2 fp32", "plain fp32", TORCHS_HEAD, "fp32")
WARM_UP_STEPS, LEAST_STEPS = 2, 3
SLOW_PRODUCT = 1.0  # seconds
PARTS = "parts"  # the process that times each part of a step


class Setting(NamedTuple):
    """A model and the tokens of a step."""

    num_layers: int
    hidden_dim: int
    batch_size: int
    seq_len: int

    @classmethod
    def parse(cls, text: str) -> "Setting":
        """Read e.g. 4L128D@128x128: layers, width @ windows x tokens."""
        model, _, batch = text.partition("@")
        num_layers, _, hidden_dim = model.removesuffix("D").partition("L")
        batch_size, _, seq_len = batch.partition("x")
        return cls(int(num_layers), int(hidden_dim), int(batch_size), int(seq_len))

    def heads(self) -> int:
        from marble_sweep.groups import ModelConfig

        return ModelConfig(hidden_dim=self.hidden_dim).heads

    def flops(self) -> float:
        """Of a step's matrix products, forward and backward: 3 x 2 a weight and token, and attention's."""
        weights = 12 * self.hidden_dim**2 * self.num_layers + VOCAB_SIZE * self.hidden_dim
        attention = 2 * self.num_layers * self.seq_len * self.hidden_dim  # multiplications a token, the mask's too
        return 6 * (weights + attention) * self.batch_size * self.seq_len


# ------------------------------------------------------------------------------ inside a contender's process


class Clock:
    """Called after each step; False once enough were timed."""

    def __init__(self, device: str, seconds: float) -> None:
        self.device, self.enough = device, seconds
        self.step = 0
        self.first = 0.0

    def __call__(self) -> bool:
        self.step += 1
        if self.step == 1:
            synchronize(self.device)
            self.first = time.time()
        if self.step == WARM_UP_STEPS:
            synchronize(self.device)
            self.started = time.perf_counter()
        steps = self.step - WARM_UP_STEPS
        if steps < LEAST_STEPS or time.perf_counter() - self.started < self.enough:
            return True
        synchronize(self.device)
        self.seconds_per_step = (time.perf_counter() - self.started) / steps
        return False


def synchronize(device: str) -> None:
    import torch

    if device != "cpu":
        getattr(torch, device).synchronize()


def zipf_windows(setting: Setting) -> "torch.Tensor":
    """(num_windows, T) int64, some batches of them."""
    import torch

    weights = 1 / torch.arange(1, NUM_LIVE + 1, dtype=torch.float64)
    shape = 8 * setting.batch_size, setting.seq_len
    drawn = torch.multinomial(weights, shape[0] * shape[1], True, generator=torch.Generator().manual_seed(0))
    return drawn.view(shape)


def train_notebook(setting: Setting, device: str, on_step: Callable[[], bool]) -> None:
    import torch
    from notebook_loop import TinyLM, train

    torch.manual_seed(42)
    model = TinyLM(VOCAB_SIZE, setting.hidden_dim, setting.num_layers, setting.heads(), setting.seq_len)
    dead_mask = torch.arange(VOCAB_SIZE) >= NUM_LIVE
    train(model, zipf_windows(setting), setting.batch_size, dead_mask, device, on_step)


def train_gpt2(setting: Setting, device: str, on_step: Callable[[], bool], *, bf16: bool) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = not on_step()

    config = GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_positions=setting.seq_len,
        n_embd=setting.hidden_dim,
        n_layer=setting.num_layers,
        n_head=setting.heads(),
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config)
    rows = [{"input_ids": row, "labels": row} for row in zipf_windows(setting)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=setting.batch_size,
            max_steps=1_000_000,
            bf16=bf16,
            use_cpu=device == "cpu",
            dataloader_drop_last=True,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        Trainer(model, arguments, train_dataset=rows, callbacks=[Stop()]).train()


def train_plain(setting: Setting, device: str, on_step: Callable[[], bool], name: str) -> None:
    import torch
    from plain_gpt import PlainGPT, all_logits, torchs_head, train

    torch.manual_seed(42)
    model = PlainGPT(VOCAB_SIZE, setting.hidden_dim, setting.num_layers, setting.heads(), setting.seq_len)
    head = torchs_head if name == TORCHS_HEAD else all_logits
    train(model, zipf_windows(setting), setting.batch_size, device, on_step, bf16=name == "plain bf16", head=head)


def compose(setting: Setting, device: str, precision: str = "bf16") -> "Config":
    """The config of a run of ours."""
    from marble_sweep.hydra_app.compose import compose_config

    overrides = [
        f"model.num_layers={setting.num_layers}",
        f"model.hidden_dim={setting.hidden_dim}",
        f"trainer.batch_size={setting.batch_size}",
        f"trainer.seq_len={setting.seq_len}",
        "trainer.total_steps=1000000",
        f"precision={precision}",
        f"device={device}",
    ]
    return compose_config(overrides)


@contextlib.contextmanager
def made_trainer(setting: Setting, device: str, precision: str, *, choose: bool = True) -> Iterator["Trainer"]:
    """Everything of a run but the corpus and the evaluation, in a directory that goes afterwards."""
    import torch

    from marble_sweep.data.batches import Batches
    from marble_sweep.model import products
    from marble_sweep.run import build_model
    from marble_sweep.training.device import choose_device
    from marble_sweep.training.precision import POLICIES
    from marble_sweep.training.products import choose_products
    from marble_sweep.training.progress import Progress
    from marble_sweep.training.trainer import Trainer
    from marble_sweep.training.writer import RunWriter

    config = compose(setting, device, precision)
    policy = POLICIES[precision]
    place = choose_device(config.device, policy)
    model = build_model(config, VOCAB_SIZE).to(place, policy.param_dtype)
    batches = Batches(zipf_windows(setting).int().to(place), setting.batch_size, config.seed)
    dead_mask = torch.arange(VOCAB_SIZE, device=place) >= NUM_LIVE
    chosen = choose_products(config, place, VOCAB_SIZE) if choose else products.DEFAULT
    with tempfile.TemporaryDirectory() as folder, products.using(chosen):
        writer = RunWriter(Path(folder), dead_mask)
        yield Trainer(config, model, batches, dead_mask, writer, Progress(config.trainer.total_steps, show=False))
        writer.close()


def train_ours(setting: Setting, device: str, on_step: Callable[[], bool], contender: str) -> None:
    precision, _, how = contender.partition(" ")
    with made_trainer(setting, device, precision, choose=how != "unmeasured") as trainer:
        if how == "bare":
            leave_metrics_out(trainer)
        seen, stopped = 0, False

        def should_stop() -> bool:
            """Asked once or twice a step."""
            nonlocal seen, stopped
            if trainer.step > seen:
                seen, stopped = trainer.step, not on_step()
            return stopped

        trainer.train(should_stop)


def leave_metrics_out(trainer: "Trainer") -> None:
    """Nothing is measured any more; only the copy of the weights before an update is still made."""
    import torch

    from marble_sweep.metrics.step import MEASURED

    nothing = torch.zeros(len(MEASURED), device=trainer.optimizer.weights.device)
    for owner, name in ((trainer.optimizer, "updates_lost"), (trainer.metrics, "measure")):
        setattr(owner, name, lambda *_, **__: nothing)


def time_parts(setting: Setting, device: str, seconds: float) -> dict[str, float]:
    """Seconds of each part of a bf16 step, medians over its steps; on a GPU each part is waited for."""
    import torch

    from marble_sweep.model.loss import linear_cross_entropy
    from marble_sweep.training import trainer as module

    spent: dict[str, list[float]] = defaultdict(list)

    def time_calls(owner: object, function: Callable[..., Any], part: str) -> None:
        def timed(*args: Any, **kwargs: Any) -> Any:
            synchronize(device)
            started = time.perf_counter()
            result = function(*args, **kwargs)
            synchronize(device)
            spent[part].append(time.perf_counter() - started)
            return result

        setattr(owner, function.__name__, timed)

    with made_trainer(setting, device, "bf16") as trainer:
        time_calls(type(trainer.batches), type(trainer.batches).__next__, "batch")
        time_calls(trainer.model, trainer.model.forward, "forward")
        time_calls(module, linear_cross_entropy, "head, both ways")
        time_calls(torch.Tensor, torch.Tensor.backward, "backward")
        time_calls(trainer.optimizer, trainer.optimizer.step, "update")
        time_calls(trainer.optimizer, trainer.optimizer.updates_lost, "metrics: updates_lost")
        time_calls(trainer.metrics, trainer.metrics.measure, "metrics: the others")
        time_calls(trainer, trainer.take_step, "step")
        clock = Clock(device, seconds)
        going = True
        while going:
            trainer.take_step()
            going = clock()
    medians = {name: statistics.median(each[WARM_UP_STEPS:]) for name, each in spent.items()}
    whole = medians.pop("step")
    return medians | {"the rest": whole - sum(medians.values()), "step": whole}


def matmul_peak(device: str, dtype_name: str) -> float:
    """FLOP/s of the quickest of five large square products; of one where that takes seconds, as bfloat16 may."""
    import torch

    size = 2048 if device == "cpu" else 8192
    left, right = torch.randn(2, size, size, dtype=getattr(torch, dtype_name), device=device)
    best = float("inf")
    for _ in range(5):
        synchronize(device)
        started = time.perf_counter()
        left @ right
        synchronize(device)
        best = min(best, time.perf_counter() - started)
        if best > SLOW_PRODUCT:
            break
    return 2 * size**3 / best


def work(contender: str, setting: Setting, device: str, seconds: float, began: float) -> dict[str, Any]:
    """What the process of one contender found."""
    if contender not in PEERS:
        from marble_sweep.process import keep_freed_memory, shorten_openmp_spin  # as its command line does

        shorten_openmp_spin()
        keep_freed_memory()
    importing = time.perf_counter()
    import torch

    imported = time.perf_counter() - importing
    if contender == PARTS:
        return time_parts(setting, device, seconds)
    clock = Clock(device, seconds)
    if contender == "notebook":
        train_notebook(setting, device, clock)
    elif contender.startswith("gpt2"):
        train_gpt2(setting, device, clock, bf16=contender == "gpt2 bf16")
    elif contender in PEERS:
        train_plain(setting, device, clock, contender)
    else:
        train_ours(setting, device, clock, contender)
    if device == "cuda":
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    # bfloat16 may be multiplied in float32, which on some CPUs is quicker.
    dtypes = ["float32"] if contender in IN_FLOAT32 else ["float32", "bfloat16"]
    peak = max(matmul_peak(device, dtype) for dtype in dtypes)
    return {
        "seconds_per_step": clock.seconds_per_step,
        "steps": clock.step - WARM_UP_STEPS,
        "memory": memory,
        "first_step": clock.first - began,
        "import_torch": imported,
        "peak": peak,
    }


# ------------------------------------------------------------------------------ around the processes


def launch(contender: str, setting: str, device: str, seconds: float) -> dict[str, Any]:
    command = [sys.executable, __file__, "--settings", setting, "--device", device, "--seconds", str(seconds)]
    worker = ["--worker", contender, "--began", str(time.time())]
    done = subprocess.run([*command, *worker], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{contender} at {setting} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(setting: str, arguments: argparse.Namespace) -> dict[str, Any]:
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.contenders}
    for number in range(arguments.rounds):
        start = number % len(rounds)
        for name in [*arguments.contenders[start:], *arguments.contenders[:start]]:
            rounds[name].append(launch(name, setting, arguments.device, arguments.seconds))
            rate = 60 / rounds[name][-1]["seconds_per_step"]
            print(f"{setting}  round {number + 1}  {name:<16}{rate:10.1f} steps/min", file=sys.stderr)
    parts = launch(PARTS, setting, arguments.device, arguments.seconds)
    return {"rounds": rounds, "parts": parts}


def machine(device: str) -> str:
    import torch

    threads = f"{torch.get_num_threads()} CPU threads"
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return f"{device} ({name}), {threads}, torch {torch.__version__}, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        setting = Setting.parse(arguments.settings[0])
        found = work(arguments.worker, setting, arguments.device, arguments.seconds, arguments.began)
        print(json.dumps(found))
        return
    launch_bound = ["4L128D@8x128"] if arguments.device == "cuda" else []
    settings = arguments.settings or ["4L128D@128x128", "2L64D@16x128", "1L4D@16x128", *launch_bound]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    measured: dict[str, Any] = {}
    results = {"machine": machine(arguments.device), "settings": measured}
    print(f"{results['machine']}; {arguments.rounds} rounds\n")
    for setting in settings:
        measured[setting] = found = measure(setting, arguments)
        shape = Setting.parse(setting)
        tokens = shape.batch_size * shape.seq_len
        print(f"{table(setting, found, tokens=tokens, flops=shape.flops())}\n", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
