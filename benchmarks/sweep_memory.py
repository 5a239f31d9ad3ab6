"""Does a sweep give memory back? Peak of a 20-job sweep against that of its largest job alone (Linux).

    python benchmarks/sweep_memory.py [--jobs 20] [override ...]

Memory is the proportional set size of all processes of the sweep together, read every 50 ms.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

POLL_SECONDS = 0.05


def tree(root: int) -> list[int]:
    """The process and all its descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found = [root]
    for each in found:
        found += children.get(each, [])
    return found


def proportional_set_size(pid: int) -> int:
    """Bytes; shared pages are counted in equal parts to their users. 0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def peak(overrides: list[str]) -> tuple[int, float]:
    """Peak bytes of a sweep, and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "marble_sweep", "--multirun", *overrides, f"hydra.sweep.dir={folder}/sweep"]
        started, highest = time.monotonic(), 0
        process = subprocess.Popen(command)
        while process.poll() is None:
            highest = max(highest, sum(map(proportional_set_size, tree(process.pid))))
            time.sleep(POLL_SECONDS)
        if process.returncode:
            raise SystemExit(f"the sweep failed with exit code {process.returncode}")
        return highest, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("overrides", nargs="*", default=["experiment=quick", "trainer.total_steps=30"])
    arguments = parser.parse_args()
    sizes = [1, 2, 3, 4]  # layers; the jobs go through them again and again, so the largest is not the last
    seeds = -(-arguments.jobs // len(sizes))
    largest, _ = peak([*arguments.overrides, f"model.num_layers={sizes[-1]}"])
    grid = [f"seed={','.join(map(str, range(seeds)))}", f"model.num_layers={','.join(map(str, sizes))}"]
    everything, seconds = peak([*arguments.overrides, *grid])
    print(f"largest job alone   {largest / 2**20:8.0f} MiB")
    print(f"{seeds * len(sizes)} jobs             {everything / 2**20:8.0f} MiB, {everything / largest:.3f} times")
    print(f"seconds a job       {seconds / (seeds * len(sizes)):8.1f}")


if __name__ == "__main__":
    main()
