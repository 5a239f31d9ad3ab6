"""What a recorder costs: the time of a step, and disk against the bits themselves.

    python benchmarks/recorder.py step [--rounds 15] [--steps 16] [override ...]
    python benchmarks/recorder.py disk [--steps 2000] [--precisions bf16 mixed fp32] [override ...]

`step` trains the same run without a recorder, with `dead` and with `full`, in turns: by default 768 steps in all, less
than three minutes where a step takes 0.2 s. A turn is some steps and the wait until their record is written, so that no
cost falls into another's turn. With `full` a chunk of W, 16 steps here, is compressed in each. A round is a turn of
each, and a line. `disk` trains with `full` and says how many times less disk W takes than its bits, over the run, its
first 100 steps, and its last fifth.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from marble_sweep.process import keep_freed_memory, shorten_openmp_spin

shorten_openmp_spin()  # before torch is loaded, as the command line does

import torch  # noqa: E402

from marble_sweep.hydra_app.compose import compose_config  # noqa: E402
from marble_sweep.record.reader import Record  # noqa: E402
from marble_sweep.run import claimed, prepare  # noqa: E402
from marble_sweep.training.trainer import Trainer  # noqa: E402

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
        for trainer in trainers.values():
            trainer.start()
        seconds: dict[str, list[float]] = {name: [] for name in RECORDERS}
        for number in range(rounds + 1):  # the first one warms up
            order = [*RECORDERS][number % 3 :] + [*RECORDERS][: number % 3]
            turns = {name: turn_seconds(trainers[name], num_steps) for name in order}
            label = f"round {number:>2} of {rounds}" if number else "warm-up"
            times = ", ".join(f"{name} {1000 * turns[name]:.2f}" for name in RECORDERS)
            print(f"{label:<14} ms a step: {times}", flush=True)
            for name in RECORDERS if number else ():
                seconds[name].append(turns[name])
        for trainer in trainers.values():
            if trainer.recorder is not None:
                trainer.recorder.close()
    for name in RECORDERS:
        ratios = [own / plain for own, plain in zip(seconds[name], seconds["none"], strict=True)]
        print(
            f"{name:<5} {1000 * statistics.median(seconds[name]):7.2f} ms a step (median of {rounds} rounds), "
            f"{statistics.median(ratios):.3f} of the time without in the same round (from {min(ratios):.3f} to "
            f"{max(ratios):.3f})"
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
            first_rows = min(first * shape[0], record.num_rows)
            whole = sum(path.stat().st_size for path in record.path.rglob("*") if path.is_file())
            early, late = sum(raw[:first]) / sum(sizes[:first]), sum(raw[-fifth:]) / sum(sizes[-fifth:])
            print(
                f"{precision:<15} {record.last_step:,} steps: {sum(raw) / 1e6:,.1f} MB of bits, {whole / 1e6:,.1f} MB "
                f"of record; W {sum(raw) / sum(sizes):.2f} times less, its first {first_rows} rows {early:.2f}, "
                f"its last fifth {late:.2f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    step, disk = actions.add_parser("step"), actions.add_parser("disk")
    step.add_argument("--rounds", type=int, default=15)
    step.add_argument("--steps", type=int, default=16, help="of a turn")
    disk.add_argument("--steps", type=int, default=2000)
    disk.add_argument("--precisions", nargs="+", default=["bf16", "mixed", "fp32"])
    for action in (step, disk):
        action.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    keep_freed_memory()
    print(cpu(), flush=True)
    if arguments.action == "step":
        measure_steps(arguments.overrides, arguments.rounds, arguments.steps)
    else:
        measure_disk(arguments.overrides, arguments.precisions, arguments.steps)


if __name__ == "__main__":
    main()
