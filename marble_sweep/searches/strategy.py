"""Which configuration to train next: a pure function of the space and the records of earlier trials.

The number of parameters is known before training. Whether a size can beat the threshold must be measured, and that
depends on the recipe, above all on the learning rate. So:

1. *Bracket.* Sizes are probed by bisection on the logarithm of their parameters, with the recipe that worked last.
   Once one certifies, no size with as many parameters or more is trained.
2. *Confirm.* The smallest certified size trains again on fresh seeds. A recipe that fails one is rejected.
3. *Refute.* Every smaller size climbs: from the best known recipe it moves to the better neighbour until the best
   one has only worse neighbours, so much worse that not even a parabola through them reaches the threshold. The size
   is then *refuted*. A size that is narrower than a refuted one of the same depth is *implied*: it counts as refuted
   too. If a size certifies instead, the search is back at step 2 with a smaller answer.

The search is settled when the answer is confirmed and every smaller size is refuted or implied. Every decision follows
from the records alone, so any number of workers can decide, and an interrupted search can go on.

A crash says nothing about a size or a recipe. A trial that crashed is repeated once. If it crashes again its size is
*crashed*: it can still certify with another recipe, and a wider size can imply it, but it is not refuted.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from marble_sweep.runs.status import RunStatus
from marble_sweep.searches.space import Space

WHOLE = 1.0  # between neighbouring recipes
HALF = 0.5  # between a near miss and its closer neighbours
STALE = "stale"  # the outcome of a trial whose worker died or was interrupted
FAILURES_BEFORE_LARGEST = 2
# Outcomes whose last evaluation does not show where training would have led.
NO_MARGIN = (RunStatus.DIVERGED, RunStatus.FAILED)
Recipe = tuple[float, ...]  # a position in each recipe dimension's values


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the strategy sees it."""

    number: int
    size: int  # index in Space.sizes
    recipe: Recipe
    seed: int  # 0: of the search; 1, 2, …: the fresh ones of a confirmation
    outcome: str  # running, certified, refuted, pruned, diverged, too_slow, failed, stale
    margins: dict[int, float] = field(default_factory=dict)  # by step: nats per token above what certifies

    @property
    def last_step(self) -> int:
        return max(self.margins, default=0)

    @property
    def margin(self) -> float:
        """At the last evaluation; -inf where there was none, the loss diverged or the trial crashed."""
        return self.margins[self.last_step] if self.margins and self.outcome not in NO_MARGIN else -math.inf


@dataclass(frozen=True)
class Proposal:
    size: int
    recipe: Recipe
    seed: int
    reason: str  # probe, confirm, refute, retry


@dataclass(frozen=True)
class Wait:
    """No useful trial can start before a running one ends."""


@dataclass(frozen=True)
class Settled:
    """Nothing is left to do."""


class SearchState:
    """What the records say about every size."""

    def __init__(self, space: Space, records: Sequence[TrialRecord], confirm_seeds: int) -> None:
        self.space = space
        self.confirm_seeds = confirm_seeds
        self.records: list[TrialRecord] = []
        self.to_retry: list[TrialRecord] = []  # stale trials, and the first crash of every configuration
        latest: dict[tuple[int, Recipe, int], TrialRecord] = {}
        crashed_before = set()
        for record in records:
            configuration = record.size, record.recipe, record.seed
            first_crash = record.outcome == RunStatus.FAILED and configuration not in crashed_before
            if first_crash:
                crashed_before.add(configuration)
            if record.outcome != STALE:
                latest[configuration] = record
            (self.to_retry if first_crash or record.outcome == STALE else self.records).append(record)
        # A later trial of the same configuration replaces a crash.
        self.crashed = {record.size for record in latest.values() if record.outcome == RunStatus.FAILED}
        self.by_size: dict[int, dict[Recipe, TrialRecord]] = {}
        self.confirmations: dict[tuple[int, Recipe], dict[int, TrialRecord]] = {}
        for record in self.records:
            if record.seed == 0:
                self.by_size.setdefault(record.size, {})[record.recipe] = record
            else:
                self.confirmations.setdefault((record.size, record.recipe), {})[record.seed] = record
        self.refuted = {size for size in self.by_size if self._is_refuted(size)}
        self.refuted_by_loss = {
            size
            for size in self.refuted
            if all(record.outcome != RunStatus.TOO_SLOW for record in self.by_size[size].values())
        }

    # ------------------------------------------------------------------ what is known about a size

    def certified(self, size: int, *, running: bool = False) -> TrialRecord | None:
        """The record by which a size is certified: the quickest whose recipe has failed no confirmation.

        With `running`, a running trial counts as well. A recipe whose confirmation crashes twice does not count:
        another recipe may work.
        """
        good = (RunStatus.CERTIFIED, RunStatus.RUNNING) if running else (RunStatus.CERTIFIED,)
        candidates = [
            record
            for record in self.by_size.get(size, {}).values()
            if record.outcome in good and not self._rejected(size, record.recipe)
        ]
        return max(
            candidates, key=lambda record: (record.outcome == RunStatus.CERTIFIED, -record.last_step), default=None
        )

    def _rejected(self, size: int, recipe: Recipe) -> bool:
        confirmations = self.confirmations.get((size, recipe), {}).values()
        return any(record.outcome not in (RunStatus.CERTIFIED, RunStatus.RUNNING) for record in confirmations)

    def confirmed(self, size: int) -> bool:
        """Whether a certified size has certified again on every fresh seed."""
        record = self.certified(size)
        return record is not None and not self.missing_seeds(record, running=False)

    def missing_seeds(self, record: TrialRecord, *, running: bool) -> list[int]:
        done = self.confirmations.get((record.size, record.recipe), {})
        good = (RunStatus.CERTIFIED, RunStatus.RUNNING) if running else (RunStatus.CERTIFIED,)
        wanted = range(1, self.confirm_seeds + 1)
        return [seed for seed in wanted if seed not in done or done[seed].outcome not in good]

    def margin(self, size: int, recipe: Recipe) -> float:
        """The worst margin of a recipe over the search's seed and the fresh ones on which it failed."""
        record = self.by_size[size][recipe]
        others = self.confirmations.get((size, recipe), {}).values()
        failed = [
            other.margin
            for other in others
            if other.outcome not in (RunStatus.CERTIFIED, RunStatus.RUNNING, RunStatus.FAILED)
        ]
        return min([record.margin, *failed])

    def implied(self, size: int) -> bool:
        """Whether a wider size of the same depth is refuted by its losses; slowness implies nothing."""
        return any(self.space.sizes[size].narrower_than(self.space.sizes[other]) for other in self.refuted_by_loss)

    def smallest(self, *, running: bool = False) -> int | None:
        """The smallest certified size; with `running`, running trials are assumed to succeed."""
        return min((size for size in self.by_size if self.certified(size, running=running)), default=None)

    def open_below(self, top: int | None) -> list[int]:
        """The sizes that have fewer parameters than `top` (all where None) and are neither refuted nor implied."""
        sizes = self.space.sizes
        smaller = [
            index for index, size in enumerate(sizes) if top is None or size.num_parameters < sizes[top].num_parameters
        ]
        return [index for index in smaller if index not in self.refuted and not self.implied(index)]

    def widest_below(self, top: int | None) -> list[int]:
        """The open sizes below `top`, without those that a wider open size would imply once it is refuted.

        A crashed size cannot be refuted, so narrower ones do not wait for it.
        """
        sizes, still_open = self.space.sizes, self.open_below(top)
        wider = [size for size in still_open if size not in self.crashed]
        return [size for size in still_open if not any(sizes[size].narrower_than(sizes[other]) for other in wider)]

    # ------------------------------------------------------------------ the climb over recipes

    def best(self, size: int) -> Recipe | None:
        """The ended recipe of this size that no other beats at the last step where both were evaluated."""
        ended = [record for record in self.by_size.get(size, {}).values() if record.outcome != RunStatus.RUNNING]
        leader: TrialRecord | None = None
        for record in ended:
            if leader is None or self._beats(record, leader):
                leader = record
        return None if leader is None else leader.recipe

    def _beats(self, first: TrialRecord, second: TrialRecord) -> bool:
        common = set(first.margins) & set(second.margins)
        if common and first.outcome not in NO_MARGIN and second.outcome not in NO_MARGIN:
            return first.margins[max(common)] > second.margins[max(common)]
        return first.margin > second.margin

    def next_recipes(self, size: int) -> Iterator[Recipe]:
        """The recipes to try before the size is refuted, without those that run."""
        best = self.best(size)
        if best is None:
            if not self.by_size.get(size):
                yield self.first_recipe(size)
            return
        tried = self.by_size[size]
        neighbours = list(self._neighbours(best))
        untried = [recipe for recipe in neighbours if recipe not in tried]
        yield from untried
        waiting = any(tried[recipe].outcome == RunStatus.RUNNING for recipe in neighbours if recipe in tried)
        if not untried and not waiting and self._near_miss(size, best):
            yield from (recipe for recipe in self._neighbours(best, closer=True) if recipe not in tried)

    def _neighbours(self, recipe: Recipe, *, closer: bool = False) -> Iterator[Recipe]:
        """The recipes that differ in one dimension: by one step where it is ordered, else by any other choice.

        Steps are whole. With `closer`, or between two values, they are half; only continuous dimensions have those.
        """
        for axis, dimension in enumerate(self.space.recipes):
            current, last = recipe[axis], len(dimension.values) - 1
            if dimension.ordered:
                step = HALF if closer or current % WHOLE else WHOLE
                fits = dimension.is_continuous or step == WHOLE
                positions = [
                    position for position in (current + step, current - step) if 0 <= position <= last and fits
                ]
            else:
                positions = [float(choice) for choice in range(last + 1) if choice != current and not closer]
            for position in positions:
                yield (*recipe[:axis], position, *recipe[axis + 1 :])

    def _near_miss(self, size: int, best: Recipe) -> bool:
        """Whether a parabola through the best recipe and its neighbours might reach the threshold in between.

        With values a, b, c at equal distances, b the largest, its peak is at most (b - min(a, c)) / 8 above b. A
        neighbour that was stopped in its first half shows how slowly it began, not how high the peak is.
        """
        tried = self.by_size[size]
        margin, top = self.margin(size, best), tried[best]
        drops = [0.0]
        for neighbour in (tried[recipe] for recipe in self._neighbours(best) if recipe in tried):
            step = max(set(neighbour.margins) & set(top.margins), default=0)
            if 2 * step >= top.last_step > 0 and neighbour.outcome not in NO_MARGIN:
                drops.append(top.margins[step] - neighbour.margins[step])
        return margin < 0 and margin + max(drops) / 8 >= 0

    def _is_refuted(self, size: int) -> bool:
        running = any(record.outcome == RunStatus.RUNNING for record in self.by_size[size].values())
        if running or size in self.crashed or self.certified(size):
            return False
        return not any(self.next_recipes(size))

    def first_recipe(self, size: int) -> Recipe:
        """Where a size begins: what certified the nearest size, else what was best there, else the middle."""
        nearest = sorted(self.by_size, key=lambda other: abs(other - size))
        for other in nearest:
            if (record := self.certified(other)) is not None:
                return record.recipe
        for other in nearest:
            best = self.best(other)
            if best is not None and self.by_size[other][best].outcome != RunStatus.FAILED:
                return best
        dimensions = self.space.recipes
        return tuple(float((len(axis.values) - 1) // 2) if axis.ordered else 0.0 for axis in dimensions)


def forget_crashes(records: Sequence[TrialRecord], first: int) -> list[TrialRecord]:
    """The records, with crashes numbered below `first` as stale trials: a search that starts again repeats them.

    What made them crash may have been repaired since.
    """
    return [
        replace(record, outcome=STALE) if record.outcome == RunStatus.FAILED and record.number < first else record
        for record in records
    ]


def decide(space: Space, records: Sequence[TrialRecord], confirm_seeds: int) -> Proposal | Wait | Settled:
    """The next trial; Wait where none can start now; Settled where none is left.

    None is left where every question has its answer, or where only crashed sizes stand in the way.
    """
    state = SearchState(space, records, confirm_seeds)
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
        for seed in state.missing_seeds(certified, running=True):
            return Proposal(answer, certified.recipe, seed, "confirm")
    if (proposal := _refute(state, answer)) is not None:
        return proposal
    return Wait() if any(record.outcome == RunStatus.RUNNING for record in state.records) else Settled()


def _retry(state: SearchState, record: TrialRecord, answer: int | None) -> Proposal | None:
    """The same trial once more, unless it was retried already or no longer matters."""
    size, recipe, seed = record.size, record.recipe, record.seed
    trials = state.by_size.get(size, {}) if seed == 0 else {}
    repeated = recipe in trials or seed in state.confirmations.get((size, recipe), {})
    matters = size in state.open_below(answer) if seed == 0 else size == answer
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
    low, high = sizes[max(bottom, 0)].num_parameters, sizes[min(top, len(sizes) - 1)].num_parameters
    middle = math.sqrt(low * high)
    return next((index for index in inside if sizes[index].num_parameters >= middle), inside[-1])


def _refute(state: SearchState, answer: int | None) -> Proposal | None:
    """The next recipe of the most promising size that is still open below the answer.

    The widest sizes come first: once refuted, they imply the narrower ones. Of those, the one whose best recipe
    came closest is next; an untried size counts as promising as its nearest neighbour.
    """
    tried = [size for size in state.by_size if state.best(size) is not None and not state.certified(size)]
    promise: dict[int, float] = {}
    for size in state.widest_below(answer):
        source = size if size in tried else min(tried, key=lambda other: abs(other - size), default=None)
        best = None if source is None else state.best(source)
        promise[size] = -math.inf if source is None or best is None else state.margin(source, best)
    for size in sorted(promise, key=lambda index: -promise[index]):
        for recipe in state.next_recipes(size):
            return Proposal(size, recipe, 0, "refute")
    return None
