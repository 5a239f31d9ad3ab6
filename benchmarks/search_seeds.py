"""Do searches that differ in their seed alone contradict each other? Whole searches, with real trials.

    nice python benchmarks/search_seeds.py FOLDER [--searches 20] [--at-once 1] [--quick] [override ...]

Without overrides these are default searches, of a quarter of an hour each. `--quick` takes a tiny Markov chain, whose
searches take half a minute. Ctrl-C or SIGTERM lets the running searches save their state; the same command continues,
and with a larger --searches adds to them. Every search keeps a directory in FOLDER; agreement.json has what they say
of every size, and every contradiction: a size that one search confirms and another excludes.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from search_claims import ENDED, Agreement, Claims, claims_of

from marble_sweep.checks import require
from marble_sweep.runs import layout
from marble_sweep.runs.files import write_json
from marble_sweep.training.signals import interrupting

# Width 4 certifies on most seeds, 3 on a part of them. So much is held out that few margins are undecided: sizes are
# excluded as well as confirmed.
QUICK = (
    *("data=markov", "data.vocab_size=64", "data.num_tokens=120000", "data.val_fraction=0.8"),
    *("model.num_layers=0", "model.hidden_dim=3,4", "optimizer.lr=0.05,0.1"),
    *("trainer.total_steps=7", "trainer.num_evals=1", "trainer.eval_windows=3000"),
    *("trainer.batch_size=64", "trainer.seq_len=16"),
    *("sweep.workers=1", "device.num_threads=1", "device.matmul=float32", "device.head=float32_as_bf16"),
)
POLL_SECONDS = 0.2
OVERRIDES, AGREEMENT = "overrides.json", "agreement.json"


def read_claims(folder: Path, seed: int) -> Claims | None:
    """What the search of this seed says; None where it has not ended."""
    try:
        search = json.loads((directory_of(folder, seed) / layout.SEARCH).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return claims_of(seed, search) if search["ended"] in ENDED else None


def directory_of(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}"


def keep_overrides(folder: Path, overrides: Sequence[str]) -> None:
    """Raise ValueError where the searches in `folder` have other overrides: they would not differ in seeds alone."""
    path = folder / OVERRIDES
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))["overrides"]
        require(kept == list(overrides), "overrides", list(overrides), f"as in {path}: {kept}; or another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"overrides": list(overrides)})


def begin(folder: Path, seed: int, overrides: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a search, or continue it. A terminal's Ctrl-C does not reach it: it is asked to stop once, by us."""
    words = ["hydra/sweeper=smallest", *overrides, f"seed={seed}", f"hydra.sweep.dir={directory_of(folder, seed)}"]
    with open(folder / f"seed-{seed}.log", "ab") as log:
        command = [sys.executable, "-m", "marble_sweep", "--multirun", *words]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


@contextmanager
def stopping(running: dict[int, subprocess.Popen[bytes]]) -> Iterator[None]:
    """Ask what still runs at the end to stop, and wait until its state is saved."""
    try:
        yield
    finally:
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        for process in running.values():
            process.wait()


def search_all(folder: Path, seeds: Sequence[int], at_once: int, overrides: Sequence[str]) -> list[int]:
    """Run the searches that have not ended; returns the seeds of those that failed."""
    left = [seed for seed in seeds if read_claims(folder, seed) is None]
    failed: list[int] = []
    running: dict[int, subprocess.Popen[bytes]] = {}
    with stopping(running):
        while left or running:
            while left and len(running) < at_once:
                seed = left.pop(0)
                running[seed] = begin(folder, seed, overrides)
            time.sleep(POLL_SECONDS)
            for seed in [seed for seed, process in running.items() if process.poll() is not None]:
                del running[seed]
                show(folder, seed, seeds)
                if read_claims(folder, seed) is None:
                    failed.append(seed)
    return failed


def show(folder: Path, seed: int, seeds: Sequence[int]) -> None:
    """How a search ended, and what all that have ended come to so far."""
    claims = read_claims(folder, seed)
    if claims is None:
        print(f"seed {seed}: failed, see {folder / f'seed-{seed}.log'}", flush=True)
        return
    searches = ended_searches(folder, seeds)
    contradict, pairs = Agreement(searches).all_pairs()
    told = "no size" if claims.answer is None else f"{claims.answer} {'' if claims.confirmed else 'un'}confirmed"
    print(
        f"seed {seed}: {told}; {claims.ended} after {claims.trials} trials, {claims.seconds:.0f} s"
        f" | {len(searches)} of {len(seeds)} searches, {contradict} of {pairs} pairs contradict each other",
        flush=True,
    )


def ended_searches(folder: Path, seeds: Sequence[int]) -> list[Claims]:
    return [claims for seed in seeds if (claims := read_claims(folder, seed)) is not None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--searches", type=int, default=20, help="with the seeds 1, 2, …")
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a tiny source, of half a minute a search")
    parser.add_argument("overrides", nargs="*", help="of every search")
    arguments = parser.parse_intermixed_args()
    folder, seeds = arguments.folder, range(1, arguments.searches + 1)
    overrides = [*(QUICK if arguments.quick else ()), *arguments.overrides]
    try:
        keep_overrides(folder, overrides)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    failed, interrupted = [], False
    try:
        with interrupting():
            failed = search_all(folder, seeds, arguments.at_once, overrides)
    except KeyboardInterrupt:
        interrupted = True
    agreement = Agreement(ended_searches(folder, seeds))
    write_json(folder / AGREEMENT, {"overrides": overrides, **agreement.as_json()})
    print("\n".join(agreement.as_lines()))
    if interrupted:
        print(f"{len(agreement.searches)} of {len(seeds)} searches have ended; the same command continues.")
    return 130 if interrupted else int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
