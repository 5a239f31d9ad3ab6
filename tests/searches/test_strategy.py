"""The strategy on worlds whose answer is known."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import SEEDS, SPACE, World, answer, hill, make_space, search, train

from marble_sweep.searches.space import Space
from marble_sweep.searches.strategy import Proposal, SearchState, Settled, Wait, decide
from marble_sweep.searches.trial_record import TrialRecord


@pytest.mark.parametrize("boundary", range(2, 17))
def test_it_finds_the_smallest_width(boundary: int) -> None:
    records, _ = search(SPACE, hill(boundary - 0.01))
    assert answer(SPACE, records) == f"0L{boundary}D"


@pytest.mark.parametrize("peak", [-3.0, -2.5, -2.0, -1.0, -0.5, 0.0])
def test_it_finds_the_learning_rate_too(peak: float) -> None:
    records, _ = search(SPACE, hill(4.99, peak))
    assert answer(SPACE, records) == "0L5D"


def test_a_rate_between_two_of_the_grid_is_found_where_it_may_matter() -> None:
    # At 0.0562 the margin is 0.004; at its neighbours on the grid, a quarter of a decade off, it is below 0.
    records, _ = search(SPACE, lambda layers, width, lr, seed: hill(4.99, -1.25)(layers, width, lr, seed) + 0.003)
    assert answer(SPACE, records) == "0L5D"
    assert {record.recipe for record in records if record.outcome == "certified" and record.seed == 0} >= {(3.5,)}


def test_depth_that_helps_is_found() -> None:
    records, _ = search(SPACE, hill(5.5, depth=-0.1))
    assert answer(SPACE, records) == "2L4D"  # 0.3 · log2(4 / 5.5) + 2 · 0.1 = 0.06


def test_nothing_certifies() -> None:
    records, reasons = search(SPACE, lambda *_: -0.05)
    assert answer(SPACE, records) is None
    state = SearchState(SPACE, records, SEEDS)
    assert {str(SPACE.sizes[size]) for size in state.refuted} == {"0L16D", "1L16D", "2L16D"}
    assert state.open_below(None) == []
    assert "confirm" not in reasons


def test_everything_certifies() -> None:
    records, _ = search(SPACE, lambda *_: 1.0)
    assert answer(SPACE, records) == "0L2D"
    assert len(records) < 10


def test_no_smaller_size_is_left_open_and_no_larger_one_trained() -> None:
    records, _ = search(SPACE, hill(4.99))
    state = SearchState(SPACE, records, SEEDS)
    top = state.smallest()
    assert top is not None
    assert state.confirmed(top)
    assert state.open_below(top) == []
    proven = math.inf
    for record in records:
        assert record.seed != 0 or SPACE.sizes[record.size].num_parameters < proven
        if record.outcome == "certified":
            proven = min(proven, SPACE.sizes[record.size].num_parameters)


def test_a_refuted_size_has_only_worse_neighbours() -> None:
    records, _ = search(SPACE, hill(4.99, peak=-1.0))
    state = SearchState(SPACE, records, SEEDS)
    assert state.refuted
    for size in state.refuted:
        best = state.best(size)
        assert best == (4.0,)  # lr 0.1
        assert {(3.0,), (5.0,)} <= set(state.by_size[size])


def test_a_lucky_seed_is_not_an_answer() -> None:
    def world(layers: int, width: int, lr: float, seed: int) -> float:
        lucky = width == 4 and layers == 0 and seed != 2
        return 0.02 if lucky else hill(4.99)(layers, width, lr, seed)

    records, reasons = search(SPACE, world)
    assert answer(SPACE, records) == "0L5D"
    failed = [record for record in records if record.seed == 2 and record.outcome == "below"]
    assert {str(SPACE.sizes[record.size]) for record in failed} == {"0L4D"}
    assert reasons.count("confirm") >= 2 + SEEDS


def test_a_narrower_size_is_implied_by_a_refuted_one_of_its_depth_alone() -> None:
    records, _ = search(SPACE, hill(9.99, depth=0.05))
    state = SearchState(SPACE, records, SEEDS)
    refuted = {str(SPACE.sizes[size]) for size in state.refuted}
    assert {"0L9D", "1L9D", "2L9D"} <= refuted
    implied = {str(SPACE.sizes[size]) for size in range(len(SPACE.sizes)) if state.implied(size)}
    assert {"0L2D", "1L2D", "2L8D"} <= implied
    assert "0L10D" not in implied


def test_slowness_implies_nothing() -> None:
    space = make_space("model.hidden_dim=2,4", "precision=bf16,fp32")
    recipes = ((0.0,), (1.0,))
    for last, implied in (("too_slow", False), ("below", True)):
        tried = [
            TrialRecord(number, 1, recipe, 0, kind, {400: -0.1})
            for number, (recipe, kind) in enumerate(zip(recipes, ("below", last), strict=True))
        ]
        state = SearchState(space, tried, SEEDS)
        assert state.refuted == {1}
        assert state.implied(0) is implied


def test_a_single_size_and_no_recipe() -> None:
    space = make_space("model.num_layers=1")
    assert answer(space, search(space, lambda *_: 1.0)[0]) == "the only size"
    assert answer(space, search(space, lambda *_: -1.0)[0]) is None


def test_every_choice_of_an_unordered_recipe_is_tried() -> None:
    space = make_space("model.hidden_dim=2,4", "precision=bf16,fp32,mixed")
    records, _ = search(space, lambda layers, width, lr, seed: -1.0)
    tried = {record.recipe for record in records if space.sizes[record.size].params == (("model.hidden_dim", 4),)}
    assert tried == {(0.0,), (1.0,), (2.0,)}


def test_a_stale_trial_is_retried_first_and_once() -> None:
    records, _ = search(SPACE, hill(4.99))
    stale = TrialRecord(6, records[6].size, records[6].recipe, records[6].seed, "stale")
    plan = decide(SPACE, [*records[:6], stale], SEEDS)
    assert isinstance(plan, Proposal)
    assert (plan.size, plan.recipe, plan.seed, plan.reason) == (stale.size, stale.recipe, stale.seed, "retry")
    # Once retried it plays no further part.
    after = decide(SPACE, [*records[:6], stale, records[6]], SEEDS)
    assert after == decide(SPACE, records[:7], SEEDS)


def test_a_crashed_confirmation_is_repeated_once() -> None:
    size = SPACE.sizes.index(next(size for size in SPACE.sizes if str(size) == "0L4D"))
    records, _ = search(SPACE, hill(3.99))
    first = next(record for record in records if record.seed == 1)
    assert first.size == size
    crash = TrialRecord(len(records), size, first.recipe, 1, "failed")
    rest = [record for record in records if record is not first]
    plan = decide(SPACE, [*rest, crash], SEEDS)
    assert plan == Proposal(size, first.recipe, 1, "retry")
    state = SearchState(SPACE, [*rest, crash, first], SEEDS)
    assert state.confirmed(size)
    # A second crash leaves the recipe unconfirmed and the size unsettled.
    state = SearchState(SPACE, [*rest, crash, crash], SEEDS)
    assert state.certified(size) is None
    assert size not in state.refuted
    assert size in state.open_below(None)


# ------------------------------------------------------------------------------------------------- the climb


def test_crashed_and_diverged_recipes_are_worse_than_any_other() -> None:
    size = len(SPACE.sizes) - 1
    fine = TrialRecord(0, size, (3.0,), 0, "below", {100: -0.5, 400: -0.3})
    for outcome, margins in (("failed", {}), ("failed", {100: 0.5}), ("diverged", {100: 0.5})):
        other = TrialRecord(1, size, (4.0,), 0, outcome, margins)
        assert SearchState(SPACE, [fine, other, other], SEEDS).best(size) == (3.0,)


def test_a_rejected_recipe_counts_with_the_seed_that_rejected_it() -> None:
    size = 0
    lucky = TrialRecord(0, size, (3.0,), 0, "certified", {200: 0.01})
    failed = TrialRecord(1, size, (3.0,), 1, "below", {200: -0.3, 400: -0.2})
    around = [
        TrialRecord(2, size, (2.0,), 0, "below", {200: -0.1}),
        TrialRecord(3, size, (4.0,), 0, "below", {200: -0.1}),
    ]
    state = SearchState(SPACE, [lucky, failed, *around], SEEDS)
    assert state.margin(size, (3.0,)) == -0.2
    # By its lucky seed alone it would not be a near miss, and the quarter-decades beside it not worth a trial.
    assert list(state.next_recipes(size)) == []
    near = TrialRecord(1, size, (3.0,), 1, "below", {200: -0.3, 400: -0.005})
    assert list(SearchState(SPACE, [lucky, near, *around], SEEDS).next_recipes(size)) == [(3.5,), (2.5,)]


def test_recipes_are_compared_at_the_last_common_evaluation() -> None:
    size = len(SPACE.sizes) - 1
    early = TrialRecord(0, size, (3.0,), 0, "pruned", {100: -0.4, 200: -0.3})
    late = TrialRecord(1, size, (4.0,), 0, "below", {100: -0.5, 200: -0.35, 400: -0.1})
    assert SearchState(SPACE, [early, late], SEEDS).best(size) == (3.0,)


def recipes_tried(*tried: tuple[float, dict[int, float]]) -> list[TrialRecord]:
    """Refuted records of the smallest size, by position of the learning rate."""
    return [TrialRecord(number, 0, (at,), 0, "below", margins) for number, (at, margins) in enumerate(tried)]


def test_between_two_rates_the_climb_takes_half_steps() -> None:
    flat = {200: -0.2, 400: -0.1}
    around = recipes_tried((3.0, flat), (4.0, flat), (3.5, {200: -0.1, 400: -0.05}))
    assert list(SearchState(SPACE, around, SEEDS).next_recipes(0)) == []


def test_a_neighbour_given_up_early_makes_no_near_miss() -> None:
    best = (3.0, {50: -0.2, 200: -0.06, 400: -0.03})
    slow = {50: -2.1}
    assert list(SearchState(SPACE, recipes_tried(best, (2.0, slow), (4.0, slow)), SEEDS).next_recipes(0)) == []
    steep = {200: -0.4}
    assert list(SearchState(SPACE, recipes_tried(best, (2.0, slow), (4.0, steep)), SEEDS).next_recipes(0)) == [
        (3.5,),
        (2.5,),
    ]


def test_a_size_with_a_running_trial_is_not_refuted() -> None:
    worse = {400: -0.5}
    ended = recipes_tried((3.0, {400: -0.2}), (2.0, worse))
    assert SearchState(SPACE, [*ended, TrialRecord(2, 0, (4.0,), 0, "running")], SEEDS).refuted == set()
    assert SearchState(SPACE, [*ended, TrialRecord(2, 0, (4.0,), 0, "below", worse)], SEEDS).refuted == {0}


def test_the_bisection_begins_in_the_middle_of_the_logarithms() -> None:
    plan = decide(SPACE, [], SEEDS)
    assert isinstance(plan, Proposal)
    middle = math.sqrt(SPACE.sizes[0].num_parameters * SPACE.sizes[-1].num_parameters)
    assert SPACE.sizes[plan.size - 1].num_parameters < middle <= SPACE.sizes[plan.size].num_parameters


def test_after_two_failures_the_largest_size_is_next() -> None:
    records, _ = search(SPACE, lambda *_: -0.05)
    assert records[1].size < records[2].size == len(SPACE.sizes) - 1


def test_the_size_that_came_closest_is_refuted_first() -> None:
    answer = next(index for index, size in enumerate(SPACE.sizes) if str(size) == "0L3D")
    proven = [
        TrialRecord(0, answer, (3.0,), 0, "certified", {100: 0.1}),
        *(TrialRecord(seed, answer, (3.0,), seed, "certified", {100: 0.1}) for seed in (1, 2)),
    ]
    for closest in range(answer):  # 0L2D, 1L2D, 2L2D
        far = [
            TrialRecord(3 + size, size, (3.0,), 0, "below", {400: -0.1 if size == closest else -0.3})
            for size in range(answer)
        ]
        plan = decide(SPACE, [*proven, *far], SEEDS)
        assert isinstance(plan, Proposal)
        assert (plan.size, plan.reason) == (closest, "refute")


def test_the_recipe_that_certified_quickest_is_confirmed() -> None:
    slow, quick = {100: -0.1, 400: 0.1}, {100: 0.05}
    for first, second in ((slow, quick), (quick, slow)):
        tried = [TrialRecord(0, 0, (3.0,), 0, "certified", first), TrialRecord(1, 0, (4.0,), 0, "certified", second)]
        certified = SearchState(SPACE, tried, SEEDS).certified(0)
        assert certified is not None
        assert certified.margins == quick


# ------------------------------------------------------------------------------------- several workers


def test_a_second_worker_assumes_that_the_first_ones_probe_succeeds() -> None:
    first = decide(SPACE, [], SEEDS)
    assert isinstance(first, Proposal)
    second = decide(SPACE, [TrialRecord(0, first.size, first.recipe, 0, "running")], SEEDS)
    assert isinstance(second, Proposal)
    assert second.reason == "probe"
    assert second.size < first.size


def test_a_stale_trial_that_no_longer_matters_is_not_retried() -> None:
    stale = TrialRecord(0, 5, (3.0,), 0, "stale")
    smaller = TrialRecord(1, 2, (3.0,), 0, "certified", {100: 0.1})
    plan = decide(SPACE, [stale, smaller], SEEDS)
    assert isinstance(plan, Proposal)
    assert (plan.size, plan.reason) != (5, "retry")
    assert plan.size <= 2


def together(space: Space, world: World, workers: int, order: random.Random) -> list[TrialRecord]:
    """Records of workers that start as soon as they can and end in any order."""
    records: dict[int, TrialRecord] = {}
    running: dict[int, Proposal] = {}
    while True:
        seen = [records[number] for number in sorted(records)]
        plan = decide(space, seen, SEEDS)
        if isinstance(plan, Proposal) and len(running) < workers:
            number = len(records)
            running[number] = plan
            records[number] = TrialRecord(number, plan.size, plan.recipe, plan.seed, "running")
            continue
        if not running:
            assert plan == Settled()
            return seen
        assert isinstance(plan, Proposal | Wait)
        number = order.choice(sorted(running))
        records[number] = train(space, world, number, running.pop(number))


@settings(max_examples=60, deadline=None)
@given(
    boundary=st.integers(2, 16),
    peak=st.sampled_from([-2.5, -1.5, -0.5]),
    depth=st.sampled_from([-0.05, 0.0, 0.05]),
    workers=st.integers(1, 5),
    seed=st.integers(0, 10**6),
)
def test_any_number_of_workers_comes_to_the_same_answer_and_repeats_nothing(
    boundary: int, peak: float, depth: float, workers: int, seed: int
) -> None:
    world = hill(boundary - 0.01, peak, depth)
    records = together(SPACE, world, workers, random.Random(seed))
    alone, _ = search(SPACE, world)
    assert answer(SPACE, records) == answer(SPACE, alone)
    tried = [(record.size, record.recipe, record.seed) for record in records]
    assert len(set(tried)) == len(tried)


def test_a_decision_depends_on_the_records_alone() -> None:
    records, _ = search(SPACE, hill(4.99))
    for end in range(len(records)):
        plan = decide(SPACE, records[:end], SEEDS)
        assert isinstance(plan, Proposal)
        assert (plan.size, plan.recipe, plan.seed) == (records[end].size, records[end].recipe, records[end].seed)


def test_the_known_world_has_the_answer_that_the_tests_claim() -> None:
    """An oracle of the oracle: all sizes and rates by brute force."""
    world = hill(5.5, depth=-0.1)
    good = [
        size.num_parameters
        for size, lr in itertools.product(SPACE.sizes, [step / 10 for step in range(-30, 1)])
        if world(int(dict(size.params)["model.num_layers"]), int(dict(size.params)["model.hidden_dim"]), lr, 0) >= 0
    ]
    assert min(good) == 1000 * 4 + 2 * 4


@given(st.lists(st.integers(0, len(SPACE.sizes) - 1), min_size=1, max_size=6, unique=True), st.data())
def test_a_size_begins_with_what_certified_the_nearest_one(certified: list[int], data: st.DataObject) -> None:
    """Of two that are as near, the one that was tried first."""
    records = [
        TrialRecord(number, size, (float(number),), 0, "certified", {400: 0.1}) for number, size in enumerate(certified)
    ]
    size = data.draw(st.integers(0, len(SPACE.sizes) - 1))
    nearest = min(records, key=lambda record: abs(record.size - size))
    assert SearchState(SPACE, records, SEEDS).first_recipe(size) == nearest.recipe
