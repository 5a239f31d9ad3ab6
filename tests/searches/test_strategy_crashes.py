"""A crash is no evidence: it refutes no size and hides no answer."""

import random
from collections import Counter
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import FEW_SIZES, SEEDS, SPACE, World, answer, hill, index_of, make_space, search, train

from marble_sweep.searches.space import Space
from marble_sweep.searches.strategy import Proposal, SearchState, Settled, decide, forget_crashes
from marble_sweep.searches.trial_record import TrialRecord


def search_with_crashes(
    space: Space, world: World, crashes: Callable[[int, float, int], bool], *, max_trials: int = 400
) -> tuple[list[TrialRecord], SearchState]:
    """One worker's records until nothing is left; `crashes` decides by size, recipe and seed."""
    records: list[TrialRecord] = []
    while isinstance(plan := decide(space, records, SEEDS), Proposal):
        assert len(records) < max_trials
        if crashes(plan.size, plan.recipe[0], plan.seed):
            # Its margin was good until then: what a crash leaves is no evidence.
            records.append(TrialRecord(len(records), plan.size, plan.recipe, plan.seed, "failed", {100: 9.0}))
        else:
            records.append(train(space, world, len(records), plan))
    assert plan == Settled()
    return records, SearchState(space, records, SEEDS)


def test_a_size_whose_middle_recipe_loses_and_whose_neighbours_crash_is_not_refuted() -> None:
    space = make_space("model.hidden_dim=2,4", "optimizer.lr=tag(log,interval(1e-3,1))")
    records, state = search_with_crashes(
        space, lambda layers, width, lr, seed: 1.0 if width == 4 else -0.5, lambda size, at, seed: size == 0 and at != 3
    )
    assert answer(space, records) == "hidden_dim=4"
    assert [record.outcome for record in records if record.size == 0 and record.recipe == (3.0,)] == ["below"]
    assert state.refuted == set()
    assert state.crashed == {0}
    assert state.open_below(1) == [0]


def test_a_crash_that_does_not_recur_changes_nothing() -> None:
    """Every configuration crashes at its first try: the answer and the refuted sizes are as without crashes."""
    alone, _ = search(SPACE, hill(4.99))
    seen: set[tuple[int, float, int]] = set()

    def at_first(*trial: float) -> bool:
        first = trial not in seen
        seen.add(trial)  # type: ignore[arg-type]
        return first

    records, state = search_with_crashes(SPACE, hill(4.99), at_first)
    assert [record for record in records if record.outcome == "failed"]
    assert len(records) == 2 * len(alone)
    assert answer(SPACE, records) == answer(SPACE, alone) == "0L5D"
    assert (state.refuted, state.crashed) == (SearchState(SPACE, alone, SEEDS).refuted, set())


@settings(max_examples=40, deadline=None)
@given(
    boundary=st.integers(2, 6),
    peak=st.sampled_from([-2.5, -1.5, -0.5]),
    chance=st.sampled_from([0.1, 0.4, 0.8]),
    seed=st.integers(0, 10**6),
)
def test_crashes_refute_nothing_wherever_they_strike(boundary: int, peak: float, chance: float, seed: int) -> None:
    """A size refuted among crashes cannot certify, and no configuration crashes more than twice."""
    world = hill(boundary - 0.01, peak)

    def crashes(size: int, at: float, confirming: int) -> bool:
        return random.Random(f"{seed} {size} {at} {confirming}").random() < chance

    records, state = search_with_crashes(FEW_SIZES, world, crashes)
    tries = Counter((record.size, record.recipe, record.seed) for record in records if record.outcome == "failed")
    assert set(tries.values()) <= {1, 2}
    for size in state.refuted:
        params = dict(FEW_SIZES.sizes[size].params)
        assert world(int(params["model.num_layers"]), int(params["model.hidden_dim"]), peak, 0) < 0
        assert size not in state.crashed
    # The sizes that keep the answer from being proved have crashed.
    assert set(state.open_below(state.smallest())) <= state.crashed


def test_narrower_sizes_do_not_wait_for_one_that_crashed() -> None:
    wide = index_of("1L16D")
    records, state = search_with_crashes(SPACE, lambda *_: -0.5, lambda size, at, seed: size == wide)
    assert state.crashed == {wide}
    assert index_of("1L15D") in state.refuted
    assert state.open_below(None) == [wide]
    assert len([record for record in records if record.size == wide and record.recipe == (3.0,)]) <= 2


def test_a_crash_says_nothing_about_the_boundary() -> None:
    """The bisection goes on around a crashed size, as if it were not in the space."""
    first = decide(SPACE, [], SEEDS)
    assert isinstance(first, Proposal)
    crash = TrialRecord(0, first.size, first.recipe, 0, "failed")
    assert decide(SPACE, [crash], SEEDS) == Proposal(first.size, first.recipe, 0, "retry")
    after = decide(SPACE, [crash, crash], SEEDS)
    assert isinstance(after, Proposal)
    assert (after.size, after.reason) == (first.size + 1, "probe")


def test_a_search_that_starts_again_retries_crashes() -> None:
    first = decide(SPACE, [], SEEDS)
    assert isinstance(first, Proposal)
    crashes = [TrialRecord(number, first.size, first.recipe, 0, "failed") for number in (0, 1)]
    assert decide(SPACE, forget_crashes(crashes, 1), SEEDS) == Proposal(first.size, first.recipe, 0, "retry")
    assert decide(SPACE, forget_crashes(crashes, 2), SEEDS) == Proposal(first.size, first.recipe, 0, "retry")
    assert SearchState(SPACE, forget_crashes(crashes, 2), SEEDS).crashed == set()
