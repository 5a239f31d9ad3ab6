"""Which configuration to train next: a pure function of the space and the records of earlier trials.

What a size costs, by default its number of parameters, is known before training. Whether it can beat the threshold must
be measured, and that depends on the recipe, above all on the learning rate. So:

1. *Bracket.* Sizes are probed by bisection on the logarithm of their cost, with the recipe that worked last. Once one
   certifies, no size that costs as much or more is trained.
2. *Confirm.* The smallest certified size trains again on fresh seeds, until its recipe is accepted, or rejected: ruled
   out or undecided (pass_rate.py). In the quick form a few seeds must all certify.
3. *Refute.* Every smaller size climbs: from the best known recipe it moves to the better neighbour until the best
   one has only worse neighbours, so much worse that not even a parabola through them reaches the threshold. If a size
   certifies instead, the search is back at step 2 with a smaller answer.
4. *Exclude.* The best recipes of a size that has climbed are trained on fresh seeds too, until they are ruled out. The
   size is then *refuted*; if one of them stays undecided, so does the size. In the quick form the climb alone refutes.
   A size that is narrower than a refuted one of the same depth is *implied*: it counts as refuted too.

The search is settled when the answer is confirmed and every smaller size is refuted, implied or undecided. Every
decision follows from the records alone, so any number of workers can decide, and an interrupted search can go on.

A crash says nothing about a size or a recipe. A trial that crashed is repeated once. If it crashes again its size is
*crashed*: it can still certify with another recipe, and a wider size can imply it, but it is not refuted.
"""

import bisect
import functools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from marble_sweep.runs.status import RunStatus
from marble_sweep.searches.fresh_seeds import Candidate, FreshSeeds, Recipe
from marble_sweep.searches.pass_rate import PassRate, SeedResult, Standard, Verdict
from marble_sweep.searches.space import Dimension, Space
from marble_sweep.searches.trial_record import NO_MARGIN, STALE, TrialRecord

WHOLE = 1.0  # between neighbouring recipes
HALF = 0.5  # between a near miss and its closer neighbours
FAILURES_BEFORE_LARGEST = 2


@dataclass(frozen=True)
class Proposal:
    size: int
    recipe: Recipe
    seed: int
    reason: str  # probe, confirm, refute, exclude, retry, reuse
    threshold: str = ""  # that the trial is for; "" where the search has one alone


@dataclass(frozen=True)
class Wait:
    """No useful trial can start before a running one ends."""


@dataclass(frozen=True)
class Settled:
    """Nothing is left to do."""


def neighbours(dimensions: Sequence[Dimension], recipe: Recipe, *, closer: bool = False) -> Iterator[Recipe]:
    """The recipes that differ in one dimension: by one step where it is ordered, else by any other choice.

    Steps are whole. With `closer`, or between two values, they are half; only continuous dimensions have those.
    """
    for axis, dimension in enumerate(dimensions):
        current, last = recipe[axis], len(dimension.values) - 1
        if dimension.ordered:
            step = HALF if closer or current % WHOLE else WHOLE
            fits = dimension.is_continuous or step == WHOLE
            positions = [position for position in (current + step, current - step) if 0 <= position <= last and fits]
        else:
            positions = [float(choice) for choice in range(last + 1) if choice != current and not closer]
        for position in positions:
            yield (*recipe[:axis], position, *recipe[axis + 1 :])


def middle_recipe(dimensions: Sequence[Dimension]) -> Recipe:
    """Where a climb begins that knows of no good recipe."""
    return tuple(float((len(axis.values) - 1) // 2) if axis.ordered else 0.0 for axis in dimensions)


def sort_out(records: Sequence[TrialRecord]) -> tuple[list[TrialRecord], list[TrialRecord], set[int]]:
    """The records that say something, those that are to be retried, and the sizes where a repeated trial crashed.

    To be retried are stale trials, and the first crash of every configuration.
    """
    telling: list[TrialRecord] = []
    to_retry: list[TrialRecord] = []
    latest: dict[tuple[int, Recipe, int], TrialRecord] = {}
    crashed_before = set()
    failed: str = RunStatus.FAILED
    for record in records:
        is_to_retry = record.outcome == STALE
        if record.outcome == failed or (latest and not is_to_retry):  # before the first crash no other matters
            configuration = record.size, record.recipe, record.seed
            is_to_retry = record.outcome == failed and configuration not in crashed_before
            if is_to_retry:
                crashed_before.add(configuration)
            latest[configuration] = record
        (to_retry if is_to_retry else telling).append(record)
    # A later trial of the same configuration replaces a crash.
    return telling, to_retry, {record.size for record in latest.values() if record.outcome == failed}


class SearchState:
    """What the records say about every size."""

    def __init__(self, space: Space, records: Sequence[TrialRecord], standard: Standard) -> None:
        self.space = space
        self.standard = standard
        self.records, self.to_retry, self.crashed = sort_out(records)
        self.by_size: dict[int, dict[Recipe, TrialRecord]] = {}
        self._certified: dict[tuple[int, bool], TrialRecord | None] = {}  # what was asked for before, as are the next
        self._best: dict[int, Recipe | None] = {}
        self.confirmations: dict[Candidate, dict[int, TrialRecord]] = defaultdict(dict)
        for record in self.records:
            if record.seed == 0:
                self.by_size.setdefault(record.size, {})[record.recipe] = record
            else:
                self.confirmations[record.size, record.recipe][record.seed] = record
        in_order = dict.fromkeys((record.size, record.recipe) for record in records if record.seed != 0)
        tested: dict[Candidate, dict[int, SeedResult]] = {candidate: {} for candidate in in_order}
        for candidate, trained in self.confirmations.items():
            tested[candidate] = {seed: record.seed_result for seed, record in trained.items()}
        self.fresh = FreshSeeds(standard, tested)
        climbed = {size for size in self.by_size if self._has_climbed(size)}
        verdicts = {size: self._excluded(size) for size in climbed}
        self.refuted = {size for size, verdict in verdicts.items() if verdict == Verdict.RULED_OUT}
        self.undecided = {size for size, verdict in verdicts.items() if verdict == Verdict.UNDECIDED}
        too_slow = {record.size for record in self.records if record.outcome == RunStatus.TOO_SLOW}
        self.refuted_by_loss = self.refuted - too_slow

    # ------------------------------------------------------------------ what is known about a recipe

    def _rejected(self, size: int, recipe: Recipe) -> bool:
        return self.fresh.verdict((size, recipe)) not in (Verdict.OPEN, Verdict.ACCEPTED)

    def margin(self, size: int, recipe: Recipe) -> float:
        """The margin that a recipe reaches on the asked share of its seeds; in the quick form its worst one.

        Of few seeds that is the worst one as well.
        """
        trained = [self.by_size[size][recipe], *self.confirmations.get((size, recipe), {}).values()]
        ended = [record for record in trained if record.outcome not in (RunStatus.RUNNING, RunStatus.FAILED)]
        margins = sorted(record.margin for record in ended or trained[:1])
        may_fail = 1 - self.standard.rate if isinstance(self.standard, PassRate) else 0.0
        return margins[int(may_fail * len(margins))]

    # ------------------------------------------------------------------ what is known about a size

    def certified(self, size: int, *, running: bool = False) -> TrialRecord | None:
        """The record by which a size is certified: of an accepted recipe, else the quickest that is not rejected.

        With `running`, a running trial counts as well. A recipe whose confirmation crashes twice does not count:
        another recipe may work. An accepted recipe counts even if it failed on the search's own seed.
        """
        if (size, running) not in self._certified:
            self._certified[size, running] = self._find_certified(size, running=running)
        return self._certified[size, running]

    def _find_certified(self, size: int, *, running: bool) -> TrialRecord | None:
        good = (RunStatus.CERTIFIED, RunStatus.RUNNING) if running else (RunStatus.CERTIFIED,)

        def rank(record: TrialRecord) -> tuple[bool, bool, int]:
            return self._is_accepted(record), record.outcome == RunStatus.CERTIFIED, -record.last_step

        candidates = [
            record
            for record in self.by_size.get(size, {}).values()
            if (record.outcome in good and not self._rejected(size, record.recipe)) or self._is_accepted(record)
        ]
        return max(candidates, key=rank, default=None)

    def _is_accepted(self, record: TrialRecord) -> bool:
        tally = self.fresh.tally((record.size, record.recipe))
        without_seeds = tally.seeds == 0 and record.outcome != RunStatus.CERTIFIED  # none are asked for
        return tally.verdict == Verdict.ACCEPTED and not without_seeds

    def confirmed(self, size: int) -> bool:
        """Whether a certified size is accepted on fresh seeds; in the quick form, on every one."""
        record = self.certified(size)
        return record is not None and self._is_accepted(record)

    def answer(self) -> int | None:
        """The smallest confirmed size, else the smallest certified one."""
        return min((size for size in self.by_size if self.confirmed(size)), default=self.smallest())

    def contenders(self, size: int) -> list[Recipe]:
        """The recipes on which it depends whether a size that has climbed is ruled out.

        The best one, every other one that was tested, and once these are ruled out, near ties: recipes that did better
        on the search's seed than the best one did on half of its fresh seeds. Then it was best by a lucky seed.
        """
        best = self.best(size)
        assert best is not None
        tested = [recipe for recipe in self.by_size[size] if (size, recipe) in self.fresh.tallies]
        named = list(dict.fromkeys([best, *tested]))
        if any(self.fresh.verdict((size, recipe)) != Verdict.RULED_OUT for recipe in named):
            return named
        trained = self.confirmations[size, best]
        counted = [trained[seed] for seed in range(1, self.fresh.tally((size, best)).seeds + 1)]
        measured = [record for record in counted if record.outcome not in NO_MARGIN]
        others = [record for recipe, record in self.by_size[size].items() if recipe not in named]
        better = {record.recipe: sum(self._beats(record, other) for other in measured) for record in others}
        return [*named, *(recipe for recipe, count in better.items() if 2 * count >= len(measured) > 0)]

    def recipes_to_exclude(self, size: int) -> list[Recipe]:
        """The recipes of an open size that are to be trained on fresh seeds until they are ruled out."""
        if not isinstance(self.standard, PassRate) or not self.by_size.get(size) or not self._has_climbed(size):
            return []
        return [recipe for recipe in self.contenders(size) if self.fresh.verdict((size, recipe)) == Verdict.OPEN]

    def _excluded(self, size: int) -> Verdict:
        """Whether a size that has climbed is ruled out, undecided or still open."""
        if not isinstance(self.standard, PassRate):
            return Verdict.RULED_OUT
        verdicts = {self.fresh.verdict((size, recipe)) for recipe in self.contenders(size)}
        if Verdict.OPEN in verdicts:
            return Verdict.OPEN
        return Verdict.RULED_OUT if verdicts == {Verdict.RULED_OUT} else Verdict.UNDECIDED

    def implied(self, size: int) -> bool:
        """Whether a wider size of the same depth is refuted by its losses; slowness implies nothing."""
        return not self.space.wider[size].isdisjoint(self.refuted_by_loss)

    def smallest(self, *, running: bool = False) -> int | None:
        """The smallest certified size; with `running`, running trials are assumed to succeed."""
        return min((size for size in self.by_size if self.certified(size, running=running)), default=None)

    def open_below(self, top: int | None) -> list[int]:
        """The sizes smaller than `top` (all where None) that are not refuted, implied or undecided."""
        sizes = self.space.sizes
        smaller = [index for index, size in enumerate(sizes) if top is None or size.rank < sizes[top].rank]
        closed = self.refuted | self.undecided
        return [index for index in smaller if index not in closed and not self.implied(index)]

    def widest_below(self, top: int | None) -> list[int]:
        """The open sizes below `top`, without those that a wider open size would imply once it is refuted.

        A crashed size cannot be refuted, so narrower ones do not wait for it.
        """
        still_open = self.open_below(top)
        not_crashed = set(still_open) - self.crashed
        return [size for size in still_open if self.space.wider[size].isdisjoint(not_crashed)]

    # ------------------------------------------------------------------ the climb over recipes

    def best(self, size: int) -> Recipe | None:
        """The ended recipe of this size that no other beats at the last step where both were evaluated."""
        if size not in self._best:
            self._best[size] = self._find_best(size)
        return self._best[size]

    def _find_best(self, size: int) -> Recipe | None:
        ended = [record for record in self.by_size.get(size, {}).values() if record.outcome != RunStatus.RUNNING]
        leader: TrialRecord | None = None
        for record in ended:
            if leader is None or self._beats(record, leader):
                leader = record
        return None if leader is None else leader.recipe

    def _beats(self, first: TrialRecord, second: TrialRecord) -> bool:
        step = min(first.last_step, second.last_step)
        if step not in first.margins or step not in second.margins:
            step = max(first.margins.keys() & second.margins.keys(), default=0)
        if step and first.outcome not in NO_MARGIN and second.outcome not in NO_MARGIN:
            return first.margins[step] > second.margins[step]
        return first.margin > second.margin

    def next_recipes(self, size: int) -> Iterator[Recipe]:
        """The recipes to try before the size is refuted, without those that run."""
        best = self.best(size)
        if best is None:
            if not self.by_size.get(size):
                yield self.first_recipe(size)
            return
        tried = self.by_size[size]
        nearby = list(neighbours(self.space.recipes, best))
        untried = [recipe for recipe in nearby if recipe not in tried]
        yield from untried
        waiting = any(tried[recipe].outcome == RunStatus.RUNNING for recipe in nearby if recipe in tried)
        if not untried and not waiting and self._near_miss(size, best):
            yield from (recipe for recipe in neighbours(self.space.recipes, best, closer=True) if recipe not in tried)

    def _near_miss(self, size: int, best: Recipe) -> bool:
        """Whether a parabola through the best recipe and its neighbours might reach the threshold in between.

        With values a, b, c at equal distances, b the largest, its peak is at most (b - min(a, c)) / 8 above b. A
        neighbour that was stopped in its first half shows how slowly it began, not how high the peak is.
        """
        tried = self.by_size[size]
        margin, top = self.margin(size, best), tried[best]
        drops = [0.0]
        for neighbour in (tried[recipe] for recipe in neighbours(self.space.recipes, best) if recipe in tried):
            step = max(set(neighbour.margins) & set(top.margins), default=0)
            if 2 * step >= top.last_step > 0 and neighbour.outcome not in NO_MARGIN:
                drops.append(top.margins[step] - neighbour.margins[step])
        return margin < 0 and margin + max(drops) / 8 >= 0

    def _has_climbed(self, size: int) -> bool:
        """Whether the size has failed with every recipe that was worth a trial."""
        running = any(record.outcome == RunStatus.RUNNING for record in self.by_size[size].values())
        if running or size in self.crashed or self.certified(size):
            return False
        return not any(self.next_recipes(size))

    @functools.cached_property
    def _starts(self) -> list[tuple[int, int, Recipe]]:
        """Where others may begin from, by size: the size, its place in line, the recipe."""
        return sorted((size, place, recipe) for place, (size, recipe) in enumerate(self._find_starts()))

    def _find_starts(self) -> Iterator[tuple[int, Recipe]]:
        """The sizes that others begin from, with their recipes: those that certified, else all that did not crash."""
        certified = [(size, record.recipe) for size in self.by_size if (record := self.certified(size)) is not None]
        yield from certified
        for size in self.by_size if not certified else ():
            best = self.best(size)
            if best is not None and self.by_size[size][best].outcome != RunStatus.FAILED:
                yield size, best

    def first_recipe(self, size: int) -> Recipe:
        """Where a size begins: what certified the nearest size, else what was best there, else the middle."""
        return nearest(self._starts, size) if self._starts else middle_recipe(self.space.recipes)


def nearest(in_line: Sequence[tuple[int, int, Any]], size: int) -> Any:
    """The last field of the entry (size, place in line, …) with the nearest size; of two, the one first in line.

    The entries are sorted.
    """
    after = bisect.bisect(in_line, (size,))
    candidates = in_line[max(after - 1, 0) : after + 1]
    return min(candidates, key=lambda entry: (abs(entry[0] - size), entry[1]))[2]


def forget_crashes(records: Sequence[TrialRecord], first: int) -> list[TrialRecord]:
    """The records, with crashes numbered below `first` as stale trials: a search that starts again repeats them.

    What made them crash may have been repaired since.
    """
    return [
        replace(record, outcome=STALE) if record.number < first and record.outcome == RunStatus.FAILED else record
        for record in records
    ]


def decide(space: Space, records: Sequence[TrialRecord], standard: Standard) -> Proposal | Wait | Settled:
    """The next trial by these records, as next_trial has it."""
    return next_trial(SearchState(space, records, standard))


def next_trial(state: SearchState) -> Proposal | Wait | Settled:
    """The next trial; Wait where none can start now; Settled where none is left.

    None is left where every question has its answer, or where only crashed sizes stand in the way.
    """
    answer = state.smallest()
    for record in state.to_retry:
        if proposal := _retry(state, record, answer):
            return proposal
    expected = state.smallest(running=True)  # running trials are assumed to succeed
    if (probe := next_probe(state, expected)) is not None:
        return Proposal(probe, state.first_recipe(probe), 0, "probe")
    if answer is not None:
        certified = state.certified(answer)
        assert certified is not None
        seed = state.fresh.next_seed((answer, certified.recipe), SeedResult.PASSED)
        if seed is not None:
            return Proposal(answer, certified.recipe, seed, "confirm")
    if (proposal := _refute(state, answer)) is not None:
        return proposal
    return Wait() if any(record.outcome == RunStatus.RUNNING for record in state.records) else Settled()


def _retry(state: SearchState, record: TrialRecord, answer: int | None) -> Proposal | None:
    """The same trial once more, unless it was retried already or no longer matters."""
    size, recipe, seed = record.size, record.recipe, record.seed
    trials = state.by_size.get(size, {}) if seed == 0 else {}
    repeated = recipe in trials or seed in state.confirmations.get((size, recipe), {})
    is_open = size in state.open_below(answer)
    is_tested = state.fresh.verdict((size, recipe)) == Verdict.OPEN
    matters = is_open if seed == 0 else is_tested and (is_open or size == answer)
    return Proposal(size, recipe, seed, "retry") if matters and not repeated else None


def next_probe(state: SearchState, expected: int | None) -> int | None:
    """The next size of the bisection; None once the bracket is closed.

    Its lower end is the largest size below `expected` that failed with the recipe it would be probed with. While
    nothing has certified, the bracket is open at the top: after two failures the largest size is next.
    """
    sizes = state.space.sizes
    top = len(sizes) if expected is None else expected
    probed = {size for size, tried in state.by_size.items() if state.first_recipe(size) in tried}
    failed = [
        size for size in probed if size < top and size not in state.crashed and not state.certified(size, running=True)
    ]
    bottom = max(failed, default=-1)
    inside = [index for index in state.open_below(expected) if index > bottom and index not in probed]
    if not inside:
        return None
    if expected is None and len(failed) >= FAILURES_BEFORE_LARGEST:
        return inside[-1]
    low, high = sizes[max(bottom, 0)].cost, sizes[min(top, len(sizes) - 1)].cost
    middle = math.sqrt(low * high)
    return next((index for index in inside if sizes[index].cost >= middle), inside[-1])


def _refute(state: SearchState, answer: int | None) -> Proposal | None:
    """The next recipe of the most promising size that is still open below the answer.

    The widest sizes come first: once refuted, they imply the narrower ones. Of those, the one whose best recipe
    came closest is next; an untried size counts as promising as its nearest neighbour.
    """
    failed = [size for size in state.by_size if not state.certified(size)]
    bests = {size: best for size in failed if (best := state.best(size)) is not None}
    margins = sorted((size, place, state.margin(size, best)) for place, (size, best) in enumerate(bests.items()))
    promise = {size: nearest(margins, size) if margins else -math.inf for size in state.widest_below(answer)}
    for size in sorted(promise, key=lambda index: -promise[index]):
        for recipe in state.next_recipes(size):
            return Proposal(size, recipe, 0, "refute")
        for recipe in state.recipes_to_exclude(size):
            seed = state.fresh.next_seed((size, recipe), SeedResult.FAILED)
            if seed is not None:
                return Proposal(size, recipe, seed, "exclude")
    return None
