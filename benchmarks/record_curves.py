"""Record real learning curves around the boundary, for search_replay.py to replay search strategies on.

    python benchmarks/record_curves.py [--workers 2] [--file benchmarks/curves.csv.gz]

Each (layers, width, lr, seed) is one ordinary run of the search's budget (400 steps of 16 x 128 tokens of the default
corpus), never stopped early and evaluated at every look. Curves already in the file are not run again, so an
interrupted recording goes on. `seconds` are those spent inside training steps, with `--workers` runs at a time.
"""

import argparse
import csv
import gzip
import io
import itertools
import logging
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from marble_sweep.runs.files import atomic_write

KEYS = ("num_layers", "hidden_dim", "lr", "seed")
VALUES = ("step", "val_loss", "unigram_margin", "unigram_margin_se", "context_gain", "seconds")
BUDGET = (
    *("trainer.total_steps=400", "trainer.batch_size=16", "trainer.eval_windows=256"),
    *("trainer.num_evals=9", "trainer.eval_spacing=geometric"),
)
LAYERS, SOME_LAYERS = (0, 1, 2, 3, 4), (0, 2, 4)
NARROW, WIDE = (2, 3, 4), (6, 16, 64)  # the boundary is among the narrow ones
RATES, FAR_RATES = (0.01, 0.0316, 0.1, 0.316), (0.001, 1.0)
SEEDS = (1, 2, 3, 4)
Curve = tuple[int, int, float, int]
Key = TypeVar("Key", bound=tuple[object, ...])  # what a curve is of
Record = Callable[[Key], list[dict[str, str]]]


def grid() -> list[Curve]:
    """Seed by seed, the boundary first, so that what an interrupted recording has is of use."""
    near = [list(itertools.product(LAYERS, NARROW, RATES, [seed])) for seed in SEEDS]
    far = [
        *itertools.product(SOME_LAYERS, NARROW, FAR_RATES, SEEDS[:1]),
        *itertools.product(SOME_LAYERS, WIDE, (*RATES, *FAR_RATES), SEEDS[:1]),
    ]
    return [*near[0], *far, *itertools.chain.from_iterable(near[1:])]


def record(curve: Curve) -> list[dict[str, str]]:
    """The rows of one curve, a look each."""
    import torch

    from marble_sweep.hydra_app.compose import compose_config
    from marble_sweep.run import run

    logging.disable()
    torch.set_num_threads(1)
    num_layers, hidden_dim, lr, seed = curve
    settings = [
        f"model.num_layers={num_layers}",
        f"model.hidden_dim={hidden_dim}",
        f"optimizer.lr={lr}",
        f"seed={seed}",
    ]
    config = compose_config([*BUDGET, *settings])
    with tempfile.TemporaryDirectory() as folder:
        run(config, Path(folder, "run"), show=False)
        with Path(folder, "run", "metrics.csv").open(newline="") as file:
            tokens = config.trainer.batch_size * config.trainer.seq_len
            seconds = list(
                itertools.accumulate(tokens / float(row["tokens_per_second"]) for row in csv.DictReader(file))
            )
        with Path(folder, "run", "evals.csv").open(newline="") as file:
            evals = list(csv.DictReader(file))
    key = dict(zip(KEYS, map(str, curve), strict=True))
    return [
        key
        | {name: f"{float(row[name] or 'nan'):.5g}" for name in VALUES[:-1]}
        | {"seconds": f"{seconds[int(row['step']) - 1]:.2f}"}
        for row in evals
    ]


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as temporary:
        temporary.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def record_missing(description: str | None, file: str, curves: Sequence[Key], record: Record[Key], shown: str) -> None:
    """The command: record the curves that the file lacks, and print each with the column `shown` of its last look."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--file", type=Path, default=Path(__file__).with_name(file))
    arguments = parser.parse_args()
    rows = read(arguments.file)
    num_keys = len(curves[0])
    done = {tuple(row.values())[:num_keys] for row in rows}
    todo = [curve for curve in curves if tuple(map(str, curve)) not in done]
    print(f"{len(done)} curves recorded, {len(todo)} to do")
    # Processes of their own start with a fork server's clean memory; diverged runs end early and have fewer looks.
    with ProcessPoolExecutor(arguments.workers, get_context("forkserver")) as pool:
        for future in as_completed([pool.submit(record, curve) for curve in todo]):
            rows += future.result()
            last = rows[-1]
            names = (*[*last][:num_keys], "step", shown)
            print(*(f"{name} {last[name]}" for name in names), sep="  ", flush=True)
            write(arguments.file, rows)


if __name__ == "__main__":
    record_missing(__doc__, "curves.csv.gz", grid(), record, "unigram_margin")
