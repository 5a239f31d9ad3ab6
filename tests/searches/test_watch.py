"""A TrialWatch reports to the study whatever happens to the storage and the run's files meanwhile."""

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import tiny_config
from optuna.trial import FrozenTrial, TrialState
from studies import Unreliable, join

from marble_sweep.config import dump
from marble_sweep.runs.files import write_json, write_text
from marble_sweep.searches.storage import PatientStorage, StorageError
from marble_sweep.searches.study import HEARTBEAT, SharedStudy, records
from marble_sweep.searches.trial_watch import TrialWatch

AWAY = OSError(5, "Input/output error")
TIMEOUT = 0.6  # seconds; six heartbeats in that time
ROWS = "step,val_loss,val_loss_se\n28,6.0,0.1\n40,5.5,0.1\n"
CONFIG = ("certify.threshold=5.0", "trainer.num_evals=2", "certify.stop=true")


@pytest.fixture
def within() -> Unreliable:
    return Unreliable()


@pytest.fixture
def shared(within: Unreliable) -> SharedStudy:
    return join(PatientStorage(within, "there", 0.0))  # gives up at once


def watch(shared: SharedStudy, run_dir: Path, show: Callable[[int], None] = lambda step: None) -> TrialWatch:
    """The watch of a new trial, whose run has finished at step 40 and has no evaluations yet."""
    asked = shared.ask()
    assert asked is not None
    config = tiny_config(*CONFIG)
    run_dir.mkdir()
    write_text(run_dir / "config.yaml", dump(config))
    write_json(run_dir / "metadata.json", {"status": "finished", "step": 40})
    return TrialWatch(asked[0], config, run_dir, TIMEOUT, show)


def after_heartbeat(shared: SharedStudy, *, more_than: float = 0.0) -> FrozenTrial:
    """The trial once it has a heartbeat above `more_than` seconds. pytest's time limit ends the wait."""
    while True:
        (trial,) = shared.study.get_trials()
        if trial.user_attrs.get(HEARTBEAT, 0.0) > more_than:
            return trial
        time.sleep(0.02)


def test_heartbeats_and_evaluations_go_on_after_an_outage(
    shared: SharedStudy, within: Unreliable, tmp_path: Path
) -> None:
    watching = watch(shared, tmp_path / "run")
    write_text(tmp_path / "run" / "evals.csv", ROWS)
    within.failures = {"set_trial_intermediate_value": [AWAY] * 2, "set_trial_user_attr": [AWAY] * 2}
    with watching:
        heartbeat = after_heartbeat(shared).user_attrs[HEARTBEAT]
        trial = after_heartbeat(shared, more_than=heartbeat)
    assert not any(within.failures.values())
    assert sorted(trial.intermediate_values) == [28, 40]


def test_heartbeats_go_on_while_rows_cannot_be_read(shared: SharedStudy, tmp_path: Path) -> None:
    watching = watch(shared, tmp_path / "run")
    (tmp_path / "run" / "evals.csv").mkdir()
    with watching:
        heartbeat = after_heartbeat(shared).user_attrs[HEARTBEAT]
        after_heartbeat(shared, more_than=heartbeat)


def test_an_evaluation_that_was_not_reported_is_reported_at_the_end(
    shared: SharedStudy, within: Unreliable, tmp_path: Path
) -> None:
    watching = watch(shared, tmp_path / "run")
    write_text(tmp_path / "run" / "evals.csv", ROWS)
    within.failures = {"set_trial_intermediate_value": [AWAY]}
    with pytest.raises(StorageError):
        watching.result(tmp_path / "run")
    result = watching.result(tmp_path / "run")
    assert (result.outcome, result.step, result.val_loss) == ("below", 40, 5.5)
    assert sorted(shared.study.get_trials()[0].intermediate_values) == [28, 40]


def test_a_trial_that_another_worker_ended_is_watched_to_its_end(shared: SharedStudy, tmp_path: Path) -> None:
    """Its worker was only slow: it shows its steps and gets its result, and the study stays as it is."""
    steps: list[int] = []
    watching = watch(shared, tmp_path / "run", steps.append)
    write_text(tmp_path / "run" / "evals.csv", ROWS)
    write_text(tmp_path / "run" / "metrics.csv", "step,loss\n1,6.5\n2,6.4\n")
    shared.fail_stale_trials(alone=True)
    with watching:
        while len(steps) < 3:  # a heartbeat is due before each
            time.sleep(0.02)
    assert set(steps) == {2}
    assert watching.result(tmp_path / "run").outcome == "below"
    (trial,) = shared.study.get_trials()
    assert (trial.state, trial.intermediate_values) == (TrialState.FAIL, {})
    assert HEARTBEAT not in trial.user_attrs


def test_a_watch_leaves_no_thread_behind(shared: SharedStudy, tmp_path: Path) -> None:
    before = threading.enumerate()
    with watch(shared, tmp_path / "run"):
        after_heartbeat(shared)
    assert threading.enumerate() == before


def test_an_infinite_loss_is_not_reported(shared: SharedStudy, tmp_path: Path) -> None:
    """It would become the trial's constraint, and Optuna's constraints are finite."""
    watching = watch(shared, tmp_path / "run")
    write_text(tmp_path / "run" / "evals.csv", "step,val_loss,val_loss_se\n28,6.0,0.1\n40,inf,\n")
    watching.report_evaluations(tmp_path / "run")
    (trial,) = shared.study.get_trials()
    assert list(trial.intermediate_values) == [28]


@pytest.mark.parametrize(("metadata", "stage"), [({"corpus": {}}, "training"), ({}, "setup")])
def test_the_stage_of_a_crash(metadata: dict[str, object], stage: str, shared: SharedStudy, tmp_path: Path) -> None:
    """A run writes its corpus to metadata.json once it is ready to train."""
    watching = watch(shared, tmp_path / "run")
    crash = {"status": "failed", "reason": "RuntimeError: boom"}
    write_json(tmp_path / "run" / "metadata.json", {**crash, **metadata})
    result = watching.result(tmp_path / "run")
    assert (result.outcome, result.reason, result.stage) == ("failed", "RuntimeError: boom", stage)
    assert watching.result("its process did not start").stage == "start"


@pytest.mark.parametrize(
    ("row", "outcome"),
    [("40,5.05,0.1", "undecided"), ("40,6.5,0.1", "below"), ("40,inf,", "undecided")],
)
def test_a_trial_that_ends_uncertified_is_below_or_undecided(
    row: str, outcome: str, shared: SharedStudy, tmp_path: Path
) -> None:
    watching = watch(shared, tmp_path / "run")
    write_text(tmp_path / "run" / "evals.csv", f"step,val_loss,val_loss_se\n{row}\n")
    result = watching.result(tmp_path / "run")
    assert result.outcome == outcome
    json.dumps(dataclasses.asdict(result), allow_nan=False)  # search.json has no NaN
    shared.tell(watching.trial, result, 100, None)
    assert records(shared.study)[0].outcome == outcome


def test_loss_and_margin_are_of_the_same_windows(shared: SharedStudy, tmp_path: Path) -> None:
    watching = watch(shared, tmp_path / "run")
    columns = "step,val_loss,val_loss_se,all_windows,all_val_loss,all_val_loss_se"
    write_text(tmp_path / "run" / "evals.csv", f"{columns}\n40,5.3,0.1,900,5.2,0.05\n")
    result = watching.result(tmp_path / "run")
    threshold = watching.config.certify.loss
    assert threshold is not None
    assert (result.val_loss, result.num_windows) == (5.2, 900)
    assert result.margin == pytest.approx(threshold - 5.2)
