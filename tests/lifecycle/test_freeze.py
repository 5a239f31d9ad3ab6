"""Freezing: censored where the record does not go on, stragglers, learning rates, and tokens that move again."""

import numpy as np
import pandas as pd
import pytest
from planted_records import Planted, bfloat16_bits, hopping

from marble_sweep.lifecycle.analyse import analyse
from marble_sweep.lifecycle.freeze import default_quiet_window, freeze_lr, freeze_quantile, freeze_steps, stragglers
from marble_sweep.lifecycle.phases import step_after_half

NAN = float("nan")


def test_the_default_window_is_a_tenth_and_at_least_a_hundred_steps() -> None:
    no_pauses = np.zeros(7, dtype=np.int64)
    assert [default_quiet_window(0, last, no_pauses) for last in (40, 1_000, 1_001, 20_000)] == [100, 100, 101, 2_000]


def test_the_default_window_is_longer_than_almost_all_pauses() -> None:
    pauses = np.arange(1_000)  # the last ten of a thousand tokens may have longer ones
    assert default_quiet_window(0, 1_000, pauses) == 990
    assert (pauses >= 990).mean() == 0.01


def test_a_freeze_counts_behind_the_quiet_window_alone() -> None:
    last_motion = np.array([NAN, 10, 899, 900, 901, 1_000])
    np.testing.assert_array_equal(freeze_steps(last_motion, 0, 1_000, 100), [1, 11, 900, 901, NAN, NAN])


def test_tokens_that_are_not_frozen_count_as_later_than_all() -> None:
    freeze = np.array([5, NAN, 9, NAN, 7, 11])
    assert [freeze_quantile(freeze, share) for share in (0.1, 0.5, 0.6, 0.7, 1)] == [5, 9, 11, None, None]


def test_the_same_window_guards_the_half_freeze() -> None:
    steps = np.arange(1, 301)
    moving = np.where(steps <= 150, 0.9, 0.1)
    assert step_after_half(steps, moving, 0, 150) == 151
    assert step_after_half(steps, moving, 0, 151) is None
    moving[199] = 0.89  # back again, as has been seen
    assert step_after_half(steps, moving, 0, 100) == 201
    assert step_after_half(steps, np.zeros(300), 0, 100) == 1


def test_stragglers_are_beyond_the_fence_or_the_few_that_are_not_frozen() -> None:
    last_motion = np.concatenate([np.arange(1_000, 1_100), [1_174, 1_175, 5_000]]).astype(float)
    freeze = last_motion + 1
    # Quartiles of 103 values: 1025.5 and 1076.5, so the fence is at 1153.
    np.testing.assert_array_equal(np.flatnonzero(stragglers(last_motion, freeze, 0)), [100, 101, 102])
    freeze[:3] = NAN
    np.testing.assert_array_equal(np.flatnonzero(stragglers(last_motion, freeze, 0)), [0, 1, 2, 100, 101, 102])
    freeze[:40] = NAN  # too many to be stragglers
    np.testing.assert_array_equal(np.flatnonzero(stragglers(last_motion, freeze, 0)), [100, 101, 102])
    freeze[:60] = NAN  # most are not frozen
    assert not stragglers(last_motion, freeze, 0).any()


def test_the_learning_rate_of_a_freeze_is_a_share_of_the_highest_before() -> None:
    lr = pd.Series([0.5, 1.0, 1.0, 0.5, 0.25], index=[1, 2, 3, 4, 5])
    np.testing.assert_array_equal(freeze_lr(np.array([1, 3, 4, 5, 6, NAN]), lr), [1, 1, 0.5, 0.25, NAN, NAN])
    assert np.isnan(freeze_lr(np.array([1.0]), lr[:0])).all()


@pytest.mark.parametrize(("schedule", "constant", "decayed"), [("constant", 4, 0), ("linear", 1, 3)])
def test_freezing_by_a_decaying_rate_is_told_apart(schedule: str, constant: int, decayed: int) -> None:
    hops = {step: {token: {0: 1}} for token, step in enumerate([20, 200, 300, 400])}
    bits = hopping(bfloat16_bits(np.ones((4, 2))), 600, hops)
    steps = np.arange(1, 601)
    lr = pd.Series(1e-3 * (1 - steps / 600 if schedule == "linear" else np.ones(600)), index=steps)
    life = analyse(Planted(bits, np.ones(4, dtype=bool), np.ones((600, 2), dtype=np.float32)), lr=lr, quiet_window=100)
    counts = life.summary["n_frozen_constant_lr"], life.summary["n_frozen_decayed_lr"]
    assert counts == (constant, decayed)


def test_a_token_that_moves_again_after_the_window_is_counted() -> None:
    hops = {10: {0: {0: 1}, 1: {0: 1}}, 121: {0: {0: 1}}, 150: {1: {0: 1}}}
    bits = hopping(bfloat16_bits(np.ones((2, 2))), 500, hops)
    life = analyse(Planted(bits, np.ones(2, dtype=bool), np.ones((500, 2), dtype=np.float32)), quiet_window=120)
    assert life.tokens["longest_pause"].tolist() == [110, 139]
    assert life.tokens["thawed"].tolist() == [False, True]
    assert (life.summary["n_thawed"], life.summary["longest_pause"]) == (1, 139)
    by_default = analyse(Planted(bits, np.ones(2, dtype=bool), np.ones((500, 2), dtype=np.float32)))
    assert (by_default.summary["n_thawed"], by_default.summary["quiet_window"]) == (0, 140)
