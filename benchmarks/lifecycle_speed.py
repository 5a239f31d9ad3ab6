"""What does the analysis of a long record take?

    python benchmarks/lifecycle_speed.py [--kind dead] [--steps 5000] [--tokens 4000] [--dim 64] [--folder FOLDER]

Plants a record whose tokens slow down and freeze: of kind `dead` the norms alone, of kind `full` the weights, half of
the tokens dead. Then it is analysed in a process of its own. Printed: the size of what was recorded (raw) and of the
record, seconds of the clock and of the processor for the analysis alone, and the most memory the process had (VmHWM).
The record stays in FOLDER, for the next time.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from marble_sweep.record.store import Contents, RecordStore
from marble_sweep.runs import layout

WIDTH = 0.02  # standard deviation of the first weights
FIRST_CELLS = 8.0  # how far a weight moves in the first steps, as a standard deviation
FREEZE_AT = 0.5  # of the record, for the token in the middle
PROGRAM = """
import sys, time
from pathlib import Path
from marble_sweep.lifecycle.of_run import analyse_run, open_record
from marble_sweep.lifecycle.show import text
directory = Path(sys.argv[1])
began, before = time.perf_counter(), time.process_time()
life = analyse_run(directory, open_record(directory))
seconds, processor = time.perf_counter() - began, time.process_time() - before
print(text(life))
print(f"{seconds:.2f} s of the clock for the analysis, {processor:.2f} s of the processor")
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")), end="")
"""


def motion(num_steps: int, num_tokens: int, dim: int, seed: int = 0) -> Iterator[NDArray[np.uint16]]:
    """The bits (num_tokens, dim) of every step from 0 on. Weights are positive, so a lattice point is one of bits."""
    rng = np.random.default_rng(seed)
    bits = (np.abs(rng.normal(0, WIDTH, (num_tokens, dim))).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    freeze_at = num_steps * rng.gamma(8, FREEZE_AT / 8, num_tokens)
    yield bits
    for step in range(1, num_steps + 1):
        rows = np.flatnonzero(freeze_at > step)
        scale = FIRST_CELLS * np.exp(-4 * step / freeze_at[rows])[:, None]
        hops = np.rint(scale * rng.standard_normal((len(rows), dim), dtype=np.float32)).astype(np.int64)
        bits[rows] = np.clip(bits[rows] + hops, 0x3000, 0x4000)
        yield bits


def norms_of(rng: np.random.Generator, step: int, num_steps: int, num_tokens: int) -> NDArray[np.float32]:
    """(num_tokens, 4) norms that fall, and are 0 for more and more tokens."""
    norms = rng.exponential(100 * np.exp(-8 * step / num_steps), (num_tokens, 4)).astype(np.float32)
    norms[rng.random(num_tokens) < (step / num_steps) ** 2] = 0
    norms[step > num_steps * np.linspace(0.1, 0.8, num_tokens)] = 0
    return norms


def plant(directory: Path, kind: str, num_steps: int, num_tokens: int, dim: int) -> int:
    """Write the record; returns the bytes of what was recorded, without compression."""
    is_dead = np.ones(num_tokens, dtype=np.bool_)
    if kind == "full":
        is_dead[num_tokens // 2 :] = False
    store = RecordStore(directory / layout.RECORD, Contents(kind, np.arange(num_tokens), is_dead, dim, "bfloat16"))
    rng = np.random.default_rng(1)
    h_mean = rng.standard_normal(dim, dtype=np.float32)
    if kind == "full":
        for step, bits in enumerate(motion(num_steps, num_tokens, dim)):
            store.append(step, weights=bits, values={"h_mean": h_mean} if step else None)
    else:
        for step in range(num_steps + 1):
            values = {"h_mean": h_mean, "norms": norms_of(rng, step, num_steps, num_tokens)}
            store.append(step, values=values if step else None)
    store.commit()
    return num_steps * num_tokens * (2 * dim if kind == "full" else 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("dead", "full"), default="dead")
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--tokens", type=int, default=4_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    shape = arguments.steps, arguments.tokens, arguments.dim
    directory = arguments.folder / "-".join(map(str, ("planted", arguments.kind, *shape)))
    if not directory.exists():
        directory.mkdir(parents=True)
        began = time.perf_counter()
        raw = plant(directory, arguments.kind, *shape)
        print(f"planted {raw / 1e9:.2f} GB in {time.perf_counter() - began:.0f} s")
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    print(f"{size / 1e9:.2f} GB on the disk")
    subprocess.run([sys.executable, "-c", PROGRAM, str(directory)], check=True)


if __name__ == "__main__":
    main()
