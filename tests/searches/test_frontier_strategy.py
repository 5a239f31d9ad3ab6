"""The strategy of a frontier in worlds whose losses are known: what it trains, what is tuned, and when it ends."""

import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest
from worlds import make_space

from marble_sweep.searches.frontier_strategy import FrontierState, next_frontier_trial
from marble_sweep.searches.space import Space
from marble_sweep.searches.strategy import Proposal, Settled, Wait
from marble_sweep.searches.trial_record import TrialRecord

SPACE = make_space("model.hidden_dim=2,3,4,6", "optimizer.lr=tag(log,interval(1e-3,1))")
RECIPES = len(SPACE.recipes[0].values)  # half-decades: 7
SEEDS = 3
World = Callable[[int, float, int], float]  # width, log10 of lr, seed: the loss at the end


def valley(width: int, lr: float, seed: int) -> float:
    """Loss falls with width, and is lowest at the rate 10^-1.5 / √(width / 2), the nearest half-decade below."""
    best = -1.5 - 0.5 * math.log2(width / 2)
    return 6.0 - 0.2 * math.log2(width) + 0.3 * (lr - best) ** 2 + 0.001 * seed


def record_of(space: Space, number: int, plan: Proposal, world: World, outcome: str | None = None) -> TrialRecord:
    params = space.params(plan.size, plan.recipe)
    loss = world(int(params["model.hidden_dim"]), math.log10(float(params.get("optimizer.lr", 0.03))), plan.seed)
    outcome = outcome or ("diverged" if math.isinf(loss) else "below")
    return TrialRecord(
        number, plan.size, plan.recipe, plan.seed, outcome, {400: -loss}, loss=None if math.isinf(loss) else loss
    )


def train_all(
    world: World, *, space: Space = SPACE, seeds: int = SEEDS, outcomes: Sequence[str | None] = ()
) -> tuple[FrontierState, list[TrialRecord], list[str]]:
    """One worker until it is settled, where the first trials have the `outcomes` (None: of the world)."""
    records: list[TrialRecord] = []
    reasons = []
    while isinstance(plan := next_frontier_trial(FrontierState(space, records, seeds)), Proposal):
        assert len(records) < 100
        reasons.append(plan.reason)
        outcome = outcomes[len(records)] if len(records) < len(outcomes) else None
        records.append(record_of(space, len(records), plan, world, outcome))
    assert plan == Settled()
    return FrontierState(space, records, seeds), records, reasons


def test_every_size_is_tuned_and_trained_on_fresh_seeds() -> None:
    state, records, reasons = train_all(valley)
    for size, of_size in zip(SPACE.sizes, state.sizes, strict=True):
        width = int(dict(size.params)["model.hidden_dim"])
        losses = [valley(width, math.log10(float(rate)), 0) for rate in SPACE.recipes[0].values]
        assert of_size.best == (float(losses.index(min(losses))),)
        assert of_size.tuned
        assert [record.seed for record in of_size.of_best(SEEDS)] == [1, 2]
    assert reasons == sorted(reasons)  # all climbs come before the fresh seeds
    configurations = [(record.size, record.recipe, record.seed) for record in records]
    assert len(set(configurations)) == len(configurations)


def test_a_size_begins_with_the_best_recipe_of_the_nearest() -> None:
    _, records, _ = train_all(valley)
    first = {size: next(record for record in records if record.size == size) for size in range(len(SPACE.sizes))}
    for size in range(1, len(SPACE.sizes)):
        before = [record for record in records if record.size == size - 1 and record.seed == 0]
        assert first[size].recipe == min(before, key=lambda record: record.loss or 0.0).recipe
    assert len(records) < RECIPES * len(SPACE.sizes)


@pytest.mark.parametrize(("slope", "edge"), [(-1.0, RECIPES - 1.0), (1.0, 0.0)])
def test_a_best_recipe_at_the_edge_is_not_tuned(slope: float, edge: float) -> None:
    state, _, _ = train_all(lambda width, lr, seed: 10.0 + slope * lr)
    for of_size in state.sizes:
        assert of_size.best == (edge,)
        assert of_size.has_climbed
        assert not of_size.tuned


def test_equal_neighbours_do_not_tune() -> None:
    state, _, _ = train_all(lambda width, lr, seed: 5.0)
    assert not any(of_size.tuned for of_size in state.sizes)


def test_a_space_without_a_recipe_is_not_tuned() -> None:
    state, records, _ = train_all(valley, space=make_space("model.hidden_dim=2,3"))
    assert len(records) == 2 * SEEDS
    assert not any(of_size.tuned for of_size in state.sizes)


def test_other_choices_must_be_worse_too() -> None:
    """Of an unordered dimension every other choice is a neighbour."""
    space = make_space("model.hidden_dim=2,3", "optimizer.lr=tag(log,interval(1e-2,1))", "precision=bf16,fp32")
    state, records, _ = train_all(valley, space=space)
    tried = {record.recipe for record in records if record.size == 0}
    best = state.sizes[0].best
    assert best is not None
    assert {(best[0], choice) for choice in (0.0, 1.0)} <= tried
    assert not state.sizes[0].tuned  # bf16 and fp32 are equal in this world


def test_diverged_recipes_are_worse_and_lead_on() -> None:
    """The middle rate and all above it diverge: the climb goes to the edge at which training is possible."""
    state, _, _ = train_all(lambda width, lr, seed: math.inf if lr > -2.2 else 6.0 + (lr + 2.5) ** 2)
    for of_size in state.sizes:
        assert of_size.best == (1.0,)
        assert of_size.tuned
    state, records, _ = train_all(lambda width, lr, seed: math.inf)
    assert len(records) == RECIPES * len(SPACE.sizes)
    assert not any(of_size.tuned or of_size.of_best(SEEDS) for of_size in state.sizes)


def test_a_fresh_seed_that_diverges_is_counted() -> None:
    state, _, _ = train_all(lambda width, lr, seed: math.inf if seed == 2 else valley(width, lr, seed))
    for of_size in state.sizes:
        assert of_size.diverged(SEEDS) == 1
        assert [record.seed for record in of_size.of_best(SEEDS)] == [1]


def test_without_fresh_seeds_the_search_seed_counts() -> None:
    state, _, reasons = train_all(valley, seeds=1)
    assert set(reasons) == {"climb"}
    assert all(record.seed == 0 for of_size in state.sizes for record in of_size.of_best(1))


def test_crashes_are_repeated_once_and_say_nothing() -> None:
    state, records, reasons = train_all(valley, outcomes=["failed", None, "failed", "failed"])
    assert reasons[1] == "retry"
    assert (records[0].recipe, records[0].size) == (records[1].recipe, records[1].size)
    assert reasons[3] == "retry"  # and then no third time
    twice = [record for record in records if record.recipe == records[2].recipe and record.size == records[2].size]
    assert len(twice) == 2
    assert not state.sizes[0].tuned  # a neighbour of its best recipe crashed
    assert state.crashed == {0}


def test_stale_trials_are_repeated() -> None:
    _, records, reasons = train_all(valley, outcomes=["stale", "stale"])
    assert reasons[:3] == ["climb", "retry", "retry"]
    assert len({(record.size, record.recipe) for record in records[:3]}) == 1


@pytest.mark.parametrize("workers", [2, 5])
def test_several_workers_train_nothing_twice_and_find_the_same(workers: int) -> None:
    alone, _, _ = train_all(valley)
    chance = random.Random(workers)
    records: list[TrialRecord] = []
    running: dict[int, Proposal] = {}
    numbers = itertools.count()
    while True:
        decision = next_frontier_trial(FrontierState(SPACE, records, SEEDS))
        if isinstance(decision, Proposal) and len(running) < workers:
            number = next(numbers)
            running[number] = decision
            records.append(TrialRecord(number, decision.size, decision.recipe, decision.seed, "running"))
            continue
        if not running:
            break
        ended = chance.choice(list(running))
        records[ended] = record_of(SPACE, ended, running.pop(ended), valley)
    assert decision == Settled()
    configurations = [(record.size, record.recipe, record.seed) for record in records]
    assert len(set(configurations)) == len(configurations)
    together = FrontierState(SPACE, records, SEEDS)
    assert [of_size.best for of_size in together.sizes] == [of_size.best for of_size in alone.sizes]
    assert all(of_size.tuned for of_size in together.sizes)


def test_it_waits_for_the_last_trials() -> None:
    _, records, _ = train_all(valley)
    last = records[-1]
    running = [*records[:-1], TrialRecord(last.number, last.size, last.recipe, last.seed, "running")]
    assert next_frontier_trial(FrontierState(SPACE, running, SEEDS)) == Wait()
