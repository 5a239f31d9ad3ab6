"""Which configuration to train next: a pure function of the space and of what was tried.

The number of parameters is known before training; only whether a size can beat the threshold must be measured,
and that depends on the recipe, above all on the learning rate. So:

1. *Bracket.* Sizes are probed by bisection on the logarithm of their parameters, with the recipe that served last.
   Once one certifies, nothing that is no smaller is trained any more.
2. *Confirm.* The smallest certified size trains again on fresh seeds. A recipe that fails one is rejected.
3. *Refute.* Every smaller size climbs: from the best recipe known, its recipe moves to the better neighbour until
   the best one has only worse neighbours, by so much that not even a parabola through them reaches the threshold.
   A size is then *refuted*. One that is narrower than a refuted size of the same depth is *implied*: it is taken
   as refuted too. If a size certifies instead, the search is back at 2 with a smaller answer.

The search is settled when the answer is confirmed and every smaller size is refuted or implied. Since every decision
is drawn from the records alone, any number of workers can make them, and a search that was interrupted goes on.

A crash says nothing of a size or a recipe. A trial that crashed is repeated, once. If it crashes again its size is
*crashed*: it can still certify with another recipe, and a wider size can imply it, but it is not refuted.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from marble_sweep.runs.status import RunStatus
from marble_sweep.searches.space import Space

WHOLE = 1.0  # between neighbouring recipes
HALF = 0.5  # between a near miss and its closer neighbours
FAILURES_BEFORE_LARGEST = 2
# Outcomes whose last look says nothing of where training would have led.
NO_MARGIN = (RunStatus.DIVERGED, RunStatus.FAILED)
Recipe = tuple[float, ...]  # a position in each recipe dimension's values


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the strategy sees it."""

    number: int
    size: int  # index in Space.sizes
    recipe: Recipe
    seed: int  # 0: of the search; 1, 2, …: the fresh ones of a confirmation
    outcome: str  # running, certified, refuted, pruned, diverged, too_slow, failed, lost
    margins: dict[int, float] = field(default_factory=dict)  # by step: nats per token above what certifies

    @property
    def last_step(self) -> int:
        return max(self.margins, default=0)

    @property
    def margin(self) -> float:
        """At the last look; -inf where there was none, the loss diverged or the trial crashed."""
        return self.margins[self.last_step] if self.margins and self.outcome not in NO_MARGIN else -math.inf


@dataclass(frozen=True)
class Proposal:
    size: int
    recipe: Recipe
    seed: int
    reason: str  # probe, confirm, refute, again


@dataclass(frozen=True)
class Wait:
    """Nothing useful can be started before a running trial ends."""


@dataclass(frozen=True)
class Settled:
    """Nothing is left to do."""


class SearchState:
    """What the records say of each size."""

    def __init__(self, space: Space, records: Sequence[TrialRecord], confirm_seeds: int) -> None:
        self.space = space
        self.confirm_seeds = confirm_seeds
        self.records: list[TrialRecord] = []
        self.stale: list[TrialRecord] = []  # whose worker died, and the first crash of each trial
        latest: dict[tuple[int, Recipe, int], TrialRecord] = {}
        crashed_before = set()
        for each in records:
            what = each.size, each.recipe, each.seed
            first_crash = each.outcome == RunStatus.FAILED and what not in crashed_before
            if first_crash:
                crashed_before.add(what)
            if each.outcome != "stale":
                latest[what] = each
            (self.stale if first_crash or each.outcome == "stale" else self.records).append(each)
        # Unless repeated since.
        self.crashed = {each.size for each in latest.values() if each.outcome == RunStatus.FAILED}
        self.by_size: dict[int, dict[Recipe, TrialRecord]] = {}
        self.confirmations: dict[tuple[int, Recipe], dict[int, TrialRecord]] = {}
        for each in self.records:
            if each.seed == 0:
                self.by_size.setdefault(each.size, {})[each.recipe] = each
            else:
                self.confirmations.setdefault((each.size, each.recipe), {})[each.seed] = each
        self.refuted = {size for size in self.by_size if self._is_refuted(size)}
        self.refuted_by_loss = {
            size
            for size in self.refuted
            if all(each.outcome != RunStatus.TOO_SLOW for each in self.by_size[size].values())
        }

    # ------------------------------------------------------------------ what is known of a size

    def certified(self, size: int, *, running: bool = False) -> TrialRecord | None:
        """The record by which a size is certified: no confirmation of its recipe has failed, it was quickest.

        With `running`, one that is under way counts as well. A recipe that cannot be confirmed because its
        confirmation crashes, twice, does not count either: another recipe may serve.
        """
        good = (RunStatus.CERTIFIED, RunStatus.RUNNING) if running else (RunStatus.CERTIFIED,)
        found = [
            each
            for each in self.by_size.get(size, {}).values()
            if each.outcome in good and not self._rejected(size, each.recipe)
        ]
        return max(found, key=lambda each: (each.outcome == RunStatus.CERTIFIED, -each.last_step), default=None)

    def _rejected(self, size: int, recipe: Recipe) -> bool:
        confirmations = self.confirmations.get((size, recipe), {}).values()
        return any(each.outcome not in (RunStatus.CERTIFIED, RunStatus.RUNNING) for each in confirmations)

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
        """The worst margin of a recipe, over the search's seed and those that confirmed."""
        record = self.by_size[size][recipe]
        others = self.confirmations.get((size, recipe), {}).values()
        failed = [
            each.margin
            for each in others
            if each.outcome not in (RunStatus.CERTIFIED, RunStatus.RUNNING, RunStatus.FAILED)
        ]
        return min([record.margin, *failed])

    def implied(self, size: int) -> bool:
        """Whether a wider size of the same depth is refuted by its losses; slowness implies nothing."""
        return any(self.space.sizes[size].narrower_than(self.space.sizes[other]) for other in self.refuted_by_loss)

    def smallest(self, *, running: bool = False) -> int | None:
        """The smallest certified size; with `running`, trials under way are taken to succeed."""
        return min((size for size in self.by_size if self.certified(size, running=running)), default=None)

    def open_below(self, top: int | None) -> list[int]:
        """The sizes that have fewer parameters than `top` (all where None) and are neither refuted nor implied."""
        sizes = self.space.sizes
        smaller = [
            index for index, size in enumerate(sizes) if top is None or size.num_parameters < sizes[top].num_parameters
        ]
        return [index for index in smaller if index not in self.refuted and not self.implied(index)]

    def widest_below(self, top: int | None) -> list[int]:
        """The open sizes below `top` that are narrower than no other of them: a refuted one settles those that are.

        One that crashed cannot be refuted, so the narrower ones do not wait for it.
        """
        sizes, still_open = self.space.sizes, self.open_below(top)
        wider = [size for size in still_open if size not in self.crashed]
        return [one for one in still_open if not any(sizes[one].narrower_than(sizes[other]) for other in wider)]

    # ------------------------------------------------------------------ the climb over recipes

    def best(self, size: int) -> Recipe | None:
        """The ended recipe that no other of this size beats at the last look that both had."""
        ended = [each for each in self.by_size.get(size, {}).values() if each.outcome != RunStatus.RUNNING]
        leader: TrialRecord | None = None
        for each in ended:
            if leader is None or self._beats(each, leader):
                leader = each
        return None if leader is None else leader.recipe

    def _beats(self, first: TrialRecord, second: TrialRecord) -> bool:
        common = set(first.margins) & set(second.margins)
        if common and first.outcome not in NO_MARGIN and second.outcome not in NO_MARGIN:
            return first.margins[max(common)] > second.margins[max(common)]
        return first.margin > second.margin

    def next_recipes(self, size: int) -> Iterator[Recipe]:
        """The recipes that must still be tried before the size is refuted; those under way are left out."""
        best = self.best(size)
        if best is None:
            if not self.by_size.get(size):
                yield self.first_recipe(size)
            return
        tried = self.by_size[size]
        neighbours = list(self._neighbours(best))
        untried = [recipe for recipe in neighbours if recipe not in tried]
        yield from untried
        waiting = any(tried[each].outcome == RunStatus.RUNNING for each in neighbours if each in tried)
        if not untried and not waiting and self._near_miss(size, best):
            yield from (recipe for recipe in self._neighbours(best, closer=True) if recipe not in tried)

    def _neighbours(self, recipe: Recipe, *, closer: bool = False) -> Iterator[Recipe]:
        """The recipes that differ in one dimension: by a step where it is ordered, else by any other choice.

        A step is a whole one; `closer`, or from between two values, a half one, in continuous dimensions alone.
        """
        for place, dimension in enumerate(self.space.recipes):
            here, last = recipe[place], len(dimension.values) - 1
            if dimension.ordered:
                step = HALF if closer or here % WHOLE else WHOLE
                fits = dimension.is_continuous or step == WHOLE
                positions = [at for at in (here + step, here - step) if 0 <= at <= last and fits]
            else:
                positions = [float(at) for at in range(last + 1) if at != here and not closer]
            for at in positions:
                yield (*recipe[:place], at, *recipe[place + 1 :])

    def _near_miss(self, size: int, best: Recipe) -> bool:
        """Whether a parabola through the best recipe and its neighbours might reach the threshold in between.

        With values a, b, c at equal distances, b the largest, its peak is at most (b - min(a, c)) / 8 above b. A
        neighbour that was given up before half of the way says how slowly it began, not how high the peak is.
        """
        tried = self.by_size[size]
        here, top = self.margin(size, best), tried[best]
        lower = [0.0]
        for each in (tried[recipe] for recipe in self._neighbours(best) if recipe in tried):
            step = max(set(each.margins) & set(top.margins), default=0)
            if 2 * step >= top.last_step > 0 and each.outcome not in NO_MARGIN:
                lower.append(top.margins[step] - each.margins[step])
        return here < 0 and here + max(lower) / 8 >= 0

    def _is_refuted(self, size: int) -> bool:
        running = any(each.outcome == RunStatus.RUNNING for each in self.by_size[size].values())
        if running or size in self.crashed or self.certified(size):
            return False
        return not any(self.next_recipes(size))

    def first_recipe(self, size: int) -> Recipe:
        """Where a size begins: with what certified the nearest size, or was best there, or in the middle."""
        nearest = sorted(self.by_size, key=lambda other: abs(other - size))
        for other in nearest:
            if (record := self.certified(other)) is not None:
                return record.recipe
        for other in nearest:
            best = self.best(other)
            if best is not None and self.by_size[other][best].outcome != RunStatus.FAILED:
                return best
        return tuple(float((len(each.values) - 1) // 2) if each.ordered else 0.0 for each in self.space.recipes)


def forget_crashes(records: Sequence[TrialRecord], first: int) -> list[TrialRecord]:
    """The records with crashes numbered below `first` as lost ones: a search that starts again repeats them.

    What made them crash may have been mended since.
    """
    return [
        replace(each, outcome="stale") if each.outcome == RunStatus.FAILED and each.number < first else each
        for each in records
    ]


def decide(space: Space, records: Sequence[TrialRecord], confirm_seeds: int) -> Proposal | Wait | Settled:
    """The next trial, or that there is none to start for now, or none at all.

    Nothing at all is left where the search is settled, or where only crashed sizes are between it and that.
    """
    state = SearchState(space, records, confirm_seeds)
    answer = state.smallest()
    for lost in state.stale:
        if proposal := _again(state, lost, answer):
            return proposal
    hoped = state.smallest(running=True)  # trials under way are taken to succeed
    if (probe := next_probe(state, hoped)) is not None:
        return Proposal(probe, state.first_recipe(probe), 0, "probe")
    if answer is not None:
        record = state.certified(answer)
        assert record is not None
        for seed in state.missing_seeds(record, running=True):
            return Proposal(answer, record.recipe, seed, "confirm")
    if (proposal := _refute(state, answer)) is not None:
        return proposal
    return Wait() if any(each.outcome == RunStatus.RUNNING for each in state.records) else Settled()


def _again(state: SearchState, lost: TrialRecord, answer: int | None) -> Proposal | None:
    """A trial that was lost or has crashed once, unless it was taken up already or no longer matters."""
    trials = state.by_size.get(lost.size, {}) if lost.seed == 0 else {}
    repeated = lost.recipe in trials or lost.seed in state.confirmations.get((lost.size, lost.recipe), {})
    matters = lost.size in state.open_below(answer) if lost.seed == 0 else lost.size == answer
    return Proposal(lost.size, lost.recipe, lost.seed, "retry") if matters and not repeated else None


def next_probe(state: SearchState, hoped: int | None) -> int | None:
    """The next size of the bisection; None once the bracket is closed.

    Its lower end is the largest size below `hoped` that failed with the recipe it would be probed with. While
    nothing has certified, the bracket is open at the top: after two failures the largest size is next.
    """
    sizes = state.space.sizes
    top = len(sizes) if hoped is None else hoped
    probed = {size for size, tried in state.by_size.items() if state.first_recipe(size) in tried}
    failed = [
        size for size in probed if size < top and size not in state.crashed and not state.certified(size, running=True)
    ]
    bottom = max(failed, default=-1)
    inside = [index for index in state.open_below(hoped) if index > bottom and index not in probed]
    if not inside:
        return None
    if hoped is None and len(failed) >= FAILURES_BEFORE_LARGEST:
        return inside[-1]
    low, high = sizes[max(bottom, 0)].num_parameters, sizes[min(top, len(sizes) - 1)].num_parameters
    middle = math.sqrt(low * high)
    return next((index for index in inside if sizes[index].num_parameters >= middle), inside[-1])


def _refute(state: SearchState, answer: int | None) -> Proposal | None:
    """The next recipe of the most promising size that still stands between the answer and its proof.

    The widest sizes come first: a refuted one settles all that are narrower. Among them the one whose best recipe
    came closest; one not tried yet is as promising as the size next to it.
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
