"""What a recorder costs: the time of a step, and disk against the bits themselves.

    python benchmarks/recorder.py step [--rounds 20] [--steps 32] [override ...]
    python benchmarks/recorder.py disk [--steps 2000] [--precisions bf16 mixed fp32] [override ...]

`step` trains the same run without a recorder, with `dead` and with `full`, in turns. A turn is some steps and the
wait until their record is written, so that no cost falls into another's turn. `disk` trains with `full` and says how
many times less disk W takes than its bits, over the run, its first 100 steps, and its last fifth.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from marble_sweep.hydra_app.compose import compose_config
from marble_sweep.process import keep_freed_memory, shorten_openmp_spin
from marble_sweep.record.reader import Record
from marble_sweep.run import claimed, prepare
from marble_sweep.training.trainer import Trainer

MODEL = ("model=4L128D", "trainer.batch_size=16", "trainer.num_evals=1", "trainer.state_interval=1e9")
RECORDERS = ("none", "dead", "full")
FIRST_STEPS = 100


def cpu() -> str:
    """The name of this CPU, and the threads that torch uses."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def trainer_of(folder: Path, stack: contextlib.ExitStack, overrides: Sequence[str]) -> Trainer:
    """A trainer at step 0, whose run directory is `folder`; products are chosen once for all beside it."""
    config = compose_config(overrides)
    stack.enter_context(claimed(folder, config, resume=False))
    shared = folder.parent / "products"
    shared.mkdir(exist_ok=True)
    return prepare(config, folder, stack, resume=False, show=False, shared=shared)[0]


def turn_seconds(trainer: Trainer, num_steps: int) -> float:
    """Seconds a step, the writing of the record included."""
    started = time.perf_counter()
    for _ in range(num_steps):
        trainer.take_step()
    if trainer.recorder is not None:
        trainer.recorder.background.wait()
    seconds = time.perf_counter() - started
    trainer.flush()
    return seconds / num_steps


def measure_steps(overrides: Sequence[str], rounds: int, num_steps: int) -> None:
    total = f"trainer.total_steps={(rounds + 1) * num_steps}"
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        trainers = {
            name: trainer_of(Path(folder, name), stack, [*MODEL, total, f"recorder={name}", *overrides])
            for name in RECORDERS
        }
        seconds: dict[str, list[float]] = {name: [] for name in RECORDERS}
        for trainer in trainers.values():
            trainer.start()
            turn_seconds(trainer, num_steps)  # warm
        for number in range(rounds):
            order = [*trainers][number % 3 :] + [*trainers][: number % 3]
            for name in order:
                seconds[name].append(turn_seconds(trainers[name], num_steps))
        for trainer in trainers.values():
            if trainer.recorder is not None:
                trainer.recorder.close()
    plain = statistics.median(seconds["none"])
    for name in RECORDERS:
        median = statistics.median(seconds[name])
        print(
            f"{name:<5} {1000 * median:7.2f} ms a step, {median / plain:.3f} of the time without "
            f"(turns from {1000 * min(seconds[name]):.2f} to {1000 * max(seconds[name]):.2f} ms)"
        )


def chunk_bytes(run_dir: Path) -> list[int]:
    """The bytes of the chunks of W, by time."""
    chunks = sorted((Record.open(run_dir).path / "W" / "c").iterdir(), key=lambda path: int(path.name))
    return [sum(path.stat().st_size for path in chunk.rglob("*") if path.is_file()) for chunk in chunks]


def measure_disk(overrides: Sequence[str], precisions: Sequence[str], num_steps: int) -> None:
    for precision in precisions:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            given = [f"trainer.total_steps={num_steps}", "recorder=full", f"precision={precision}", *overrides]
            trainer = trainer_of(Path(folder, "run"), stack, [*MODEL, *given])
            trainer.train(lambda: False)
            record, sizes = Record.open(Path(folder, "run")), chunk_bytes(Path(folder, "run"))
            shape = record.group["W"].chunks
            row = len(record.token_ids) * shape[2] * record.bits_dtype.itemsize
            raw = [
                row * (min(record.num_rows, first + shape[0]) - first) for first in range(0, record.num_rows, shape[0])
            ]
            first, fifth = -(-FIRST_STEPS // shape[0]), max(1, len(sizes) // 5)
            whole = sum(path.stat().st_size for path in record.path.rglob("*") if path.is_file())
            early, late = sum(raw[:first]) / sum(sizes[:first]), sum(raw[-fifth:]) / sum(sizes[-fifth:])
            print(
                f"{precision:<15} {record.last_step:,} steps: {sum(raw) / 1e6:,.1f} MB of bits, {whole / 1e6:,.1f} MB "
                f"of record; W {sum(raw) / sum(sizes):.2f} times less, its first {first * shape[0]} steps {early:.2f}, "
                f"its last fifth {late:.2f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    step, disk = actions.add_parser("step"), actions.add_parser("disk")
    step.add_argument("--rounds", type=int, default=20)
    step.add_argument("--steps", type=int, default=32, help="of a turn")
    disk.add_argument("--steps", type=int, default=2000)
    disk.add_argument("--precisions", nargs="+", default=["bf16", "mixed", "fp32"])
    for action in (step, disk):
        action.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    keep_freed_memory()
    shorten_openmp_spin()
    print(cpu())
    if arguments.action == "step":
        measure_steps(arguments.overrides, arguments.rounds, arguments.steps)
    else:
        measure_disk(arguments.overrides, arguments.precisions, arguments.steps)


if __name__ == "__main__":
    main()
