"""How much sooner does a search end with several workers? Replayed on recorded learning curves.

    python benchmarks/search_workers.py [--workers 1 2 4 8] [--orders 12] [--overhead 15] [--curves FILE]

The curves, the space and the thresholds are those of search_replay.py. A trial takes the steps of its curve and
`--overhead` more, for its start, evaluations and end; every worker trains at the same speed, and takes the next trial
as soon as it is free. An order says which recorded seed plays the search's own; fresh seeds play the recorded ones
again and again. Figures are medians over the orders, against one worker in the same order.
"""

import argparse
import heapq
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from replay_recording import CONFIRM_SEEDS, CORPORA, LAYERS, RATE, WIDTH, Curve, Recording, read_curves, stopped
from replay_tables import markdown
from search_replay import make_space, right_size

from marble_sweep.runs.status import RunStatus
from marble_sweep.search_config import SearchConfig
from marble_sweep.searches.fresh_seeds import Recipe
from marble_sweep.searches.pass_rate import Standard, standard_of
from marble_sweep.searches.space import Space
from marble_sweep.searches.strategy import Proposal, SearchState, Settled, decide
from marble_sweep.searches.trial_record import TrialRecord


@dataclass(frozen=True)
class Ended:
    """A whole search."""

    steps: float  # until it ended, each worker's own
    trained: int  # steps, of all workers
    size: str | None
    recipe: Recipe | None


def play(
    recording: Recording, space: Space, standard: Standard, order: Sequence[int], workers: int, overhead: int
) -> Ended:
    records: list[TrialRecord] = []  # as they will have ended
    running: list[tuple[float, int]] = []  # when a trial ends, and its number
    now, trained = 0.0, 0
    while True:
        while len(running) < workers and isinstance(plan := next_trial(space, standard, records, running), Proposal):
            record, steps = train(recording, space, order, len(records), plan)
            records.append(record)
            trained += steps
            heapq.heappush(running, (now + steps + overhead, record.number))
        if not running:
            break
        now, _ = heapq.heappop(running)
    state = SearchState(space, records, standard)
    answer = state.smallest()
    best = None if answer is None else state.certified(answer)
    if answer is None or best is None:
        return Ended(now, trained, None, None)
    return Ended(now, trained, str(space.sizes[answer]), best.recipe)


def next_trial(
    space: Space, standard: Standard, records: Sequence[TrialRecord], running: Sequence[tuple[float, int]]
) -> object:
    """The strategy's decision, which knows nothing yet of how running trials end."""
    numbers = {number for _, number in running}
    seen = [
        replace(record, outcome=RunStatus.RUNNING, margins={}) if record.number in numbers else record
        for record in records
    ]
    decision = decide(space, seen, standard)
    assert running or isinstance(decision, Proposal | Settled)
    return decision


def train(
    recording: Recording, space: Space, order: Sequence[int], number: int, plan: Proposal
) -> tuple[TrialRecord, int]:
    """The record of a trial once it has ended, and its steps."""
    curve = curve_of(recording, space, order, plan)
    outcome, looks, steps = stopped(curve)
    margins = dict(zip(curve.steps[:looks], curve.above, strict=False))
    return TrialRecord(number, plan.size, plan.recipe, plan.seed, outcome, margins), steps


def curve_of(recording: Recording, space: Space, order: Sequence[int], plan: Proposal) -> Curve:
    params = space.params(plan.size, plan.recipe)
    cell = recording.cell(int(params[LAYERS]), int(params[WIDTH]), float(params[RATE]))
    seeds = [seed for seed in order if seed in cell]
    return cell[seeds[plan.seed % len(seeds)]]


def compare(recording: Recording, space: Space, standard: Standard, arguments: argparse.Namespace) -> list[list[str]]:
    """A row for every number of workers."""
    seeds = recording.seeds
    orders = [random.Random(number).sample(seeds, len(seeds)) for number in range(arguments.orders)]
    alone = [play(recording, space, standard, order, 1, arguments.overhead) for order in orders]
    rows = []
    for workers in arguments.workers:
        ended = [play(recording, space, standard, order, workers, arguments.overhead) for order in orders]
        pairs = list(zip(ended, alone, strict=True))
        rows.append(
            [
                str(workers),
                f"{statistics.median(one.steps / several.steps for several, one in pairs):.2f}",
                f"{statistics.median(several.trained / one.trained for several, one in pairs):.2f}",
                f"{sum(several.size == one.size for several, one in pairs)} of {len(pairs)}",
                f"{sum(several.recipe == one.recipe for several, one in pairs)} of {len(pairs)}",
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--orders", type=int, default=12)
    parser.add_argument("--overhead", type=int, default=15, help="steps that a trial takes besides its own")
    parser.add_argument("--curves", type=Path, default=Path(__file__).with_name("curves.csv.gz"))
    arguments = parser.parse_args()
    space = make_space()
    rows = [["proof", "nats", "right", "workers", "sooner", "trained", "same size", "same recipe"]]
    for name, standard in (("a pass rate", standard_of(SearchConfig())), ("3 of 3 seeds", CONFIRM_SEEDS)):
        for nats in CORPORA["pydocs"].nats:
            recording = Recording(read_curves(arguments.curves, nats))
            if (right := right_size(recording, space)) is not None:
                rows += [
                    [name, f"{nats:g}", str(right), *row] for row in compare(recording, space, standard, arguments)
                ]
    print(markdown(rows))


if __name__ == "__main__":
    main()
