"""Which is quicker in total: one run with all CPU threads, or several at the same time with a share of them each?

    python benchmarks/side_by_side.py [--settings 1L4D@16x128 ...] [--rounds 5] [--seconds 8] [--json FILE]

Every run is a process of its own, with the products that it would choose and all its metrics. The runs of a contender
warm up, wait for each other, and then train for `--seconds`; contenders take turns, and the next round begins with
another one. Figures are the steps per minute of all runs together, medians over rounds; a ratio is the median of the
rounds' ratios to one run with all threads. `sweep.workers=auto` rests on this.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from step import Setting, made_trainer

from marble_sweep.process import keep_freed_memory, shorten_openmp_spin
from marble_sweep.sweeps.workers import usable_cores

SETTINGS = ("1L4D@16x128", "2L64D@16x128", "4L128D@128x128")
WARM_UP_STEPS = 3


def work(setting: Setting, precision: str, num_threads: int, seconds: float) -> None:
    """One run: warm up, say so, wait for the word to begin, train, and print the steps per minute."""
    shorten_openmp_spin()  # as the command line does
    keep_freed_memory()
    import torch

    torch.set_num_threads(num_threads)
    with made_trainer(setting, "cpu", precision) as trainer:
        for _ in range(WARM_UP_STEPS):
            trainer.take_step()
        print("ready", flush=True)
        sys.stdin.readline()
        steps, started = 0, time.perf_counter()
        while steps == 0 or time.perf_counter() - started < seconds:
            trainer.take_step()
            steps += 1
            trainer.pending.fetch(setting.batch_size * setting.seq_len)
        print(60 * steps / (time.perf_counter() - started), flush=True)


def measure(setting: str, workers: int, arguments: argparse.Namespace) -> float:
    """Steps per minute of so many runs together."""
    threads = max(1, usable_cores() // workers)
    command = [sys.executable, __file__, "--worker", str(threads), "--settings", setting]
    command += ["--seconds", str(arguments.seconds), "--precision", arguments.precision]
    runs = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(workers)]
    total = 0.0
    try:
        for run in runs:
            assert run.stdout is not None
            if run.stdout.readline() != "ready\n":
                raise SystemExit(f"a run at {setting} failed")
        for run in runs:
            assert run.stdin is not None
            run.stdin.write("go\n")
            run.stdin.flush()
        for run in runs:
            total += float(run.communicate()[0])
    finally:
        for run in runs:
            run.kill()
            run.wait()
    return total


def counts(cores: int) -> list[int]:
    """The numbers of runs to compare: 1, 2, 4 … and as many as there are cores."""
    powers = [2**exponent for exponent in range(cores.bit_length()) if 2**exponent <= cores]
    return sorted({*powers, cores})


def table(rounds: dict[str, dict[int, list[float]]]) -> str:
    """Markdown: a line for every setting and number of runs."""
    lines = [
        "| setting | runs at once | CPU threads each | steps/min in total | times one run |",
        "|---|---:|---:|---:|---:|",
    ]
    for setting, by_workers in rounds.items():
        alone = by_workers[1]
        for workers, rates in by_workers.items():
            ratio = statistics.median(rate / single for rate, single in zip(rates, alone, strict=True))
            threads = max(1, usable_cores() // workers)
            lines.append(f"| {setting} | {workers} | {threads} | {statistics.median(rates):,.1f} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=SETTINGS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)  # its CPU threads
    arguments = parser.parse_args()
    if arguments.worker:
        work(Setting.parse(arguments.settings[0]), arguments.precision, arguments.worker, arguments.seconds)
        return
    numbers = counts(usable_cores())
    rounds: dict[str, dict[int, list[float]]] = {
        setting: {number: [] for number in numbers} for setting in arguments.settings
    }
    for number in range(arguments.rounds):
        for setting in arguments.settings:
            start = number % len(numbers)
            for workers in [*numbers[start:], *numbers[:start]]:
                rate = measure(setting, workers, arguments)
                rounds[setting][workers].append(rate)
                print(f"round {number + 1}  {setting}  {workers} at once  {rate:10.1f} steps/min", file=sys.stderr)
    results: dict[str, Any] = {"cores": usable_cores(), "processor": platform.processor(), "rounds": rounds}
    print(table(rounds))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
