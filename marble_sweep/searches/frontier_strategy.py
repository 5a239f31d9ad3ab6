"""Which trial of a frontier to train next: a pure function of the space and the records of earlier trials.

The question is how low the loss of every size can be, so every trial is trained on the whole budget.

1. *Climb.* Every size begins from the best recipe of the nearest size, and moves to the better
   neighbour until its best recipe has none that is untried.
2. *Seeds.* Then the best recipe of every size is trained on fresh seeds.

A size is *tuned* if its best recipe has neighbours on both sides, in every ordered dimension, and all of them are
worse. At an edge of the searched values the loss might go on falling beyond it, and where a trial crashed twice nobody
knows. Every decision follows from the records alone, as in strategy.py, and so do retries.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from marble_sweep.runs.status import RunStatus
from marble_sweep.searches.fresh_seeds import Recipe
from marble_sweep.searches.space import Space
from marble_sweep.searches.strategy import (
    Proposal,
    Settled,
    Wait,
    middle_recipe,
    neighbours,
    sort_out,
)
from marble_sweep.searches.trial_record import NO_MARGIN, TrialRecord


def loss_of_trial(record: TrialRecord) -> float:
    """Held-out loss at the end; infinite where it diverged or was not measured, NaN where the trial crashed."""
    if record.outcome == RunStatus.FAILED:
        return math.nan
    diverged = record.loss is None or record.outcome in NO_MARGIN or not math.isfinite(record.loss)
    return math.inf if diverged else float(record.loss or 0.0)


@dataclass(frozen=True)
class SizeState:
    """What the records say about one size."""

    space: Space
    trained: dict[Recipe, TrialRecord]  # on the search's seed
    seeds: dict[tuple[Recipe, int], TrialRecord]  # on fresh ones, from 1

    @functools.cached_property
    def losses(self) -> dict[Recipe, float]:
        """By ended recipe; those that crashed are left out."""
        ended = [record for record in self.trained.values() if record.outcome != RunStatus.RUNNING]
        losses = {record.recipe: loss_of_trial(record) for record in ended}
        return {recipe: loss for recipe, loss in losses.items() if not math.isnan(loss)}

    @functools.cached_property
    def best(self) -> Recipe | None:
        """The recipe of the lowest loss on the search's seed; None while none has a finite one."""
        best = min(self.losses, key=lambda recipe: self.losses[recipe], default=None)
        return best if best is not None and math.isfinite(self.losses[best]) else None

    def next_recipes(self, first: Recipe) -> Iterator[Recipe]:
        """The recipes to try now: `first`, then the best one's neighbours; those of all while none has a loss."""
        if not self.trained:
            yield first
            return
        ended = [recipe for recipe, record in self.trained.items() if record.outcome != RunStatus.RUNNING]
        centres = ended if self.best is None else [self.best]
        for centre in centres:
            yield from (recipe for recipe in neighbours(self.space.recipes, centre) if recipe not in self.trained)

    @functools.cached_property
    def has_climbed(self) -> bool:
        """Whether nothing is running or left to try."""
        running = any(record.outcome == RunStatus.RUNNING for record in self.trained.values())
        return bool(self.trained) and not running and not any(self.next_recipes(()))

    @functools.cached_property
    def tuned(self) -> bool:
        """Whether its best recipe has worse neighbours on both sides, in every ordered dimension, and one is ordered.

        Dimensions with a single value do not count.
        """
        best, losses = self.best, self.losses
        if best is None or not self.has_climbed:
            return False
        nearby = list(neighbours(self.space.recipes, best))
        ordered = [axis for axis, kind in enumerate(self.space.recipes) if kind.ordered and len(kind.values) > 1]
        on_both_sides = all(sum(recipe[axis] != best[axis] for recipe in nearby) == 2 for axis in ordered)
        worse = all(losses.get(recipe, -math.inf) > losses[best] for recipe in nearby)
        return bool(ordered) and on_both_sides and worse

    def of_best(self, num_seeds: int) -> list[TrialRecord]:
        """The ended trials of the best recipe, one a seed; where fresh ones have a loss, they alone.

        The search's own seed is the one by which the recipe was selected, so its loss is flattered.
        """
        if self.best is None:
            return []
        fresh = [record for record in self.fresh(num_seeds) if math.isfinite(loss_of_trial(record))]
        return fresh or [self.trained[self.best]]

    def diverged(self, num_seeds: int) -> int:
        """The fresh seeds on which the best recipe has diverged."""
        return sum(record.outcome == RunStatus.DIVERGED for record in self.fresh(num_seeds))

    def fresh(self, num_seeds: int) -> list[TrialRecord]:
        """The trials of the best recipe on fresh seeds, those that run included."""
        assert self.best is not None
        keys = [(self.best, seed) for seed in range(1, num_seeds)]
        return [self.seeds[key] for key in keys if key in self.seeds]


class FrontierState:
    """What the records say about every size."""

    def __init__(self, space: Space, records: Sequence[TrialRecord], num_seeds: int) -> None:
        """`num_seeds` are those of every size's best recipe, the search's own included."""
        self.space = space
        self.num_seeds = num_seeds
        self.records, self.to_retry, self.crashed = sort_out(records)
        self.sizes = [SizeState(space, {}, {}) for _ in space.sizes]
        for record in self.records:
            of_size = self.sizes[record.size]
            if record.seed == 0:
                of_size.trained[record.recipe] = record
            else:
                of_size.seeds[record.recipe, record.seed] = record

    def first_recipe(self, size: int) -> Recipe:
        """Where a size begins: the best recipe of the nearest size that has one, else the middle."""
        known = {index: best for index, state in enumerate(self.sizes) if (best := state.best) is not None}
        nearest = min(known, key=lambda other: abs(other - size), default=None)
        return middle_recipe(self.space.recipes) if nearest is None else known[nearest]


def next_frontier_trial(state: FrontierState) -> Proposal | Wait | Settled:
    """The next trial; Wait where none can start now; Settled where none is left. The smallest sizes come first."""
    for record in state.to_retry:
        of_size = state.sizes[record.size]
        on_own_seed, on_fresh_seed = record.recipe in of_size.trained, (record.recipe, record.seed) in of_size.seeds
        if not (on_own_seed if record.seed == 0 else on_fresh_seed):
            return Proposal(record.size, record.recipe, record.seed, "retry")
    for size, of_size in enumerate(state.sizes):
        for recipe in of_size.next_recipes(state.first_recipe(size)):
            return Proposal(size, recipe, 0, "climb")
    for size, of_size in enumerate(state.sizes):
        if of_size.has_climbed and of_size.best is not None:
            for seed in range(1, state.num_seeds):
                if (of_size.best, seed) not in of_size.seeds:
                    return Proposal(size, of_size.best, seed, "seed")
    return Wait() if any(record.outcome == RunStatus.RUNNING for record in state.records) else Settled()
