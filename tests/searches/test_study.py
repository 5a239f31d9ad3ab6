"""How Optuna sees the end of a trial: states, constraints and plots."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import optuna
import optuna.visualization
import plotly.graph_objects as go
import pytest
from helpers import tiny_config
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState
from studies import join, made_up, small_space

from marble_sweep.searches.outcome import SearchResult
from marble_sweep.searches.space import build
from marble_sweep.searches.storage import open_storage
from marble_sweep.searches.strategy import Proposal
from marble_sweep.searches.study import (
    DIVERGED_VIOLATION,
    HEARTBEAT,
    LOSS,
    OLD_HEARTBEAT,
    PLAN,
    RULES,
    SPEED,
    SharedStudy,
    as_record,
    open_study,
    records,
)
from marble_sweep.searches.thresholds import trial_settings
from marble_sweep.searches.trial_record import TrialRecord

SIZES = {"certified": 4, "below": 0, "pruned": 1, "diverged": 2, "too_slow": 3, "failed": 5}
LACKING = {"certified": -0.2, "below": 0.3, "pruned": 0.9, "diverged": 0.5, "too_slow": -0.1, "failed": 0.4}


@pytest.fixture
def shared(tmp_path: Path) -> SharedStudy:
    return join(open_storage(str(tmp_path / "study.log")))


def ended(shared: SharedStudy, outcome: str, *, min_steps_per_minute: float | None = 1000.0) -> FrozenTrial:
    """An ended trial of a size of its own, evaluated twice."""
    shared.sampler.decide = lambda tried: Proposal(SIZES[outcome], (2.0,), 0, "probe")
    asked = shared.ask()
    assert asked is not None
    trial, _ = asked
    trial.report(1.0, 14)
    trial.report(LACKING[outcome], 20)
    speed = 500.0 if outcome == "too_slow" else 2000.0
    shared.tell(trial, made_up(outcome, steps_per_minute=speed), 100 + SIZES[outcome], min_steps_per_minute)
    return shared.study.get_trials()[trial.number]


@pytest.mark.parametrize(
    ("outcome", "state", "constraints"),
    [
        ("certified", TrialState.COMPLETE, {LOSS: -0.2, SPEED: -1000}),
        ("below", TrialState.COMPLETE, {LOSS: 0.3, SPEED: -1000}),
        ("pruned", TrialState.PRUNED, {LOSS: 0.9, SPEED: -1000}),
        ("diverged", TrialState.PRUNED, {LOSS: DIVERGED_VIOLATION, SPEED: -1000}),
        ("too_slow", TrialState.PRUNED, {LOSS: -0.1, SPEED: 500}),
        ("failed", TrialState.FAIL, {}),
    ],
)
def test_an_outcome_in_optunas_words(
    outcome: str, state: TrialState, constraints: dict[str, float], shared: SharedStudy
) -> None:
    trial = ended(shared, outcome)
    assert trial.state == state
    assert trial.constraints == constraints
    assert trial.value == (100 + SIZES[outcome] if state == TrialState.COMPLETE else trial.value)
    assert trial.user_attrs["outcome"] == outcome
    assert [record.outcome for record in records(shared.study)] == [outcome]


class Watching(InMemoryStorage):
    """Keeps what the constraints of a trial were when its state was set."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, float]] = []

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        if state.is_finished():
            self.seen.append(self.get_trial(trial_id).constraints)
        return super().set_trial_state_values(trial_id, state, values)


def test_constraints_come_before_the_state() -> None:
    """Optuna ranks a pruned trial by its last value, as if it were feasible, unless it has constraints by then."""
    storage = Watching()
    shared = join(storage)
    for outcome in ("pruned", "diverged", "too_slow"):
        ended(shared, outcome)
    assert len(storage.seen) == 3
    assert all(max(constraints.values()) > 0 for constraints in storage.seen)


def test_without_a_limit_speed_constrains_nothing(shared: SharedStudy) -> None:
    assert ended(shared, "certified", min_steps_per_minute=None).constraints == {LOSS: -0.2}


def test_the_best_trial_is_a_certified_one(shared: SharedStudy) -> None:
    """Though most others have fewer parameters."""
    for outcome in SIZES:
        ended(shared, outcome)
    best = shared.study.best_trial
    assert best.user_attrs["outcome"] == "certified"
    assert best.value == 104


def test_a_space_of_one_trial_has_a_plan(tmp_path: Path) -> None:
    space = build([], lambda size: 100)
    plan = Proposal(0, (), 0, "probe")
    storage = open_storage(str(tmp_path / "study.log"))
    asked = open_study(storage, "study", space, lambda tried: plan, {"threshold": "unigram"}, 60).ask()
    assert asked is not None
    assert asked[1] == plan


@pytest.mark.parametrize("name", ["plot_optimization_history", "plot_intermediate_values", "plot_slice"])
def test_optunas_plots(name: str, shared: SharedStudy) -> None:
    for outcome in SIZES:
        ended(shared, outcome)
    figure: go.Figure = getattr(optuna.visualization, name)(shared.study)
    assert sum(len(trace.y) for trace in figure.data) >= 2


def test_a_worker_that_dies_while_it_reports_the_end_leaves_a_stale_trial(shared: SharedStudy) -> None:
    asked = shared.ask()
    assert asked is not None
    trial, plan = asked
    trial.set_user_attr("outcome", "certified")  # written first; the constraints and the state would come next
    shared.fail_stale_trials(alone=True)
    (record,) = records(shared.study)
    assert record.outcome == "stale"
    again = shared.ask()
    assert again is not None
    assert (again[1].size, again[1].recipe, again[1].seed, again[1].reason) == (plan.size, plan.recipe, 0, "retry")


@pytest.mark.parametrize("attribute", [HEARTBEAT, OLD_HEARTBEAT])
def test_time_without_a_worker_is_not_counted(attribute: str, shared: SharedStudy) -> None:
    """A search that is killed on Monday and continues on Tuesday has not used a day of search.max_minutes."""
    ended(shared, "certified")
    asked = shared.ask()
    assert asked is not None
    asked[0].set_user_attr(attribute, 3.0)
    shared.fail_stale_trials(alone=True)
    trials = shared.study.get_trials()
    assert trials[1].datetime_start is not None
    trials[1].datetime_start -= timedelta(days=1)
    told = trials[0].duration
    assert told is not None
    result = SearchResult(small_space(), tiny_config(), trials, [])
    assert result.seconds() == pytest.approx(told.total_seconds() + 3)


def test_trials_without_a_plan_are_none(shared: SharedStudy) -> None:
    shared.study.ask()
    assert records(shared.study) == []
    assert PLAN not in shared.study.get_trials()[0].user_attrs


@pytest.mark.parametrize(
    ("sweeps", "threshold", "line"),
    [
        (
            ("model.num_layers=0,1", "model.hidden_dim=2,3"),
            "unigram",
            "must have the space it began with: model.hidden_dim was ",
        ),
        ((), "bigram", "must have the config it began with: threshold was unigram, now bigram"),
    ],
)
def test_another_search_may_not_join(sweeps: tuple[str, ...], threshold: str, line: str, tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "study.log"))
    join(storage)
    with pytest.raises(ValueError, match=f"search.study = study: {line}") as raised:
        open_study(storage, "study", small_space(*sweeps), lambda tried: None, {"threshold": threshold}, 60)  # type: ignore[arg-type,return-value]
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("part", "seed", "expected"),
    [("search", 0, {}), ("search", 1, {"trainer.eval_part": "confirm"}), ("all", 0, {}), ("all", 1, {})],
)
def test_fresh_seeds_are_evaluated_on_fresh_windows(part: str, seed: int, expected: dict[str, str]) -> None:
    base = tiny_config(f"trainer.eval_part={part}")
    assert trial_settings(base, Proposal(0, (0.0,), seed, "confirm" if seed else "probe")) == expected


@pytest.mark.parametrize("began", [None, 1, RULES - 1])
def test_a_study_that_began_under_other_rules_is_refused(began: int | None, tmp_path: Path) -> None:
    """Version 0.1.0 recorded no rules."""
    storage = open_storage(str(tmp_path / "study.log"))
    study = join(storage).study
    settings = {key: value for key, value in study.user_attrs["config"].items() if key != "rules"}
    study.set_user_attr("config", settings if began is None else settings | {"rules": began})
    with pytest.raises(ValueError, match=r"search\.study = study: must have begun under the rules of ") as raised:
        join(storage)
    assert f"began under other ones ({began or 1}); take another hydra.sweep.dir" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_trials_that_have_ended_are_read_once_in_whatever_order_they_end(
    shared: SharedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def read_record(trial: FrozenTrial) -> TrialRecord | None:
        read.append(trial.number)
        return as_record(trial)

    monkeypatch.setattr("marble_sweep.searches.study.as_record", read_record)
    shared.sampler.decide = lambda tried: Proposal(len(tried.records), (2.0,), 0, "probe")
    asked = [shared.ask() for _ in range(4)]
    for number in (1, 0, 3):
        trial, _ = asked[number] or (None, None)
        assert trial is not None
        shared.tell(trial, made_up("certified"), 100, None)
        expected = records(shared.study)
        assert shared.snapshot().records == expected
        assert [trial.number for trial in shared.snapshot().trials] == [0, 1, 2, 3]
    read.clear()
    shared.snapshot()
    assert read == [2, 3]  # 2 runs, and what follows it may have changed
