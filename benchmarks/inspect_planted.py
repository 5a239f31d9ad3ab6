"""What does the census of a large embedding take, and does it give back what was planted?

    python benchmarks/inspect_planted.py [--rows 150000] [--dim 2560] [--folder FOLDER]

Plants a bfloat16 embedding as that of Qwen 3 4B is described: 13 black holes of 2,100 rows in all and 39 singletons in
a box of 55 cells, all other rows far apart. Then `python -m marble_sweep.inspect` runs on it in a process of its own.
Printed: seconds of the clock and of the processor, the most memory the process had (VmHWM), and whether everything
planted was given back. The file stays in FOLDER, for the next time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

TENSOR = "model.embed_tokens.weight"
HOLE_SIZES = (814, 704, 306, 228, 11, 10, 6, 5, 5, 4, 3, 2, 2)
NUM_SINGLETONS = 39
BOX = 55  # cells
LIVE_STD = 0.03


class Planted(NamedTuple):
    """What a file holds."""

    holes: list[list[int]]  # the ids of each black hole, sorted
    singletons: list[int]
    offsets: NDArray[np.int64]  # (holes and singletons, D) cells from the corner of the box
    box: NDArray[np.int64]  # (D,) cells that the cluster spans


def plant(path: Path, num_rows: int, dim: int, hole_sizes: tuple[int, ...] = HOLE_SIZES, seed: int = 0) -> Planted:
    """Write such an embedding, and say what it holds."""
    rng = np.random.default_rng(seed)
    num_distinct = len(hole_sizes) + NUM_SINGLETONS
    # Mantissas from 20 to 106: no weight of the cluster crosses an exponent, so cells are differences of bits.
    corner = rng.integers(20, 52, dim) | rng.integers(115, 122, dim) << 7 | rng.integers(0, 2, dim) << 15
    spread = rng.permutation(np.geomspace(0.5, 12, num_distinct))[:, None]  # cells, of a row around the box's middle
    offsets = np.rint(BOX / 2 + spread * rng.standard_normal((num_distinct, dim))).clip(0, BOX).astype(np.int64)
    bits = np.empty((num_rows, dim), dtype=np.uint16)
    for start in range(0, num_rows, 10_000):
        live = rng.standard_normal((min(10_000, num_rows - start), dim), dtype=np.float32) * LIVE_STD
        bits[start : start + 10_000] = torch.from_numpy(live).bfloat16().view(torch.uint16).numpy()
    ids = rng.permutation(num_rows)[: sum(hole_sizes) + NUM_SINGLETONS]
    groups = np.split(ids, np.cumsum([*hole_sizes, *[1] * NUM_SINGLETONS])[:-1])
    for group, offset in zip(groups, offsets, strict=True):
        bits[group] = corner + offset
    save_file({TENSOR: torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)}, path)
    holes = [sorted(group.tolist()) for group in groups[: len(hole_sizes)]]
    singletons = sorted(int(group[0]) for group in groups[len(hole_sizes) :])
    return Planted(holes, singletons, offsets, np.ptp(offsets, axis=0))


def given_back(census: dict[str, object], planted: dict[str, object]) -> bool:
    """Whether the census has the black holes, the singletons and the box."""
    cluster, holes, singletons = census["cluster"], census["black_holes"], census["singletons"]
    assert isinstance(cluster, dict)
    assert isinstance(holes, list)
    assert isinstance(singletons, list)
    found = {
        "holes": sorted(hole["ids"] for hole in holes),
        "singletons": sorted(row["id"] for row in singletons),
        "box": cluster["box_cells"],
    }
    return found == planted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=150_000)
    parser.add_argument("--dim", type=int, default=2_560)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    path = arguments.folder / f"planted-{arguments.rows}x{arguments.dim}.safetensors"
    answer = path.with_suffix(".json")
    if not answer.exists():
        planted = plant(path, arguments.rows, arguments.dim)
        expected = {"holes": sorted(planted.holes), "singletons": planted.singletons, "box": float(planted.box.max())}
        answer.write_text(json.dumps(expected))
    report = path.with_suffix(".census.json")
    program = (
        "import sys; from marble_sweep.census.command import main; code = main(); "
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')), end=''); sys.exit(code)"
    )
    began, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-c", program, str(path), "--json", str(report)], check=True)
    seconds, after = time.perf_counter() - began, os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    print(f"{path.stat().st_size / 1e6:,.0f} MB: {seconds:.1f} s of the clock, {processor:.1f} s of the processor")
    same = given_back(json.loads(report.read_text()), json.loads(answer.read_text()))
    print("everything planted was given back" if same else "NOT everything planted was given back")


if __name__ == "__main__":
    main()
