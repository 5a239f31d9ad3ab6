"""How long does `compare` take for a thousand runs?

    python benchmarks/compare.py RUN [--runs 1000] [--damaged 100] [--rounds 3]

RUN is a run directory, best of a run of 5,000 steps; its copies differ in their seed. The damaged ones have a row of
metrics.csv that cannot be read, in the middle. Seconds are of whole processes, the best of all rounds.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def copy_runs(source: Path, folder: Path, runs: int, damaged: int) -> None:
    """Copies of a run, each with a seed of its own; metrics.csv is a hard link where it is not damaged."""
    config = (source / "config.yaml").read_text()
    rows = (source / "metrics.csv").read_bytes()
    middle = rows.index(b"\n", len(rows) // 2)
    for job in range(runs):
        run = folder / str(job)
        run.mkdir()
        (run / "config.yaml").write_text(re.sub(r"(?m)^seed: .*$", f"seed: {job}", config))
        for name in ("metadata.json", "evals.csv"):
            shutil.copy(source / name, run / name)
        if job < damaged:
            (run / "metrics.csv").write_bytes(rows[:middle] + b"\0" + rows[middle:])
        elif job == damaged:
            (run / "metrics.csv").write_bytes(rows)
        else:
            (run / "metrics.csv").hardlink_to(folder / str(damaged) / "metrics.csv")


def seconds_to_compare(folder: Path) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "marble_sweep.compare", str(folder)], check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--damaged", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for damaged in sorted({0, min(arguments.damaged, arguments.runs)}):
        with tempfile.TemporaryDirectory() as folder:
            copy_runs(arguments.run, Path(folder), arguments.runs, damaged)
            best = min(seconds_to_compare(Path(folder)) for _ in range(arguments.rounds))
        print(f"{arguments.runs:,} runs, {damaged:,} of them damaged: {best:.2f} s")


if __name__ == "__main__":
    main()
