"""A TrialWatch reports to the study whatever happens to the storage and the run's files meanwhile."""

import time
from pathlib import Path

import pytest
from helpers import tiny_config
from optuna.trial import FrozenTrial
from studies import Unreliable, join

from marble_sweep.config import dump
from marble_sweep.runs.files import write_json, write_text
from marble_sweep.searches.storage import PatientStorage, StorageError
from marble_sweep.searches.study import HEARTBEAT, SharedStudy
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


def watch(shared: SharedStudy, run_dir: Path) -> TrialWatch:
    asked = shared.ask()
    assert asked is not None
    config = tiny_config(*CONFIG)
    run_dir.mkdir()
    write_text(run_dir / "config.yaml", dump(config))
    write_json(run_dir / "metadata.json", {"status": "finished", "step": 40})
    return TrialWatch(asked[0], config, run_dir, TIMEOUT, lambda step: None)


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
    assert (result.outcome, result.step, result.val_loss) == ("refuted", 40, 5.5)
    assert sorted(shared.study.get_trials()[0].intermediate_values) == [28, 40]
