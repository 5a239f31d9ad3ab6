"""How long until a run takes its first step, beyond what importing torch takes?

    python benchmarks/startup.py [--rounds 5] [override ...]

A run of one step, from the command to the moment its row is in metrics.csv, beside a process that only imports torch;
both by turns, medians over rounds. One run before them fills the caches. Seconds include the step itself.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

POLL_SECONDS = 0.002


def seconds_to_first_step(overrides: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder, "run")
        settings = ["trainer.total_steps=1", f"hydra.run.dir={directory}"]
        command = [sys.executable, "-m", "marble_sweep", *overrides, *settings]
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        found = None
        while process.poll() is None:
            if found is None and has_a_row(directory / "metrics.csv"):
                found = time.perf_counter() - began
            time.sleep(POLL_SECONDS)
        if process.returncode or found is None:
            raise SystemExit(f"{' '.join(command)} took no step (exit code {process.returncode})")
        return found


def has_a_row(path: Path) -> bool:
    return path.exists() and path.read_bytes().count(b"\n") > 1


def seconds_to_import_torch() -> float:
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-c", "import torch, time; print(time.time())"], capture_output=True, text=True, check=True
    )
    return float(done.stdout) - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*", default=["experiment=quick"])
    arguments = parser.parse_args()
    seconds_to_first_step(arguments.overrides)
    rounds = [(seconds_to_import_torch(), seconds_to_first_step(arguments.overrides)) for _ in range(arguments.rounds)]
    imports, first_steps = (statistics.median(each) for each in zip(*rounds, strict=True))
    beyond = statistics.median(first - imported for imported, first in rounds)
    print(
        f"{' '.join(arguments.overrides)}: first step after {first_steps:.2f} s, {beyond:.2f} s beyond importing torch"
    )
    print(f"importing torch: {imports:.2f} s")


if __name__ == "__main__":
    main()
