"""How often the intervals of a scaling law hold: planted laws with known noise, fitted as the frontier is.

    python benchmarks/law_coverage.py [--rounds 1000]

Nothing is trained. Every round draws the losses of a law with known E, A and α: seeds spread, windows err (a part for
each size, a part that all sizes share), and in some worlds the sizes scatter around the law, as recipes do that are
tuned to a grid. Counted is how often a 95 % interval holds the truth: of E, of α, of a run's loss at a size between the
points and at twice the largest one, of the size that reaches a loss. The controls have no law: flat losses, rising
ones.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from marble_sweep.scaling.law import Interval, Law, fit_law
from marble_sweep.scaling.points import Point

SIZES = {
    9: (20_260, 30_390, 40_520, 50_650, 60_780, 81_040, 101_300, 121_560, 162_080),
    7: (20_260, 30_390, 40_520, 60_780, 81_040, 121_560, 162_080),
    5: (20_260, 30_390, 40_520, 81_040, 162_080),
}
LEVEL, FALL = 5.4, 1.25  # E, and how far the smallest size is above it, in nats per token
REACHED = 5.8  # the loss whose size is asked for


@dataclass(frozen=True)
class World:
    """A planted law with its noise; standard deviations in nats per token."""

    name: str
    alpha: float = 1.0
    num_sizes: int = 9
    num_seeds: int = 2
    seeds: float = 0.03
    windows: float = 0.005  # of each size
    common: float = 0.0  # of all sizes together
    scatter: float = 0.0  # of sizes around the law
    fall: float = FALL
    unequal_seeds: float = 1.0  # seeds of the smallest size spread so many times as far as those of the largest

    @property
    def sizes(self) -> tuple[int, ...]:
        return SIZES[self.num_sizes]

    def loss(self, n_params: float) -> float:
        return float(LEVEL + self.fall * (n_params / self.sizes[0]) ** -self.alpha)

    def points(self, rng: np.random.Generator, common: float = 0.0) -> list[Point]:
        """What a round measures, where windows add `common` to all losses."""
        spreads = self.seeds * np.geomspace(self.unequal_seeds, 1, len(self.sizes))
        points = []
        for size, spread in zip(self.sizes, spreads, strict=True):
            own = common + rng.normal(0, self.windows) + rng.normal(0, self.scatter)
            losses = self.loss(size) + own + rng.normal(0, spread, self.num_seeds)
            points.append(Point(str(size), size, tuple(map(float, losses)), (self.windows,) * self.num_seeds))
        return points


WORLDS = (
    World("seeds alone"),
    World("α = 0.5", alpha=0.5),
    World("α = 1.5", alpha=1.5),
    World("7 sizes", num_sizes=7),
    World("5 sizes", num_sizes=5),
    World("one seed", num_seeds=1, seeds=0.02, windows=0.02),
    World("3 seeds, those of small sizes spread 3 times as far", num_seeds=3, unequal_seeds=3.0),
    World("windows that all share", common=0.05),
    World("scatter as large as the spread of seeds", scatter=0.03),
    World("scatter, 5 sizes", scatter=0.03, num_sizes=5),
    World("twice as much scatter", scatter=0.06),
)
CONTROLS = (
    World("flat", fall=0.0),
    World("flat, 5 sizes", fall=0.0, num_sizes=5),
    World("flat, scatter", fall=0.0, scatter=0.06),
    World("rising", fall=-0.3),
    World("falling by a tenth of the spread", fall=0.003),
)


def held(world: World, law: Law, common: float, rng: np.random.Generator) -> Iterator[tuple[str, bool]]:
    """Which of the intervals hold the truth; those that are refused are left out."""
    yield "E", holds(law.level, LEVEL)
    yield "α", holds(law.alpha, world.alpha)
    between, twice = float(np.sqrt(world.sizes[2] * world.sizes[3])), 2.0 * world.sizes[-1]
    for name, size in (("run between", between), ("run at twice", twice)):
        spread = np.sqrt(world.seeds**2 + world.windows**2 + world.scatter**2)
        predicted = law.predict(size)
        if isinstance(predicted, Interval):
            yield name, holds(predicted, world.loss(size) + common + rng.normal(0, spread))
    size = world.sizes[0] * (world.fall / (REACHED - LEVEL)) ** (1 / world.alpha)
    reached = law.size_for(REACHED, same_windows=world.common == 0)
    if isinstance(reached, Interval):
        yield "size", holds(reached, size)


def holds(interval: Interval, truth: float) -> bool:
    above = interval.low is None or truth >= interval.low
    return above and (interval.high is None or truth <= interval.high)


def count(world: World, rounds: int, seed: int = 0) -> tuple[int, Counter[str], Counter[str]]:
    """The rounds with a law, how often each interval was given, and how often it held."""
    rng = np.random.default_rng(seed)
    given: Counter[str] = Counter()
    good: Counter[str] = Counter()
    laws = 0
    for _ in range(rounds):
        common = rng.normal(0, world.common)
        law = fit_law(world.points(rng, common), world.common)
        if isinstance(law, Law):
            laws += 1
            for name, is_held in held(world, law, common, rng):
                given[name] += 1
                good[name] += is_held
    return laws, given, good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    rounds = parser.parse_args().rounds
    names = ("E", "α", "run between", "run at twice", "size")
    print(f"| world | law | {' | '.join(names)} | size given |")
    print(f"|---|--:|{'--:|' * len(names)}--:|")
    for world in WORLDS:
        laws, given, good = count(world, rounds)
        shares = [f"{good[name] / given[name]:.1%}" if given[name] else "" for name in names]
        asked = f"{given['size'] / max(laws, 1):.0%}"
        print(f"| {world.name} | {laws / rounds:.1%} | {' | '.join(shares)} | {asked} |", flush=True)
    for world in CONTROLS:
        print(f"{world.name}: {count(world, rounds)[0]} laws of {rounds} rounds", flush=True)


if __name__ == "__main__":
    main()
