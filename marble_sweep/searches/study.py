"""The study: trials in an Optuna storage, shared by any number of workers, each killed at any time.

Optuna's states say how a trial ended: COMPLETE is certified (its constraint is met) or refuted (it is not, at the end
of the budget); PRUNED was stopped as hopeless, as diverged or as too slow, its constraint set before; FAIL crashed, or
lost its worker. The value is the number of parameters, and an intermediate value is what the loss still lacks to be
certified, in nats per token. Everything else is in user attributes.

Two workers that ask at once must not choose the same configuration. A trial's number is its ticket: a worker decides
only once every trial with a lower number has been decided on, so decisions happen one after the other in any storage.
A dead worker's trial is ended before it is passed over: if the worker was only slow, its decision comes too late.
"""

import contextlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from marble_sweep.checks import CheckError
from marble_sweep.runs.status import RunStatus
from marble_sweep.searches.space import Space, Value
from marble_sweep.searches.storage import PatientStorage, StorageError
from marble_sweep.searches.strategy import Proposal, Settled, TrialRecord, Wait

PLAN = "plan"  # the user attribute that says a trial is decided on
HEARTBEAT = "beat"  # seconds that the trial's worker has been at it: counts up while the worker lives
WORKER = "worker"  # the machine's name and the process's number
OUTCOME = "outcome"
RESULT = "result"  # how the trial's run ended, as one attribute: each one that a journal writes waits for the disk
WITHDRAWN = "withdrawn"  # asked for when there was nothing left to do
LOSS, SPEED = "held_out_loss", "speed"  # the constraints
DIVERGED_VIOLATION = 1e6  # nats per token that a diverged loss lacks: Optuna's constraints are finite
STATES = {RunStatus.CERTIFIED: TrialState.COMPLETE, "refuted": TrialState.COMPLETE, RunStatus.FAILED: TrialState.FAIL}
TICKET_SECONDS = 0.02  # between two looks at the tickets before ours
HEARTBEATS_PER_TIMEOUT = 6.0  # in the time after which a worker without any is taken for dead

Decide = Callable[[list[TrialRecord]], Proposal | Wait | Settled]


class HeartbeatMonitor:
    """Which workers are dead: their trial's beat has not changed for `timeout` seconds, on this worker's own clock.

    The time in which the storage was out of reach does not count: nobody's beat came through.
    """

    def __init__(self, timeout: float, storage: BaseStorage) -> None:
        self.timeout = timeout
        self.storage = storage
        self._seen: dict[int, tuple[int | None, float]] = {}  # by trial: its beat, and when that was new to us

    def is_gone(self, trial: FrozenTrial) -> bool:
        beat, now = trial.user_attrs.get(HEARTBEAT), time.monotonic()
        known = self._seen.get(trial.number)
        if known is None or known[0] != beat:
            self._seen[trial.number] = known = (beat, now)
        back_at = self.storage.back_at if isinstance(self.storage, PatientStorage) else 0.0
        return now - max(known[1], back_at) > self.timeout


class Sampler(BaseSampler):
    """Hands the strategy's decisions to Optuna, one at a time over all workers."""

    def __init__(self, space: Space, decide: Decide, heartbeats: HeartbeatMonitor) -> None:
        self.space = space
        self.decide = decide
        self.heartbeats = heartbeats
        self.decision: Proposal | Wait | Settled = Wait()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.space.distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Value]:
        self._await_turn(study, trial)
        self.decision = self.decide(records(study))
        if isinstance(self.decision, Proposal):
            return self.space.params(self.decision.size, self.decision.recipe)
        return self.space.params(0, (0.0,) * len(self.space.recipes))  # withdrawn at once

    def _await_turn(self, study: Study, trial: FrozenTrial) -> None:
        """Wait until all trials with lower numbers are decided on, or ended. Shows meanwhile that this worker lives.

        Raises UpdateFinishedTrialError where another worker has ended this trial.
        """
        started = last_beat = time.monotonic()
        while before := [each for each in running(study) if each.number < trial.number and PLAN not in each.user_attrs]:
            for each in before:
                if self.heartbeats.is_gone(each):
                    end(study, each.number, TrialState.FAIL)
            time.sleep(TICKET_SECONDS)
            if (now := time.monotonic()) - last_beat >= self.heartbeats.timeout / HEARTBEATS_PER_TIMEOUT:
                last_beat = now
                study._storage.set_trial_user_attr(trial._trial_id, HEARTBEAT, now - started)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise AssertionError(f"{param_name} is sampled with all others")


def running(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def end(study: Study, trial: Trial | int, state: TrialState, value: float | None = None) -> None:
    """End a trial, unless another worker has ended it: the first one to do so counts."""
    with contextlib.suppress(UpdateFinishedTrialError):
        study.tell(trial, value, state, skip_if_finished=True)


def records(study: Study) -> list[TrialRecord]:
    """The study's trials as the strategy sees them, in the order of their numbers; withdrawn ones left out."""
    return [record for trial in study.get_trials(deepcopy=False) if (record := as_record(trial)) is not None]


def as_record(trial: FrozenTrial) -> TrialRecord | None:
    """None for a trial that was not decided on, or withdrawn."""
    plan = trial.user_attrs.get(PLAN)
    if plan is None:
        return None
    outcome = trial.user_attrs.get(OUTCOME, "stale")
    if trial.state == TrialState.RUNNING:
        outcome = RunStatus.RUNNING
    elif trial.state == TrialState.FAIL and outcome != RunStatus.FAILED:
        outcome = "stale"  # its worker died while it told
    return TrialRecord(
        number=trial.number,
        size=plan["size"],
        recipe=tuple(plan["recipe"]),
        seed=plan["seed"],
        outcome=outcome,
        margins={step: -lacking for step, lacking in trial.intermediate_values.items()},
    )


@dataclass(frozen=True)
class Result:
    """How a trial's run ended."""

    outcome: str
    directory: str
    step: int
    tokens: int
    seconds: float
    steps_per_minute: float | None
    val_loss: float | None
    margin: float | None  # nats per token to the threshold
    margin_se: float | None
    reason: str | None  # of a crash
    field: str | None = None  # the setting that one of our own checks complained of
    stage: str = "training"  # that a crash was in: start (of its process), setup (before it trained) or training


def result_of(trial: FrozenTrial) -> dict[str, Any]:
    """The fields of the trial's Result that were known; none of a trial that runs or was lost."""
    found: dict[str, Any] = trial.user_attrs.get(RESULT, {})
    return found


@dataclass(frozen=True)
class SharedStudy:
    """A study that other workers may share."""

    study: Study
    sampler: Sampler

    def ask(self) -> tuple[Trial, Proposal] | None:
        """A new trial with its plan; None where there is nothing to start, after all."""
        with contextlib.suppress(UpdateFinishedTrialError):  # this worker was so slow that it was taken for dead
            trial = self.study.ask(self.sampler.space.distributions)
            _ = trial.relative_params  # Optuna does not ask the sampler where every parameter has but one value
            decision = self.sampler.decision
            if not isinstance(decision, Proposal):
                trial.set_user_attr(OUTCOME, WITHDRAWN)
                end(self.study, trial, TrialState.FAIL)
                return None
            size = self.sampler.space.sizes[decision.size]
            trial.set_user_attr("size", str(size))
            trial.set_user_attr(WORKER, f"{platform.node()} {os.getpid()}")
            trial.set_user_attr(PLAN, asdict(decision))
            # A database may have let the plan through while another worker ended the trial.
            if any(each.number == trial.number for each in running(self.study)):
                return trial, decision
        return None

    def tell(self, trial: Trial, result: Result, num_parameters: int, slowest: float | None) -> None:
        """Record how a trial ended: constraints first, then its state. Nothing where another worker ended it."""
        with contextlib.suppress(UpdateFinishedTrialError):
            trial.set_user_attr(RESULT, {name: each for name, each in asdict(result).items() if each is not None})
            trial.set_user_attr(OUTCOME, result.outcome)
            if result.outcome != RunStatus.FAILED:
                reported = self.study.trials[trial.number].intermediate_values
                lacking = (
                    reported[max(reported)] if reported and result.outcome != RunStatus.DIVERGED else DIVERGED_VIOLATION
                )
                trial.set_constraint(LOSS, lacking)
                if slowest is not None and result.steps_per_minute is not None:
                    trial.set_constraint(SPEED, slowest - result.steps_per_minute)
            state = STATES.get(result.outcome, TrialState.PRUNED)
            end(self.study, trial, state, num_parameters if state == TrialState.COMPLETE else None)

    def fail_stale_trials(self, *, alone: bool = False) -> None:
        """End the trials of dead workers, so that they are taken up again; of all workers where this one is alone."""
        for trial in running(self.study):
            if alone or self.sampler.heartbeats.is_gone(trial):
                end(self.study, trial.number, TrialState.FAIL)

    def release(self, trial: Trial) -> None:
        """Give up a trial that was interrupted: whoever comes next takes it up again."""
        with contextlib.suppress(StorageError):  # then others will take this worker for dead
            end(self.study, trial, TrialState.FAIL)


def open_study(
    storage: BaseStorage, name: str, space: Space, decide: Decide, settings: Mapping[str, Any], timeout: float
) -> SharedStudy:
    """Begin the study, or join it.

    Raises ValueError where one of that name searches another space, or with other `settings` (JSON-able).
    """
    sampler = Sampler(space, decide, HeartbeatMonitor(timeout, storage))
    with _quiet():
        study = optuna.create_study(
            storage=storage, sampler=sampler, study_name=name, direction=StudyDirection.MINIMIZE, load_if_exists=True
        )
    ours = {
        "space": {key: json.loads(distribution_to_json(each)) for key, each in space.distributions.items()},
        "config": json.loads(json.dumps(settings)),
    }
    for name_of, now in ours.items():
        if name_of not in study.user_attrs:
            study.set_user_attr(name_of, now)
        then = study.user_attrs[name_of]
        for key in {**then, **now}:
            if then.get(key) != now.get(key):
                what = f"the {name_of} it began with: {key} was {then.get(key)}, now {now.get(key)}"
                raise CheckError(f"search.study = {name}: must have {what}", "search.study")
    return SharedStudy(study, sampler)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's greeting is not for the user."""
    logger = logging.getLogger("optuna")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
