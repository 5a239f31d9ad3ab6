"""Every criterion's pass, fail and n/a, from tables made by hand."""

import io
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from marble_sweep.config import VerdictConfig
from marble_sweep.training.evaluation import EVAL_COLUMNS
from marble_sweep.verdict import MIN_LAG, MIN_STEPS, MIN_STEPS_TO_FREEZE, Check, Criterion, Verdict, judge

NUM_STEPS = 1000
LAG = 20


def steps_table(num_steps: int = NUM_STEPS, **changed: object) -> pd.DataFrame:
    """A run that passes: the loss falls, h_mean turns, dead tokens jump and then rest."""
    way = np.linspace(0, 1, num_steps)
    columns = {
        "step": np.arange(1, num_steps + 1),
        "loss": 9 - 5 * way,
        "h_autocorr": np.where(np.arange(num_steps) < 1, math.nan, 0.999),
        "h_autocorr_lag": np.where(np.arange(num_steps) < LAG, math.nan, 0.9),
        "dead_moving": 1 - 0.9 * way,
        "dead_l1_mean": 100 * (1 - way) + 1,
        "dead_linf_max": 9.0,
        "dead_early": 0.6 * (1 - way),
        "dead_midlife": 0.2 * (1 - way),
        "dead_late": 0.2 * (1 - way),
        "dead_frozen": way,
        "updates_lost": 0.5,
    }
    return pd.DataFrame(columns | changed)


VALUES = {"_df": 1e9, "_se_factor": 2.5, "_clusters": 40, "_by_document": 1}
OF_ERRORS = {name: value for part, value in VALUES.items() for name in EVAL_COLUMNS if name.endswith(part)}
OF_ALL_WINDOWS = dict.fromkeys([name for name in EVAL_COLUMNS if name.startswith("all_")], math.nan)


def evals_table(**changed: object) -> pd.DataFrame:
    """Two evaluations, of which the last counts: it beats unigram, oracle and bigram by ten standard errors."""
    first = dict.fromkeys(EVAL_COLUMNS, -1.0) | OF_ERRORS | OF_ALL_WINDOWS | {"step": 50}
    last = (
        {
            "step": 100,
            "val_loss": 4.0,
            "val_loss_se": 0.02,
            "unigram_margin": 1.0,
            "unigram_margin_se": 0.1,
            "oracle_margin": 0.9,
            "oracle_margin_se": 0.09,
            "bigram_margin": 0.2,
            "bigram_margin_se": 0.02,
            "accuracy": 0.2,
            "bits_per_byte": 2.0,
            "context_gain": 0.5,
            "context_gain_se": 0.05,
            "non_unigram_top1": 0.6,
            "tempered_margin": 0.99,
            "tempered_margin_se": 0.099,
            "trigram_margin": 0.1,
            "trigram_margin_se": 0.02,
            "fourgram_margin": -0.1,
            "fourgram_margin_se": 0.02,
        }
        | OF_ERRORS
        | OF_ALL_WINDOWS
    )
    assert set(last) == set(EVAL_COLUMNS)
    return pd.DataFrame([first, last | changed])


def through_csv(table: pd.DataFrame) -> pd.DataFrame:
    """As a run has it: written to disk and read back."""
    return pd.read_csv(io.StringIO(table.to_csv(index=False)))


def verdict(steps: pd.DataFrame | None = None, evals: pd.DataFrame | None = None, **thresholds: Any) -> Verdict:
    steps = steps_table() if steps is None else steps
    evals = evals_table() if evals is None else evals
    found = judge(VerdictConfig(**thresholds), through_csv(steps), through_csv(evals), MIN_LAG)
    json.dumps(found.as_json(), allow_nan=False)  # every verdict of these tests can be written
    assert isinstance(found.as_text(), str)
    for criterion in found.criteria:
        assert criterion.passed in (True, False, None)
        for check in criterion.checks:
            assert "nan" not in check.reading or check.name == "training_loss"
            assert check.passed is None or type(check.passed) is bool
            assert check.value is None or math.isfinite(check.value)
    return found


def check(found: Verdict, name: str) -> Check:
    (only,) = [each for criterion in found.criteria for each in criterion.checks if each.name == name]
    return only


def results(found: Verdict) -> list[bool | None]:
    return [criterion.passed for criterion in found.criteria]


def test_a_good_run_passes_all_four() -> None:
    found = verdict()
    assert results(found) == [True] * 4
    assert (found.beats_unigram, found.beats_oracle, found.beats_bigram) == (True, True, True)


def test_numbers_as_of_independent_tokens_fail_loss_and_context() -> None:
    """On data=iid: margins within their noise or below, no gain from context, the unigram's own predictions."""
    noise = {"tempered_margin": -0.002, "tempered_margin_se": 0.001, "oracle_margin": -0.02, "oracle_margin_se": 0.001}
    noise |= {"context_gain": 0.001, "context_gain_se": 0.001, "non_unigram_top1": 0.0}
    found = verdict(evals=evals_table(**noise, bigram_margin=0.05, bigram_margin_se=0.001))
    assert results(found)[:2] == [None, None]
    assert [criterion.undecided for criterion in found.criteria[:2]] == [True, True]
    assert (found.beats_unigram, found.beats_oracle, found.beats_bigram) == (None, False, None)
    assert check(found, "bigram_margin_in_se").passed, "it is below, but without use of the context beats nothing"


# ------------------------------------------------------------------------- 1: the loss


@pytest.mark.parametrize("name", ["unigram", "oracle", "bigram"])
@pytest.mark.parametrize(
    ("margin", "error", "passed"),
    [
        (0.31, 0.1, True),
        (0.29, 0.1, None),
        (-0.29, 0.1, None),
        (-0.31, 0.1, False),
        (0.0, 0.1, None),
        (0.1, 0.0, True),
        (0, 0, False),
    ],
)
def test_a_margin_must_be_three_standard_errors(name: str, margin: float, error: float, passed: bool | None) -> None:
    column = "tempered" if name == "unigram" else name
    found = verdict(evals=evals_table(**{f"{column}_margin": margin, f"{column}_margin_se": error}))
    assert getattr(found, f"beats_{name}") is passed
    assert check(found, f"{column}_margin_in_se").passed is passed
    assert check(found, f"{column}_margin_in_se").undecided is (passed is None)
    if error:
        assert check(found, f"{column}_margin_in_se").value == pytest.approx(margin / error)
    assert results(found)[0] is (passed if name == "unigram" else True), "the best unigram decides"


@pytest.mark.parametrize("name", ["unigram", "oracle", "bigram", "trigram", "fourgram"])
def test_other_baselines_are_only_reported(name: str) -> None:
    found = verdict(evals=evals_table(**{f"{name}_margin": -1.0, f"{name}_margin_se": 0.1}))
    assert check(found, f"{name}_margin_in_se").passed is False
    assert results(found)[0] is True


@pytest.mark.parametrize(
    ("gain", "error", "passed"),
    [(0.31, 0.1, True), (0.29, 0.1, None), (-0.31, 0.1, False), (0.0, 0.0, False), (math.nan, math.nan, None)],
)
def test_no_baseline_is_beaten_without_use_of_the_context(gain: float, error: float, passed: bool | None) -> None:
    """As far below as it may be: a flatter distribution, or the position, can do that too."""
    found = verdict(evals=evals_table(context_gain=gain, context_gain_se=error))
    assert check(found, "tempered_margin_in_se").passed is True
    assert check(found, "context_used").passed is passed
    assert results(found)[:2] == [passed, passed]
    assert (found.beats_unigram, found.beats_oracle, found.beats_bigram) == (passed, passed, passed)


def test_perplexity_stands_beside_nats() -> None:
    assert "held-out loss 4.000 (perplexity 54.6)" in check(verdict(), "tempered_margin_in_se").reading


def test_the_last_evaluation_counts() -> None:
    table = evals_table().iloc[::-1]
    assert verdict(evals=table).beats_unigram is not True


def test_the_needed_standard_errors_are_a_setting() -> None:
    assert verdict(min_standard_errors=9.9).beats_unigram is True
    assert verdict(min_standard_errors=10.1).beats_unigram is None
    above = evals_table(tempered_margin=-0.99)
    assert verdict(evals=above, min_standard_errors=9.9).beats_unigram is False
    assert verdict(evals=above, min_standard_errors=10.1).beats_unigram is None


def test_what_is_undecided_is_called_so() -> None:
    """Neither above 0 nor below is shown; what was not measured is something else."""
    lines = verdict(evals=evals_table(tempered_margin=0.05, context_gain=0.05)).as_text().splitlines()
    assert lines[0] == "undecided  1. The model beats unigram loss"
    assert lines[1].startswith("        undecided  held-out loss 4.000")
    assert "(+0.5 standard errors, 3 needed" in lines[1]
    assert lines[1].endswith("undecided, it may be above or below")
    assert lines[2] == "        undecided  whether the context helps is undecided (see 2)"
    unmeasured = verdict(evals=evals_table(tempered_margin=0.05, context_gain=math.nan)).as_text().splitlines()
    assert unmeasured[0] == "n/a   1. The model beats unigram loss"
    failed = verdict(evals=evals_table(tempered_margin=0.05, context_gain=-0.5)).as_text().splitlines()
    assert failed[0] == "FAIL  1. The model beats unigram loss"


def test_a_reading_says_on_which_side_the_loss_is() -> None:
    assert "below fitted unigram" in check(verdict(), "unigram_margin_in_se").reading
    assert "below the best of uniform, fitted and tempered unigram" in verdict().as_text()
    above = verdict(evals=evals_table(unigram_margin=-1.0))
    assert "above fitted unigram" in check(above, "unigram_margin_in_se").reading


@pytest.mark.parametrize(("target", "passed"), [(5.0, True), (4.2, False)])
def test_the_training_loss_is_the_mean_of_the_last_tenth(target: float, passed: bool) -> None:
    last = check(verdict(target_loss=target), "training_loss")
    assert last.value == pytest.approx(steps_table()["loss"].iloc[-NUM_STEPS // 10 :].mean())
    assert last.passed is passed
    assert not last.decides, "held-out loss decides, not a number that depends on the corpus"


# ----------------------------------------------------------------------- 2: the context


@pytest.mark.parametrize(
    ("changed", "passed"),
    [
        ({}, True),
        ({"context_gain": 0.16}, True),
        ({"context_gain": 0.14}, None),
        ({"context_gain": -0.5}, False),
        ({"non_unigram_top1": 0.1}, True),
        ({"non_unigram_top1": 0.0}, True),  # reported alone
        ({"context_gain": 0.0, "context_gain_se": 0.0}, False),
    ],
)
def test_context_must_be_used_and_to_some_purpose(changed: dict[str, float], passed: bool | None) -> None:
    assert results(verdict(evals=evals_table(**changed)))[1] is passed


# --------------------------------------------------------------------- 3: the direction


@pytest.mark.parametrize(
    ("near", "far", "passed"),
    [
        (0.999, 0.9, True),
        (0.999, 0.988, True),
        (0.999, 0.990, False),
        (0.9, 0.9, False),  # it jitters from batch to batch and goes nowhere
        (0.5, 0.9, False),
    ],
)
def test_the_hidden_state_must_turn_beyond_batch_noise(near: float, far: float, passed: bool) -> None:
    steps = steps_table()
    steps.loc[steps.index[-NUM_STEPS // 10 :], ["h_autocorr", "h_autocorr_lag"]] = near, far
    found = verdict(steps)
    assert results(found)[2] is passed
    assert check(found, "direction_change").value == pytest.approx(near - far)
    assert str(MIN_LAG) in check(found, "direction_change").reading


def test_the_start_of_a_run_does_not_make_it_turn() -> None:
    steps = steps_table()
    steps.loc[steps.index[: -NUM_STEPS // 10], "h_autocorr_lag"] = -1.0
    steps.loc[steps.index[-NUM_STEPS // 10 :], "h_autocorr_lag"] = 0.999
    assert results(verdict(steps))[2] is False


# ------------------------------------------------------------------- 4: the dead tokens


@pytest.mark.parametrize(
    ("early", "late", "jump_early", "jump_late", "passed"),
    [
        (1.0, 0.0, 0.8, 0.0, True),
        (0.5, 0.5, 0.4, 0.2, True),
        (0.4, 0.1, 0.4, 0.0, False),  # never got going
        (1.0, 0.9, 0.8, 0.5, False),  # does not slow down
        (1.0, 1.0, 0.2, 0.8, False),  # speeds up
        (0.0, 0.0, 0.0, 0.0, False),  # nothing moved at all
    ],
)
def test_dead_tokens_must_move_and_then_slow_down(
    early: float, late: float, jump_early: float, jump_late: float, passed: bool
) -> None:
    first = np.arange(NUM_STEPS) < NUM_STEPS // 2
    steps = steps_table(
        dead_moving=np.where(first, early, late),
        dead_early=np.where(first, jump_early, 0.0),
        dead_midlife=np.where(first, 0.0, jump_late),
    )
    found = verdict(steps)
    assert results(found)[3] is passed
    assert check(found, "dead_moving_early").value == pytest.approx(early)
    slowdown = check(found, "dead_slowdown").value
    assert slowdown == pytest.approx(jump_late / jump_early) if jump_early else slowdown is None


def test_one_weight_near_zero_decides_nothing() -> None:
    """There the cells are tiny, and the mean of displacements counted in them is that one weight's."""
    steps = steps_table()
    steps.loc[950, "dead_l1_mean"] = 1e30
    assert verdict(steps).as_json() == verdict().as_json()


# --------------------------------------------------------- what could not be measured


def test_without_evaluations_the_first_two_are_not_measured() -> None:
    found = verdict(evals=evals_table().iloc[:0])
    assert results(found) == [None, None, True, True]
    assert (found.beats_unigram, found.beats_oracle, found.beats_bigram) == (None, None, None)
    assert "n/a" in found.as_text()
    assert found.as_text().count("not measured: the run ended before its first evaluation") == 8


def test_where_nothing_is_held_out_the_first_two_say_so() -> None:
    found = judge(VerdictConfig(), steps_table(), pd.DataFrame(), MIN_LAG, held_out=False)
    assert results(found)[:2] == [None, None]
    assert found.as_text().count("not measured: nothing is held out (data.val_fraction = 0)") == 8


def test_an_evaluation_of_an_earlier_version_lacks_the_tempered_unigram() -> None:
    missing = {name: math.nan for name in EVAL_COLUMNS if name.startswith(("tempered", "trigram", "fourgram"))}
    found = verdict(evals=evals_table(**missing))
    assert results(found)[:2] == [None, True]
    assert found.as_text().count("not measured: the run was evaluated by an earlier version") == 3


def test_a_single_held_out_window_has_no_standard_error() -> None:
    nan = {name: math.nan for name in EVAL_COLUMNS if name.endswith("_se") or name == "context_gain"}
    nan |= {name: 1 for name in EVAL_COLUMNS if name.endswith("_clusters")}
    found = verdict(evals=evals_table(**nan))
    assert results(found) == [None, None, True, True]
    assert found.beats_unigram is None
    assert found.as_text().count("not measured: a single held-out window has no standard error") == 8


def test_without_dead_tokens_the_fourth_is_not_measured() -> None:
    names = ("dead_moving", "dead_l1_mean", "dead_linf_max", "dead_early", "dead_midlife", "dead_late", "dead_frozen")
    undefined: dict[str, Any] = dict.fromkeys(names, math.nan)
    found = verdict(steps_table(**undefined))
    assert results(found) == [True, True, True, None]


def test_a_run_shorter_than_the_lag_shows_no_direction() -> None:
    assert results(verdict(steps_table(h_autocorr_lag=math.nan)))[2] is None


@pytest.mark.parametrize("num_steps", [1, 2, 5, 11, MIN_LAG, MIN_STEPS - 1, MIN_STEPS])
def test_short_runs_cannot_tell(num_steps: int) -> None:
    found = verdict(steps_table(num_steps))
    assert (results(found)[2] is None) == (num_steps <= MIN_LAG)
    assert (results(found)[3] is None) == (num_steps < MIN_STEPS)
    lines = [line for line in found.as_text().splitlines() if f"cannot tell: run too short ({num_steps} steps" in line]
    assert len(lines) == (num_steps <= MIN_LAG) + 2 * (num_steps < MIN_STEPS)


@pytest.mark.parametrize(("num_steps", "passed"), [(MIN_STEPS_TO_FREEZE - 1, None), (MIN_STEPS_TO_FREEZE, False)])
def test_dead_tokens_that_have_not_slowed_down_yet_may_still_do(num_steps: int, passed: bool | None) -> None:
    found = verdict(steps_table(num_steps, dead_early=0.8, dead_midlife=0.0))
    assert results(found)[3] is passed
    assert ("run too short for the freeze" in check(found, "dead_slowdown").reading) is (passed is None)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_run_that_diverged_is_judged_by_what_came_before(loss: float) -> None:
    steps = steps_table()
    worst = dict.fromkeys(steps.columns.drop("step"), math.nan) | {"loss": loss, "step": NUM_STEPS + 1}
    found = verdict(pd.concat([steps, pd.DataFrame([worst])], ignore_index=True))
    assert results(found) == [True] * 4
    assert check(found, "training_loss").passed is True


def test_a_run_that_diverged_in_its_first_step() -> None:
    steps = steps_table(1)
    steps.loc[:, steps.columns.drop("step")] = math.nan
    found = verdict(steps, evals_table().iloc[:0])
    assert results(found) == [None] * 4
    assert check(found, "training_loss").passed is None, "what was not measured did not fail"


def test_an_evaluation_that_ran_to_infinity_beats_nothing() -> None:
    margins = {name: -math.inf for name in EVAL_COLUMNS if name.endswith("_margin")}
    errors = {f"{name}_se": math.nan for name in margins}
    gone = {"val_loss": math.inf, "val_loss_se": math.nan, "context_gain": math.nan, "context_gain_se": math.nan}
    found = verdict(evals=evals_table(**margins, **errors, **gone))
    assert found.beats_unigram is not True
    assert results(found)[1] is not True


# ------------------------------------------------------------------- the verdict's shape


@pytest.mark.parametrize(
    ("passed", "expected"),
    [
        ([True, True], True),
        ([True, False], False),
        ([None, False], False),
        ([True, None], None),
        ([None, None], None),
    ],
)
def test_a_criterion_needs_all_its_checks(passed: list[bool | None], expected: bool | None) -> None:
    checks = [Check(str(number), 1.0, 1.0, each, "") for number, each in enumerate(passed)]
    ignored = [Check("aside", 1.0, 1.0, False, "", decides=False), Check("aside", None, 1.0, None, "", decides=False)]
    assert Criterion("", checks + ignored).passed is expected


def test_json_has_value_threshold_result_and_reading_of_every_check() -> None:
    written = verdict().as_json()
    assert written["beats_unigram"] is written["beats_oracle"] is written["beats_bigram"] is True
    assert [criterion["passed"] for criterion in written["criteria"]] == [True] * 4
    checks = [each for criterion in written["criteria"] for each in criterion["checks"]]
    assert len({each["name"] for each in checks}) == len(checks) == 13
    for each in checks:
        assert set(each) == {"name", "value", "threshold", "passed", "reading", "decides", "outcome"}
        assert each["reading"]
        assert "\n" not in each["reading"]


def test_text_numbers_the_criteria_and_marks_their_checks() -> None:
    found = verdict(evals=evals_table(non_unigram_top1=0.0, bigram_margin=-1.0))
    lines = found.as_text().splitlines()
    heads = [line for line in lines if not line.startswith(" ")]
    assert [line.split()[:2] for line in heads] == [["pass", "1."], ["pass", "2."], ["pass", "3."], ["pass", "4."]]
    assert len(lines) == 4 + 13
    (bigram,) = [line for line in lines if "above bigram " in line]
    assert bigram.split()[0] == "no", "it decides nothing, so it does not fail"
    (off,) = [line for line in lines if "top predictions" in line]
    assert off.split()[0] == "no"


def test_over_a_short_lag_direction_is_not_judged() -> None:
    found = judge(VerdictConfig(), steps_table(), evals_table(), MIN_LAG - 1)
    assert results(found)[2] is None
    assert f"cannot tell: verdict.direction_lag too short ({MIN_LAG} steps needed)" in found.as_text()


def test_a_diverged_step_says_nothing_of_dead_tokens() -> None:
    steps = steps_table(NUM_STEPS + 10, dead_early=0.8, dead_midlife=0.0, dead_late=0.1, dead_frozen=0.1)
    last = steps.index[-10:]  # weights that are no numbers are in no regime
    steps.loc[last, ["dead_early", "dead_midlife", "dead_late", "dead_frozen"]] = 0.0
    assert results(judge(VerdictConfig(), steps, evals_table(), MIN_LAG))[3] is False
