"""Searches that answer with a pass rate, in worlds whose rates are known."""

import dataclasses
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rate_worlds import SPACE, STANDARD, RateWorld, claims, contradict, false_claims, search

from marble_sweep.searches.pass_rate import SeedResult, Verdict
from marble_sweep.searches.seeds import trial_seed
from marble_sweep.searches.strategy import Proposal, SearchState, Settled, Wait, decide
from marble_sweep.searches.trial_record import TrialRecord

SEARCHES = 60


def fixed(rate: float, undecided: float = 0.0) -> RateWorld:
    return RateWorld(0, (rate,), undecided, penalty=0.0)


def test_where_rates_are_clear_nothing_false_is_said() -> None:
    for world in (RateWorld(seed, (0.0, 0.3, 0.98, 1.0)) for seed in range(5)):
        assert false_claims(world, search(world)) == []


@pytest.mark.slow
def test_false_claims_are_rarer_than_the_confidence_allows() -> None:
    """With rates around the asked one. benchmarks/pass_rates.py has thousands: docs/truth.md."""
    worlds = [RateWorld(seed) for seed in range(SEARCHES)]
    states = [search(world) for world in worlds]
    wrong = sum(bool(false_claims(world, state)) for world, state in zip(worlds, states, strict=True))
    assert wrong <= 0.05 * SEARCHES + 3 * math.sqrt(0.05 * 0.95 * SEARCHES)
    # They do say something: a fifth of them confirms a size, though rates so near the asked one are hard to show.
    assert sum(state.answer() is not None for state in states) > SEARCHES / 5
    assert sum(bool(claims(state, Verdict.RULED_OUT)) for state in states) > SEARCHES / 5


def test_what_always_certifies_is_confirmed_on_the_fewest_seeds() -> None:
    state = search(fixed(1.0))
    assert state.answer() == 0
    assert state.confirmed(0)
    (tally,) = state.fresh.tallies.values()
    assert (tally.verdict, tally.seeds, tally.passed) == (Verdict.ACCEPTED, 21, 21)


def test_what_never_certifies_is_ruled_out_size_by_size() -> None:
    """The best recipe of the widest size of every depth, and its near ties, fail until the asked rate is excluded."""
    state = search(fixed(0.0))
    assert state.answer() is None
    assert {str(SPACE.sizes[size]) for size in state.refuted} == {"0L4D", "1L4D"}
    assert all(state.implied(size) for size in range(len(SPACE.sizes)) if size not in state.refuted)
    for size in state.refuted:
        best = state.best(size)
        assert best is not None
        tested = [recipe for other, recipe in state.fresh.tallies if other == size]
        assert tested[0] == best or len(tested) > 1
        assert set(state.contenders(size)) == set(tested)
        assert all(4 <= state.fresh.tally((size, recipe)).seeds <= 9 for recipe in tested)


def test_a_size_whose_seeds_stay_undecided_is_undecided_and_nothing_is_implied() -> None:
    state = search(fixed(0.0, undecided=1.0))
    assert state.refuted == set()
    assert state.undecided == set(range(len(SPACE.sizes)))
    assert all(tally.seeds <= 9 for tally in state.fresh.tallies.values())  # more seeds would not tell more
    assert state.open_below(None) == []


def test_a_recipe_that_failed_on_the_searchs_own_seed_can_be_accepted() -> None:
    """The seed that selects a recipe does not count in its test, for or against it."""
    size = 0
    climbed = [
        TrialRecord(0, size, (1.0,), 0, "below", {400: -0.01}),
        TrialRecord(1, size, (0.0,), 0, "below", {400: -0.5}),
        TrialRecord(2, size, (2.0,), 0, "below", {400: -0.02}),
        TrialRecord(3, size, (1.5,), 0, "below", {400: -0.02}),
        TrialRecord(4, size, (0.5,), 0, "below", {400: -0.02}),
    ]
    fresh = [TrialRecord(4 + seed, size, (1.0,), seed, "certified", {200: 0.01}) for seed in range(1, 22)]
    state = SearchState(SPACE, [*climbed, *fresh[:-1]], STANDARD)
    assert state.certified(size) is None
    assert state.recipes_to_exclude(size) == [(1.0,)]
    state = SearchState(SPACE, [*climbed, *fresh], STANDARD)
    assert state.certified(size) == climbed[0]
    assert (state.answer(), state.confirmed(size), state.refuted) == (size, True, set())


def test_a_near_tie_is_tested_too_before_a_size_is_ruled_out() -> None:
    size = 0
    climbed = [
        TrialRecord(0, size, (1.0,), 0, "below", {400: -0.05}),
        TrialRecord(1, size, (0.0,), 0, "below", {400: -0.09}),
        TrialRecord(2, size, (2.0,), 0, "below", {400: -0.06}),
    ]
    fresh = [TrialRecord(2 + seed, size, (1.0,), seed, "below", {400: -0.04 - 0.01 * seed}) for seed in range(1, 5)]
    state = SearchState(SPACE, [*climbed, *fresh[:3]], STANDARD)
    assert (state.contenders(size), state.refuted) == ([(1.0,)], set())
    state = SearchState(SPACE, [*climbed, *fresh], STANDARD)  # the best one ended below -0.06 on two of four
    assert state.fresh.verdict((size, (1.0,))) == Verdict.RULED_OUT
    assert (state.contenders(size), state.refuted) == ([(1.0,), (2.0,)], set())
    others = [TrialRecord(6 + seed, size, (2.0,), seed, "below", {400: -0.06}) for seed in range(1, 7)]
    assert SearchState(SPACE, [*climbed, *fresh, *others], STANDARD).refuted == {size}


@pytest.mark.slow
def test_two_searches_do_not_contradict_each_other() -> None:
    pairs = [(search(world, 1), search(world, 2)) for world in map(RateWorld, range(SEARCHES // 3))]
    assert sum(contradict(*pair) for pair in pairs) <= 0.05 * len(pairs) + 3 * math.sqrt(0.05 * 0.95 * len(pairs))


def test_a_smaller_size_that_is_not_confirmed_hides_no_confirmed_one() -> None:
    confirmed = [TrialRecord(seed, 3, (1.0,), seed, "certified", {200: 0.01}) for seed in range(22)]
    lucky = TrialRecord(22, 0, (1.0,), 0, "certified", {400: 0.01})
    state = SearchState(SPACE, [*confirmed, lucky], STANDARD)
    assert (state.smallest(), state.answer()) == (0, 3)


# ------------------------------------------------------------------------------------- workers and resumption


def together(world: RateWorld, workers: int, order: random.Random) -> tuple[SearchState, int]:
    """What workers know that start as soon as they can and end in any order, and how many seeds ran at once at most."""
    records: dict[int, TrialRecord] = {}
    running: dict[int, Proposal] = {}
    most = 0
    while True:
        seen = [records[number] for number in sorted(records)]
        plan = decide(SPACE, seen, STANDARD)
        if isinstance(plan, Proposal) and len(running) < workers:
            number = len(records)
            running[number] = plan
            records[number] = TrialRecord(number, plan.size, plan.recipe, plan.seed, "running")
            most = max(most, sum(other.seed > 0 for other in running.values()))
            continue
        if not running:
            assert plan == Settled()
            return SearchState(SPACE, seen, STANDARD), most
        assert isinstance(plan, Proposal | Wait)
        number = order.choice(sorted(running))
        records[number] = world.train(number, running.pop(number), 0)


@settings(max_examples=4, deadline=None)
@given(rate=st.sampled_from([0.0, 1.0]), workers=st.integers(2, 4), seed=st.integers(0, 10**6))
def test_several_workers_say_the_same_as_one_and_train_several_seeds_at_once(
    rate: float, workers: int, seed: int
) -> None:
    world = fixed(rate)
    alone = search(world)
    state, most = together(world, workers, random.Random(seed))
    assert most >= min(workers, 3)
    assert (state.answer(), state.refuted) == (alone.answer(), alone.refuted)
    tried = [(record.size, record.recipe, record.seed) for record in state.records]
    assert len(set(tried)) == len(tried)


def test_a_verdict_does_not_depend_on_the_order_in_which_seeds_end() -> None:
    first = TrialRecord(0, 0, (1.0,), 0, "certified", {200: 0.01})
    outcomes = ["certified"] * 19 + ["below"] + ["certified"] * 12
    fresh = [TrialRecord(seed, 0, (1.0,), seed, outcome, {200: 0.01}) for seed, outcome in enumerate(outcomes, 1)]
    whole = SearchState(SPACE, [first, *fresh], STANDARD).fresh.tally((0, (1.0,)))
    for late in (0, 7, 19):
        waiting = [
            dataclasses.replace(record, outcome="running") if number == late else record
            for number, record in enumerate(fresh)
        ]
        tally = SearchState(SPACE, [first, *waiting], STANDARD).fresh.tally((0, (1.0,)))
        assert (tally.verdict, tally.seeds) == (Verdict.OPEN, late)
        mixed = [*fresh[late + 1 :], *fresh[: late + 1]]
        assert SearchState(SPACE, [first, *mixed], STANDARD).fresh.tally((0, (1.0,))) == whole


def test_a_decision_depends_on_the_records_alone() -> None:
    world = RateWorld(3)
    records = search(world).records
    for end in range(0, len(records), 7):
        plan = decide(SPACE, records[:end], STANDARD)
        assert isinstance(plan, Proposal)
        assert (plan.size, plan.recipe, plan.seed) == (records[end].size, records[end].recipe, records[end].seed)


def test_a_stale_fresh_seed_is_retried_and_keeps_its_place() -> None:
    first = TrialRecord(0, 0, (1.0,), 0, "certified", {200: 0.01})
    fresh = [TrialRecord(seed, 0, (1.0,), seed, "certified", {200: 0.01}) for seed in (1, 2, 3)]
    stale = dataclasses.replace(fresh[1], outcome="stale")
    assert decide(SPACE, [first, fresh[0], stale, fresh[2]], STANDARD) == Proposal(0, (1.0,), 2, "retry")
    state = SearchState(SPACE, [first, stale], STANDARD)
    assert state.fresh.number((0, (1.0,))) == 1
    assert state.fresh.number((1, (1.0,))) == 2


def test_a_crash_on_a_fresh_seed_rejects_the_recipe_and_rules_out_nothing() -> None:
    first = TrialRecord(0, 0, (1.0,), 0, "certified", {200: 0.01})
    crash = TrialRecord(1, 0, (1.0,), 1, "failed")
    assert decide(SPACE, [first, crash], STANDARD) == Proposal(0, (1.0,), 1, "retry")
    state = SearchState(SPACE, [first, crash, crash], STANDARD)
    assert state.certified(0) is None
    assert (state.crashed, state.refuted, state.undecided) == ({0}, set(), set())


# ------------------------------------------------------------------------------------------------- seeds


def test_searches_with_neighbouring_seeds_share_no_fresh_seed() -> None:
    params = [{"model.hidden_dim": width, "optimizer.lr": lr} for width in (2, 3) for lr in (0.01, 0.1)]
    fresh = [trial_seed(seed, each, index) for seed in range(20) for each in params for index in range(1, 50)]
    assert len(set(fresh)) == len(fresh)
    assert all(0 <= seed < 2**31 for seed in fresh)
    assert trial_seed(7, params[0], 0) == 7
    # They are fixed for ever: a study that is continued trains the seeds it began with.
    assert trial_seed(42, {"optimizer.lr": 0.1, "model.hidden_dim": 3}, 1) == trial_seed(
        42, {"model.hidden_dim": 3, "optimizer.lr": 0.1}, 1
    )
    assert trial_seed(42, {"model.hidden_dim": 3}, 1) == 1700081149


@pytest.mark.parametrize(
    ("outcome", "result"),
    [
        ("certified", SeedResult.PASSED),
        ("below", SeedResult.FAILED),
        ("undecided", SeedResult.UNDECIDED),
        ("pruned", SeedResult.FAILED),
        ("diverged", SeedResult.FAILED),
        ("too_slow", SeedResult.FAILED),
        ("failed", SeedResult.CRASHED),
        ("running", SeedResult.RUNNING),
    ],
)
def test_what_a_trial_shows_as_a_fresh_seed(outcome: str, result: SeedResult) -> None:
    assert TrialRecord(0, 0, (1.0,), 1, outcome, {}).seed_result == result
