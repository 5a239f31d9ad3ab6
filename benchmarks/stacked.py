"""Would it pay to train several models of one shape as one batched model?

    python benchmarks/stacked.py [--settings 1L4D@16x128 ...] [--rounds 5] [--seconds 6] [--device cpu] [--stack 8]

Contenders, by turns, each in new processes, without metrics:

- one by one: marble_sweep's own step with all threads, as a sweep does with one worker
- side by side: as many processes as there are cores, a model and a thread each (on a GPU: two processes)
- stacked: a prototype; `--stack` models whose weights lie in one tensor (K, ...), each with its own seed and windows.
  Every operator of the layers and of the update is called once for all of them. On a CPU the head is called model
  by model, as it keeps all threads busy by itself; on a GPU its logits are one batched product.
- stacks side by side: both; a stack and a thread in each process

Figures are steps of one model in a minute, added over models; medians over rounds, ratios the medians of the rounds'
ratios to `side by side`. Before it is timed the prototype must have the losses of models trained alone, within
rounding.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from step import VOCAB_SIZE, Setting, compose, leave_metrics_out, machine, made_trainer, synchronize, zipf_windows
from torch import Tensor, nn

from marble_sweep.model import products
from marble_sweep.model.loss import linear_cross_entropy
from marble_sweep.model.transformer import Transformer, causal_attention
from marble_sweep.process import keep_freed_memory, shorten_openmp_spin
from marble_sweep.training.device import choose_device
from marble_sweep.training.optimizer import FlatOptimizer
from marble_sweep.training.precision import POLICIES
from marble_sweep.training.products import choose_products

STACKS_SIDE_BY_SIDE = "stacks side by side"
CONTENDERS = ("one by one", "side by side", "stacked", STACKS_SIDE_BY_SIDE)
WARM_UP_STEPS, CHECKED_STEPS = 3, 10
TOLERANCE = 2e-3  # nats; in bfloat16 a batched product may round a logit, near 0 here, elsewhere than a single one


class StackedTransformer(nn.Module):
    """K models of marble_sweep's shape; tokens (K, B, T) -> hidden states (K, B, T, D)."""

    def __init__(self, models: list[Transformer], num_heads: int) -> None:
        super().__init__()
        self.num_blocks = len(models[0].blocks)
        self.num_heads = num_heads
        each = [dict(model.named_parameters()) for model in models]
        for name in each[0]:
            stack = torch.stack([parameters[name].detach() for parameters in each])
            self.register_parameter(name.replace(".", "_"), nn.Parameter(stack))

    def weight(self, name: str) -> Tensor:
        return self.get_parameter(name)

    def norm(self, x: Tensor, name: str) -> Tensor:
        scale, bias = self.weight(f"{name}_weight"), self.weight(f"{name}_bias")
        return F.layer_norm(x, x.shape[-1:]) * scale[:, None, None] + bias[:, None, None]

    def linear(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weight(f"{name}_weight"), self.weight(f"{name}_bias")
        outputs = torch.baddbmm(bias[:, None], x.flatten(1, 2), weight.transpose(1, 2))
        return outputs.unflatten(1, x.shape[1:3])

    def attention(self, x: Tensor, block: str) -> Tensor:
        (num_models, batch_size, num_tokens, width), heads = x.shape, self.num_heads
        qkv = self.linear(self.norm(x, f"{block}_attention_norm"), f"{block}_qkv")
        qkv = qkv.view(num_models * batch_size, num_tokens, 3, heads, -1).permute(2, 0, 3, 1, 4).contiguous()
        attended = causal_attention(*qkv.unbind(0)).transpose(1, 2).reshape((*x.shape[:3], width))
        return self.linear(attended, f"{block}_projection")

    def forward(self, tokens: Tensor) -> Tensor:
        embedding, positions = self.weight("embedding_weight"), self.weight("positions_weight")
        num_models, vocab_size = embedding.shape[:2]
        rows = tokens + vocab_size * torch.arange(num_models, device=tokens.device)[:, None, None]
        hidden = F.embedding(rows, embedding.flatten(0, 1)) + positions[:, None, : tokens.shape[2]]
        for number in range(self.num_blocks):
            block = f"blocks_{number}"
            hidden = hidden + self.attention(hidden, block)
            inner = self.linear(self.norm(hidden, f"{block}_mlp_norm"), f"{block}_mlp_up")
            hidden = hidden + self.linear(F.gelu(inner), f"{block}_mlp_down")
        return self.norm(hidden, "final_norm")


def head_losses(hidden: Tensor, embedding: Tensor, tokens: Tensor) -> Tensor:
    """Each model's mean loss in nats, (K,)."""
    contexts, targets = hidden[:, :, :-1].flatten(1, 2), tokens[:, :, 1:].flatten(1)
    if hidden.device.type == "cpu":
        operands = zip(contexts.unbind(), embedding.unbind(), targets.unbind(), strict=True)
        return torch.stack([linear_cross_entropy(*models_operands) for models_operands in operands])
    logits = torch.bmm(contexts, embedding.transpose(1, 2)).float()
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape).mean(1)


def stacked_step(setting: Setting, device: str, num_models: int) -> Callable[[], Tensor]:
    """A function that takes one step of all models and returns their losses (K,)."""
    config = compose(setting, device)
    policy, place = POLICIES["bf16"], choose_device(config.device, POLICIES["bf16"])
    models = [make_model(setting, seed).to(policy.param_dtype) for seed in range(num_models)]
    stack = StackedTransformer(models, setting.heads()).to(place)
    optimizer = FlatOptimizer(stack, config.optimizer, policy, 0)
    windows = zipf_windows(setting).to(place)
    num_batches, step = len(windows) // setting.batch_size, 0

    def take_step() -> Tensor:
        nonlocal step
        batches = [batch_of(windows, setting, (step + seed) % num_batches) for seed in range(num_models)]
        tokens, step = torch.stack(batches), step + 1
        losses = head_losses(stack(tokens), stack.weight("embedding_weight"), tokens)
        stack.zero_grad(set_to_none=True)
        losses.sum().backward()
        optimizer.step(config.optimizer.lr)
        return losses.detach()

    return take_step


def make_model(setting: Setting, seed: int) -> Transformer:
    width = setting.hidden_dim
    return Transformer(VOCAB_SIZE, setting.seq_len, setting.num_layers, width, setting.heads(), 4 * width, seed)


def batch_of(windows: Tensor, setting: Setting, number: int) -> Tensor:
    return windows[number * setting.batch_size : (number + 1) * setting.batch_size]


def require_equal_losses(setting: Setting, device: str, num_models: int) -> None:
    """Raise SystemExit where a stack's losses are not those of models trained alone."""
    together = stacked_step(setting, device, num_models)
    losses = torch.stack([together() for _ in range(CHECKED_STEPS)])[:, 0]  # of the model with seed 0
    alone = stacked_step(setting, device, 1)
    expected = torch.stack([alone() for _ in range(CHECKED_STEPS)])[:, 0]
    difference = (losses - expected).abs().max().item()
    if not difference <= TOLERANCE:
        raise SystemExit(f"{setting}: the stack's losses differ by {difference} nats from those of a model alone")


def steps_per_minute(contender: str, setting: Setting, device: str, seconds: float, num_models: int) -> float:
    """Steps of one model, in this process."""
    config = compose(setting, device)
    if contender in ("stacked", STACKS_SIDE_BY_SIDE):
        with products.using(choose_products(config, choose_device(config.device, POLICIES["bf16"]), VOCAB_SIZE)):
            require_equal_losses(setting, device, num_models)
            return num_models * rate(stacked_step(setting, device, num_models), device, seconds)
    with made_trainer(setting, device, "bf16") as trainer:
        leave_metrics_out(trainer)
        trainer.pending.device = _Discard()  # rows are fetched by the loop that this one leaves out
        trainer.pending.host = _Discard()
        return rate(trainer.take_step, device, seconds)


class _Discard(list):  # type: ignore[type-arg]
    def append(self, _item: object) -> None:
        pass


def rate(take_step: Callable[[], object], device: str, seconds: float) -> float:
    for _ in range(WARM_UP_STEPS):
        take_step()
    synchronize(device)
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        take_step()
        steps += 1
        synchronize(device)
    return 60 * steps / (time.perf_counter() - started)


def launch(contender: str, setting: str, arguments: argparse.Namespace) -> float:
    """Steps of one model in a minute, added over the processes of a contender."""
    num_processes = 1
    if contender in ("side by side", STACKS_SIDE_BY_SIDE):
        num_processes = (os.cpu_count() or 1) if arguments.device == "cpu" else 2
    command = [sys.executable, __file__, "--settings", setting, "--device", arguments.device, "--worker", contender]
    command += ["--seconds", str(arguments.seconds), "--stack", str(arguments.stack)]
    threads = [] if num_processes == 1 else ["--threads", "1"]
    started = [subprocess.Popen([*command, *threads], stdout=subprocess.PIPE, text=True) for _ in range(num_processes)]
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"{contender} at {setting} failed")
    return sum(float(json.loads(output.splitlines()[-1])) for output in outputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=["1L4D@16x128", "2L64D@16x128"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--stack", type=int, default=8)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.worker:
        keep_freed_memory()
        setting = Setting.parse(arguments.settings[0])
        print(steps_per_minute(arguments.worker, setting, arguments.device, arguments.seconds, arguments.stack))
        return
    shorten_openmp_spin()  # in the processes to come, as the command line does
    print(f"{machine(arguments.device)}; {arguments.rounds} rounds, {arguments.stack} models in a stack\n")
    for setting in arguments.settings:
        rounds = []
        for number in range(arguments.rounds):
            turns = [CONTENDERS[(number + i) % len(CONTENDERS)] for i in range(len(CONTENDERS))]
            rounds.append({contender: launch(contender, setting, arguments) for contender in turns})
            print(f"{setting}  round {number + 1}  {rounds[-1]}", file=sys.stderr)
        print(f"### {setting}\n\n| contender | steps of one model a minute | times side by side |\n|---|---:|---:|")
        for contender in CONTENDERS:
            steps = statistics.median(each[contender] for each in rounds)
            times = statistics.median(each[contender] / each["side by side"] for each in rounds)
            print(f"| {contender} | {steps:,.0f} | {times:.2f} |")
        print(flush=True)


if __name__ == "__main__":
    main()
