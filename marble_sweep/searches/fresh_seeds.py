"""The tests of all recipes that a search has trained on fresh seeds."""

import itertools
from collections.abc import Iterator, Mapping

from marble_sweep.searches.pass_rate import SeedResult, Standard, Tally, Verdict, judge

Recipe = tuple[float, ...]  # a position in each recipe dimension's values
Candidate = tuple[int, Recipe]  # the index of a size, and a recipe


class FreshSeeds:
    """What fresh seeds show of every recipe. A recipe's number, which decides its level, is its place in line."""

    def __init__(self, standard: Standard, results: Mapping[Candidate, Mapping[int, SeedResult]]) -> None:
        """`results` by candidate, in the order of their first fresh seed, and by seed, counted from 1."""
        self.standard = standard
        self.results = results
        self.numbers = {candidate: number for number, candidate in enumerate(results, 1)}
        self.tallies = {candidate: self._judge(candidate) for candidate in results}
        self._untested = judge(standard, len(self.numbers) + 1, ())

    def tally(self, candidate: Candidate) -> Tally:
        return self.tallies.get(candidate, self._untested)

    def verdict(self, candidate: Candidate) -> Verdict:
        return self.tally(candidate).verdict

    def number(self, candidate: Candidate) -> int:
        """Its place in line; the next free one where no fresh seed of it was begun."""
        return self.numbers.get(candidate, len(self.numbers) + 1)

    def _judge(self, candidate: Candidate, running: SeedResult = SeedResult.RUNNING) -> Tally:
        """Its tally, where every running trial is taken to end as `running`."""
        return judge(self.standard, self.number(candidate), tuple(self._in_order(candidate, running)))

    def _in_order(self, candidate: Candidate, running: SeedResult) -> Iterator[SeedResult]:
        """The results of its seeds, up to the first seed that was not begun."""
        results = self.results.get(candidate, {})
        for seed in itertools.takewhile(results.__contains__, itertools.count(1)):
            yield running if results[seed] == SeedResult.RUNNING else results[seed]

    def next_seed(self, candidate: Candidate, running: SeedResult) -> int | None:
        """The seed to train next; None where those that run would decide if all of them ended as `running`.

        So several workers train several seeds at once, but none that a single worker would most likely not need.
        """
        tally = self._judge(candidate, running)
        return tally.seeds + 1 if self.verdict(candidate) == tally.verdict == Verdict.OPEN else None

    def seeds_to_accept(self, candidate: Candidate) -> int:
        """How many more seeds accept it if all of them certify; 0 once its test has ended."""
        ended = self.tally(candidate).seeds
        results = tuple(itertools.islice(self._in_order(candidate, SeedResult.RUNNING), ended))
        while judge(self.standard, self.number(candidate), results).verdict == Verdict.OPEN:
            results = (*results, SeedResult.PASSED)
        return len(results) - ended
