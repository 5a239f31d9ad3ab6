"""How often a search says something false about pass rates, or two searches contradict each other.

    python benchmarks/pass_rates.py --worlds 300

No training: in tests/rate_worlds.py every recipe of every size certifies with a known probability. Each world is
searched twice, with different seeds. Recorded curves show the cost in tokens. Prints the rows of docs/truth.md.
"""

import argparse
import math
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from rate_worlds import HARD_RATES, STANDARD, RateWorld, contradict, false_claims, search
from replay_contenders import ours
from replay_recording import CONFIRM_SEEDS, Recording, Replay, play, read_curves
from search_replay import make_space

from marble_sweep.searches.pass_rate import Tally, Verdict, crossing, interval

RATES = {"around the asked rate": HARD_RATES, "far from it": (0.0, 0.3, 0.98, 1.0)}
NUMBERS = 40  # of tested recipes in a search, more than any had


def exact_rows() -> list[str]:
    """What the exact distribution says of the test, by the number of the recipe."""
    rows = ["| recipe | level | most seeds | accepted from | 0.95 is accepted | mean seeds at 0.95 | at 0.5 | at 0 |"]
    for number in (1, 2, 3, 6):
        bounds = STANDARD.design(number)
        first = next(seeds for seeds, least in enumerate(bounds.accept, 1) if least <= seeds)
        means = [crossing(bounds, rate)[2] for rate in (0.95, 0.5, 0.0)]
        cells = (
            f"{STANDARD.level(number):.4f}",
            bounds.max_seeds,
            f"{first} of {first}",
            f"{crossing(bounds, 0.95)[0]:.3f}",
        )
        rows.append(f"| {number} | {' | '.join(map(str, cells))} | {' | '.join(f'{mean:.1f}' for mean in means)} |")
    return rows


def exact_errors() -> str:
    """The error probabilities of a search whose recipes all have the asked rate, or one just below it."""
    errors = [crossing(STANDARD.design(number), STANDARD.rate) for number in range(1, NUMBERS + 1)]
    below = 1 - math.prod(1 - accepted for accepted, _, _ in errors)
    above = 1 - math.prod(1 - ruled_out for _, ruled_out, _ in errors)
    at_rate = f"{NUMBERS} recipes of the asked rate: one is ruled out with probability {above:.4f}"
    return f"{at_rate}; just below it: one is accepted with {below:.4f}"


def simulated_row(name: str, worlds: int, undecided: float) -> str:
    """Shares of searches, with Clopper-Pearson intervals."""
    false = contradictions = confirmed = trials = 0
    for seed in range(worlds):
        world = RateWorld(seed, RATES[name], undecided)
        first, second = search(world, 1), search(world, 2)
        false += bool(false_claims(world, first)) + bool(false_claims(world, second))
        contradictions += contradict(first, second)
        confirmed += (first.answer() is not None) + (second.answer() is not None)
        trials += len(first.records) + len(second.records)
    searches = 2 * worlds
    parts = [share(false, searches), share(contradictions, worlds), share(confirmed, searches)]
    return f"| {name}, {undecided:.0%} undecided | {' | '.join(parts)} | {trials / searches:.0f} |"


def share(count: int, total: int) -> str:
    low, high = interval(Tally(Verdict.OPEN, total, count), 0.95)
    return f"{count} of {total} ({100 * low:.1f} to {100 * high:.1f} %)"


def replayed_rows(recording: Recording, replays: int) -> list[str]:
    """What a search costs on recorded curves, in its quick form and by a pass rate: medians over replays."""
    space = make_space()
    rows = ["| standard | M tokens | trials | fresh seeds of the answer | of smaller sizes |"]
    for name, standard in (("3 of 3 seeds", CONFIRM_SEEDS), ("a pass rate", STANDARD)):
        played = [play(ours, Replay(recording, space, seed, 1e12, standard)) for seed in range(replays)]
        tokens = [
            [sum(replay.by_reason.values()) for replay in played],
            *([replay.by_reason[reason] for replay in played] for reason in ("confirm", "exclude")),
        ]
        whole, confirm, exclude = (f"{statistics.median(each) / 1e6:.1f}" for each in tokens)
        trials = statistics.median(replay.num_trials for replay in played)
        rows.append(f"| {name} | {whole} | {trials:.0f} | {confirm} M | {exclude} M |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=300, help="each is searched twice")
    parser.add_argument("--replays", type=int, default=24, help="on recorded curves")
    arguments = parser.parse_args()
    print("\n".join(exact_rows()))
    print(exact_errors())
    recording = Recording(read_curves(Path(__file__).with_name("curves.csv.gz")))
    print("\n".join(replayed_rows(recording, arguments.replays)), flush=True)
    print("| pass rates | searches that say something false | pairs that contradict | confirmed an answer | trials |")
    for name in RATES:
        for undecided in (0.0, 0.5):
            print(simulated_row(name, arguments.worlds, undecided), flush=True)


if __name__ == "__main__":
    main()
