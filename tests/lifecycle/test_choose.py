"""Which steps and tokens a page shows."""

import doctest

import numpy as np
import pytest
from planted_lives import planted_tokens

from marble_sweep.lifecycle import choose
from marble_sweep.lifecycle.choose import MAX_DEAD, MAX_LIVE, MAX_STRAGGLERS, choose_frames, choose_tokens


def test_the_example_is_true() -> None:
    assert doctest.testmod(choose).failed == 0


@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize("num_steps", [0, 1, 2, 30, 200, 5_001, 100_000])
@pytest.mark.parametrize("max_frames", [3, 50, 500])
def test_frames_are_few_and_reach_from_the_first_step_to_the_last(num_steps: int, max_frames: int, every: int) -> None:
    steps = np.arange(num_steps) * every
    places = choose_frames(steps, max_frames)
    assert len(places) <= max_frames
    assert (np.diff(places) > 0).all()
    if num_steps:
        assert (places[0], places[-1]) == (0, num_steps - 1)
    if num_steps <= max_frames:
        assert len(places) == num_steps


def test_frames_are_dense_early_and_no_gap_is_long() -> None:
    steps = choose_frames(np.arange(20_001), 500)
    assert (steps[:28] == np.arange(28)).all()
    assert np.diff(steps).max() <= 20_000 * 2 / 249  # the last step of 250 evenly spaced roots
    assert len(steps) > 400


def test_a_record_with_a_gap_gives_the_nearest_steps_that_it_has() -> None:
    steps = np.concatenate([np.arange(100), np.arange(5_000, 10_001)])
    chosen = steps[choose_frames(steps, 200)]
    dense = choose_frames(np.arange(10_001), 200)
    assert set(chosen) == {step if step in steps else (99 if step < 2_549.5 else 5_000) for step in dense.tolist()}


def test_tokens_come_in_the_order_in_which_they_froze() -> None:
    tokens = planted_tokens(1_000, 200, 20, np.random.default_rng(0)).sample(frac=1, random_state=1)
    chosen = choose_tokens(tokens)
    assert sorted(chosen["token"]) == sorted(tokens["token"])
    dead, live = chosen[:200], chosen[200:]
    assert dead["is_dead"].all()
    assert sorted(live["token"]) == list(range(20))
    frozen = dead[~dead["censored"]]
    assert dead["censored"].tolist() == sorted(dead["censored"])
    assert np.isnan(frozen["last_motion"].iloc[0])  # it never moved
    assert (np.diff(frozen["freeze_step"]) >= 0).all()


def test_of_many_tokens_those_are_shown_that_are_evenly_spaced_and_the_stragglers() -> None:
    tokens = planted_tokens(1_000, 3 * MAX_DEAD, 2 * MAX_LIVE, np.random.default_rng(0))
    tokens["is_straggler"] = tokens["token"] % 100 == 0
    chosen = choose_tokens(tokens)
    dead = chosen[chosen["is_dead"]]
    assert MAX_DEAD <= len(dead) <= MAX_DEAD + MAX_STRAGGLERS
    assert len(chosen) - len(dead) == MAX_LIVE
    stragglers = tokens.loc[tokens["is_dead"] & tokens["is_straggler"], "token"]
    assert set(stragglers) <= set(dead["token"])
    all_dead = tokens[tokens["is_dead"]]
    for share in (0.1, 0.5, 0.9):
        quantile = all_dead["last_motion"].quantile(share)
        assert dead["last_motion"].quantile(share) == pytest.approx(quantile, rel=0.02)
