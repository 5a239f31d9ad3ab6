"""The strategy on worlds whose answer is known."""

import itertools
import math
import random
from collections.abc import Callable

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from marble_sweep.search.space import Space, build, parse
from marble_sweep.search.strategy import Attempt, Proposal, Settled, State, Wait, decide

STEPS = (100, 200, 400)
SEEDS = 2  # that confirm
World = Callable[[int, int, float, int], float]  # layers, width, log10 of lr, seed: the margin at the last step


def make_space(*words: str) -> Space:
    default = ("model.num_layers=range(0,3)", "model.hidden_dim=range(2,17)", "optimizer.lr=tag(log,interval(1e-3,1))")
    dimensions, _ = parse(words or default, OverridesParser.create())

    def num_parameters(params: dict) -> int:
        layers, width = params.get("model.num_layers", 0), params.get("model.hidden_dim", 2)
        return 1000 * width + layers * width

    return build(dimensions, num_parameters)


SPACE = make_space()


def train(space: Space, world: World, number: int, plan: Proposal) -> Attempt:
    """What a trial of this plan comes to: certified at the first look above 0."""
    params = space.params(plan.size, plan.recipe)
    layers, width = params.get("model.num_layers", 0), params.get("model.hidden_dim", 2)
    last = world(layers, width, math.log10(params.get("optimizer.lr", 0.03)), plan.seed)
    margins = {}
    for step in STEPS:
        margins[step] = last - 0.05 * math.log2(STEPS[-1] / step)
        if margins[step] >= 0:
            return Attempt(number, plan.size, plan.recipe, plan.seed, "certified", margins)
    return Attempt(number, plan.size, plan.recipe, plan.seed, "refuted", margins)


def search(space: Space, world: World, *, most: int = 200) -> tuple[list[Attempt], list[str]]:
    """One worker's attempts until it is settled, and why each was made."""
    attempts: list[Attempt] = []
    reasons = []
    while isinstance(plan := decide(space, attempts, SEEDS), Proposal):
        assert len(attempts) < most
        reasons.append(plan.reason)
        attempts.append(train(space, world, len(attempts), plan))
    assert plan == Settled()
    return attempts, reasons


def answer(space: Space, attempts: list[Attempt]) -> str | None:
    size = State(space, attempts, SEEDS).smallest()
    return None if size is None else str(space.sizes[size])


def hill(boundary: float, peak: float = -1.5, depth: float = 0.0) -> World:
    """Wider is better and `boundary` just does; `peak` is the best log10 lr, a layer costs `depth`."""
    return lambda layers, width, lr, seed: 0.3 * math.log2(width / boundary) - 0.2 * (lr - peak) ** 2 - depth * layers


@pytest.mark.parametrize("boundary", range(2, 17))
def test_it_finds_the_smallest_width(boundary: int) -> None:
    attempts, _ = search(SPACE, hill(boundary - 0.01))
    assert answer(SPACE, attempts) == f"0L{boundary}D"


@pytest.mark.parametrize("peak", [-3.0, -2.5, -2.0, -1.0, -0.5, 0.0])
def test_it_finds_the_learning_rate_too(peak: float) -> None:
    attempts, _ = search(SPACE, hill(4.99, peak))
    assert answer(SPACE, attempts) == "0L5D"


def test_a_rate_between_two_of_the_grid_is_found_where_it_may_matter() -> None:
    # At 0.0562 the margin is 0.004; at its neighbours on the grid, a quarter of a decade off, it is below 0.
    attempts, _ = search(SPACE, lambda layers, width, lr, seed: hill(4.99, -1.25)(layers, width, lr, seed) + 0.003)
    assert answer(SPACE, attempts) == "0L5D"
    assert {each.recipe for each in attempts if each.outcome == "certified" and each.seed == 0} >= {(3.5,)}


def test_depth_that_helps_is_found() -> None:
    attempts, _ = search(SPACE, hill(5.5, depth=-0.1))
    assert answer(SPACE, attempts) == "2L4D"  # 0.3 · log2(4 / 5.5) + 2 · 0.1 = 0.06


def test_nothing_certifies() -> None:
    attempts, reasons = search(SPACE, lambda *_: -0.05)
    assert answer(SPACE, attempts) is None
    state = State(SPACE, attempts, SEEDS)
    assert {str(SPACE.sizes[size]) for size in state.refuted} == {"0L16D", "1L16D", "2L16D"}
    assert state.open_below(None) == []
    assert "confirm" not in reasons


def test_everything_certifies() -> None:
    attempts, _ = search(SPACE, lambda *_: 1.0)
    assert answer(SPACE, attempts) == "0L2D"
    assert len(attempts) < 10


def test_no_smaller_size_is_left_open_and_no_larger_one_trained() -> None:
    attempts, _ = search(SPACE, hill(4.99))
    state = State(SPACE, attempts, SEEDS)
    top = state.smallest()
    assert top is not None
    assert state.confirmed(top)
    assert state.open_below(top) == []
    proven = math.inf
    for each in attempts:
        assert each.seed != 0 or SPACE.sizes[each.size].num_parameters < proven
        if each.outcome == "certified":
            proven = min(proven, SPACE.sizes[each.size].num_parameters)


def test_a_refuted_size_has_only_worse_neighbours() -> None:
    attempts, _ = search(SPACE, hill(4.99, peak=-1.0))
    state = State(SPACE, attempts, SEEDS)
    assert state.refuted
    for size in state.refuted:
        best = state.best(size)
        assert best == (4.0,)  # lr 0.1
        assert {(3.0,), (5.0,)} <= set(state.by_size[size])


def test_a_lucky_seed_is_not_an_answer() -> None:
    def world(layers: int, width: int, lr: float, seed: int) -> float:
        lucky = width == 4 and layers == 0 and seed != 2
        return 0.02 if lucky else hill(4.99)(layers, width, lr, seed)

    attempts, reasons = search(SPACE, world)
    assert answer(SPACE, attempts) == "0L5D"
    failed = [each for each in attempts if each.seed == 2 and each.outcome == "refuted"]
    assert {str(SPACE.sizes[each.size]) for each in failed} == {"0L4D"}
    assert reasons.count("confirm") >= 2 + SEEDS


def test_a_narrower_size_is_implied_by_a_refuted_one_of_its_depth_alone() -> None:
    attempts, _ = search(SPACE, hill(9.99, depth=0.05))
    state = State(SPACE, attempts, SEEDS)
    refuted = {str(SPACE.sizes[size]) for size in state.refuted}
    assert {"0L9D", "1L9D", "2L9D"} <= refuted
    implied = {str(SPACE.sizes[size]) for size in range(len(SPACE.sizes)) if state.implied(size)}
    assert {"0L2D", "1L2D", "2L8D"} <= implied
    assert "0L10D" not in implied


@pytest.mark.parametrize("outcome", ["failed", "too_slow"])
def test_crashes_and_slowness_imply_nothing(outcome: str) -> None:
    space = make_space("model.hidden_dim=2,4", "precision=bf16,fp32")
    recipes = ((0.0,), (1.0,))
    for last, implied in ((outcome, False), ("refuted", True)):
        tried = [
            Attempt(number, 1, recipe, 0, kind, {400: -0.1})
            for number, (recipe, kind) in enumerate(zip(recipes, ("refuted", last), strict=True))
        ]
        state = State(space, tried, SEEDS)
        assert state.refuted == {1}
        assert state.implied(0) is implied


def test_a_single_size_and_no_recipe() -> None:
    space = make_space("model.num_layers=1")
    assert answer(space, search(space, lambda *_: 1.0)[0]) == "the only size"
    assert answer(space, search(space, lambda *_: -1.0)[0]) is None


def test_every_choice_of_an_unordered_recipe_is_tried() -> None:
    space = make_space("model.hidden_dim=2,4", "precision=bf16,fp32,mixed")
    attempts, _ = search(space, lambda layers, width, lr, seed: -1.0)
    tried = {each.recipe for each in attempts if space.sizes[each.size].params == (("model.hidden_dim", 4),)}
    assert tried == {(0.0,), (1.0,), (2.0,)}


def test_a_lost_trial_comes_first_and_once() -> None:
    attempts, _ = search(SPACE, hill(4.99))
    lost = Attempt(6, attempts[6].size, attempts[6].recipe, attempts[6].seed, "lost")
    plan = decide(SPACE, [*attempts[:6], lost], SEEDS)
    assert isinstance(plan, Proposal)
    assert (plan.size, plan.recipe, plan.seed, plan.reason) == (lost.size, lost.recipe, lost.seed, "again")
    # Taken up, or overtaken by a smaller answer, it is done with.
    after = decide(SPACE, [*attempts[:6], lost, attempts[6]], SEEDS)
    assert after == decide(SPACE, attempts[:7], SEEDS)


def test_a_crashed_confirmation_is_repeated_once() -> None:
    size = SPACE.sizes.index(next(each for each in SPACE.sizes if str(each) == "0L4D"))
    attempts, _ = search(SPACE, hill(3.99))
    first = next(each for each in attempts if each.seed == 1)
    assert first.size == size
    crash = Attempt(len(attempts), size, first.recipe, 1, "failed")
    rest = [each for each in attempts if each is not first]
    plan = decide(SPACE, [*rest, crash], SEEDS)
    assert plan == Proposal(size, first.recipe, 1, "again")
    state = State(SPACE, [*rest, crash, first], SEEDS)
    assert state.confirmed(size)
    state = State(SPACE, [*rest, crash, crash], SEEDS)
    assert state.certified(size) is None


def test_crashed_and_diverged_recipes_are_worse_than_any_other() -> None:
    size = len(SPACE.sizes) - 1
    fine = Attempt(0, size, (3.0,), 0, "refuted", {100: -0.5, 400: -0.3})
    for outcome, margins in (("failed", {}), ("diverged", {100: 0.5})):
        state = State(SPACE, [fine, Attempt(1, size, (4.0,), 0, outcome, margins)], SEEDS)
        assert state.best(size) == (3.0,)


def test_a_rejected_recipe_counts_with_the_seed_that_rejected_it() -> None:
    size = 0
    lucky = Attempt(0, size, (3.0,), 0, "certified", {200: 0.01})
    failed = Attempt(1, size, (3.0,), 1, "refuted", {200: -0.3, 400: -0.2})
    around = [Attempt(2, size, (2.0,), 0, "refuted", {200: -0.1}), Attempt(3, size, (4.0,), 0, "refuted", {200: -0.1})]
    state = State(SPACE, [lucky, failed, *around], SEEDS)
    assert state.margin(size, (3.0,)) == -0.2
    # By its lucky seed alone it would be no miss at all, and a quarter-decade beside it not worth a trial either.
    assert list(state.next_recipes(size)) == []
    near = Attempt(1, size, (3.0,), 1, "refuted", {200: -0.3, 400: -0.005})
    assert list(State(SPACE, [lucky, near, *around], SEEDS).next_recipes(size)) == [(3.5,), (2.5,)]


def test_recipes_are_compared_at_the_last_look_that_both_had() -> None:
    size = len(SPACE.sizes) - 1
    early = Attempt(0, size, (3.0,), 0, "pruned", {100: -0.4, 200: -0.3})
    late = Attempt(1, size, (4.0,), 0, "refuted", {100: -0.5, 200: -0.35, 400: -0.1})
    assert State(SPACE, [early, late], SEEDS).best(size) == (3.0,)


def recipes_tried(*tried: tuple[float, dict[int, float]]) -> list[Attempt]:
    """Refuted attempts of the smallest size, by position of the learning rate."""
    return [Attempt(number, 0, (at,), 0, "refuted", margins) for number, (at, margins) in enumerate(tried)]


def test_between_two_rates_the_climb_takes_half_steps() -> None:
    flat = {200: -0.2, 400: -0.1}
    around = recipes_tried((3.0, flat), (4.0, flat), (3.5, {200: -0.1, 400: -0.05}))
    assert list(State(SPACE, around, SEEDS).next_recipes(0)) == []


def test_a_neighbour_given_up_early_makes_no_near_miss() -> None:
    best = (3.0, {50: -0.2, 200: -0.06, 400: -0.03})
    slow = {50: -2.1}
    assert list(State(SPACE, recipes_tried(best, (2.0, slow), (4.0, slow)), SEEDS).next_recipes(0)) == []
    steep = {200: -0.4}
    assert list(State(SPACE, recipes_tried(best, (2.0, slow), (4.0, steep)), SEEDS).next_recipes(0)) == [(3.5,), (2.5,)]


def test_a_size_with_a_trial_under_way_is_not_refuted() -> None:
    worse = {400: -0.5}
    ended = recipes_tried((3.0, {400: -0.2}), (2.0, worse))
    assert State(SPACE, [*ended, Attempt(2, 0, (4.0,), 0, "running")], SEEDS).refuted == set()
    assert State(SPACE, [*ended, Attempt(2, 0, (4.0,), 0, "refuted", worse)], SEEDS).refuted == {0}


def test_the_bisection_begins_in_the_middle_of_the_logarithms() -> None:
    plan = decide(SPACE, [], SEEDS)
    assert isinstance(plan, Proposal)
    middle = math.sqrt(SPACE.sizes[0].num_parameters * SPACE.sizes[-1].num_parameters)
    assert SPACE.sizes[plan.size - 1].num_parameters < middle <= SPACE.sizes[plan.size].num_parameters


def test_after_two_failures_the_largest_size_is_next() -> None:
    attempts, _ = search(SPACE, lambda *_: -0.05)
    assert attempts[1].size < attempts[2].size == len(SPACE.sizes) - 1


def test_the_size_that_came_closest_is_refuted_first() -> None:
    answer = next(index for index, size in enumerate(SPACE.sizes) if str(size) == "0L3D")
    proven = [
        Attempt(0, answer, (3.0,), 0, "certified", {100: 0.1}),
        *(Attempt(seed, answer, (3.0,), seed, "certified", {100: 0.1}) for seed in (1, 2)),
    ]
    for closest in range(answer):  # 0L2D, 1L2D, 2L2D
        far = [
            Attempt(3 + size, size, (3.0,), 0, "refuted", {400: -0.1 if size == closest else -0.3})
            for size in range(answer)
        ]
        plan = decide(SPACE, [*proven, *far], SEEDS)
        assert isinstance(plan, Proposal)
        assert (plan.size, plan.reason) == (closest, "refute")


def test_the_recipe_that_certified_quickest_is_confirmed() -> None:
    slow, quick = {100: -0.1, 400: 0.1}, {100: 0.05}
    for first, second in ((slow, quick), (quick, slow)):
        tried = [Attempt(0, 0, (3.0,), 0, "certified", first), Attempt(1, 0, (4.0,), 0, "certified", second)]
        certified = State(SPACE, tried, SEEDS).certified(0)
        assert certified is not None
        assert certified.margins == quick


# ------------------------------------------------------------------------------------- several workers


def test_a_second_worker_hopes_that_the_first_ones_probe_succeeds() -> None:
    first = decide(SPACE, [], SEEDS)
    assert isinstance(first, Proposal)
    second = decide(SPACE, [Attempt(0, first.size, first.recipe, 0, "running")], SEEDS)
    assert isinstance(second, Proposal)
    assert second.reason == "probe"
    assert second.size < first.size


def test_a_lost_trial_that_no_longer_matters_is_not_taken_up() -> None:
    lost = Attempt(0, 5, (3.0,), 0, "lost")
    smaller = Attempt(1, 2, (3.0,), 0, "certified", {100: 0.1})
    plan = decide(SPACE, [lost, smaller], SEEDS)
    assert isinstance(plan, Proposal)
    assert (plan.size, plan.reason) != (5, "again")
    assert plan.size <= 2


def together(space: Space, world: World, workers: int, order: random.Random) -> list[Attempt]:
    """Attempts of workers that start as soon as they can and end in any order."""
    attempts: dict[int, Attempt] = {}
    running: dict[int, Proposal] = {}
    while True:
        seen = [attempts[number] for number in sorted(attempts)]
        plan = decide(space, seen, SEEDS)
        if isinstance(plan, Proposal) and len(running) < workers:
            number = len(attempts)
            running[number] = plan
            attempts[number] = Attempt(number, plan.size, plan.recipe, plan.seed, "running")
            continue
        if not running:
            assert plan == Settled()
            return seen
        assert isinstance(plan, Proposal | Wait)
        number = order.choice(sorted(running))
        attempts[number] = train(space, world, number, running.pop(number))


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
    attempts = together(SPACE, world, workers, random.Random(seed))
    alone, _ = search(SPACE, world)
    assert answer(SPACE, attempts) == answer(SPACE, alone)
    tried = [(each.size, each.recipe, each.seed) for each in attempts]
    assert len(set(tried)) == len(tried)


def test_a_decision_depends_on_the_attempts_alone() -> None:
    attempts, _ = search(SPACE, hill(4.99))
    for end in range(len(attempts)):
        plan = decide(SPACE, attempts[:end], SEEDS)
        assert isinstance(plan, Proposal)
        assert (plan.size, plan.recipe, plan.seed) == (attempts[end].size, attempts[end].recipe, attempts[end].seed)


def test_the_known_world_has_the_answer_that_the_tests_claim() -> None:
    """An oracle of the oracle: all sizes and rates by brute force."""
    world = hill(5.5, depth=-0.1)
    good = [
        size.num_parameters
        for size, lr in itertools.product(SPACE.sizes, [step / 10 for step in range(-30, 1)])
        if world(dict(size.params)["model.num_layers"], dict(size.params)["model.hidden_dim"], lr, 0) >= 0
    ]
    assert min(good) == 1000 * 4 + 2 * 4
