"""The study: trials in an Optuna storage, shared by any number of workers. Any of them may be killed at any time.

Optuna's states say how a trial ended. COMPLETE: certified (its constraint is met), or below or undecided at the end of
the budget (it is not met). PRUNED: stopped as hopeless, diverged or too slow; its constraint is set first. FAIL:
crashed, or stale (its worker died). The value is what the search minimises, of the trial's size. An intermediate value
is what the margin lacks to certify, in nats per token. Everything else is in user attributes.

Two workers that ask at the same time must not choose the same configuration. A trial's number is its ticket: a worker
decides only once every trial with a lower number has a plan, so decisions happen one after the other in any storage.
A stale trial is ended before it is passed over: if its worker was only slow, the worker's decision comes too late.
"""

import contextlib
import itertools
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from marble_sweep.checks import CheckError
from marble_sweep.metrics.margin import Outcome
from marble_sweep.renamed_keys import with_current_keys
from marble_sweep.runs.status import RunStatus
from marble_sweep.searches.space import Space, Value
from marble_sweep.searches.storage import PatientStorage, StorageError
from marble_sweep.searches.strategy import Proposal, Settled, Wait
from marble_sweep.searches.trial_record import STALE, Standing, TrialRecord

PLAN = "plan"  # the user attribute that says what a trial trains
HEARTBEAT = "heartbeat"  # seconds since the trial began: its worker increases it as long as it lives
OLD_HEARTBEAT = "beat"  # what version 0.1.0 called it
WORKER = "worker"  # the machine's name and the process's number
OUTCOME = "outcome"
RESULT = "result"  # how the trial's run ended, in one attribute: a journal waits for the disk at every write
WITHDRAWN = "withdrawn"  # the outcome of a trial that was created when nothing was left to do
LOSS, SPEED = "held_out_loss", "speed"  # the constraints
# By which trials are judged; a study keeps those that it began with. 1 took windows for independent; 2 took the fitted
# unigram for the best one, and asked for no use of the context; 3 confirmed on a few seeds; 4 looked at no more than
# trainer.eval_windows, and gave runs up by a fall for each evaluation.
RULES = 5
# Settings that a study may have begun without, as they were then.
ADDED_SETTINGS = {"search.minimise": "n_params"}
DIVERGED_VIOLATION = 1e6  # the loss constraint of a diverged trial: Optuna's constraints are finite
STATES: dict[str, TrialState] = {
    **dict.fromkeys(Outcome, TrialState.COMPLETE),
    RunStatus.FAILED: TrialState.FAIL,
}
TICKET_SECONDS = 0.005  # between two checks of the trials with lower numbers, for each that has no plan yet
HEARTBEATS_PER_TIMEOUT = 6.0  # a trial without a heartbeat for the whole timeout is stale


@dataclass(frozen=True)
class Snapshot:
    """The trials with a plan at one moment, by number."""

    trials: list[FrozenTrial]
    records: list[TrialRecord]  # the same as the strategy sees them


Pairs = list[tuple[FrozenTrial, TrialRecord]]
Decide = Callable[[Snapshot], Proposal | Wait | Settled]


class HeartbeatMonitor:
    """Tells which trials are stale: their heartbeat has not changed for `timeout` seconds on this worker's own clock.

    The time while the storage was out of reach does not count: no worker could write a heartbeat.
    """

    def __init__(self, timeout: float, storage: BaseStorage) -> None:
        self.timeout = timeout
        self.storage = storage
        self._seen: dict[int, tuple[float | None, float]] = {}  # by trial: its heartbeat, and when that was new

    def is_stale(self, trial: FrozenTrial) -> bool:
        heartbeat, now = heartbeat_of(trial), time.monotonic()
        last = self._seen.get(trial.number)
        if last is None or last[0] != heartbeat:
            self._seen[trial.number] = last = (heartbeat, now)
        back_at = self.storage.back_at if isinstance(self.storage, PatientStorage) else 0.0
        return now - max(last[1], back_at) > self.timeout


class Sampler(BaseSampler):
    """Gives the strategy's decisions to Optuna, one after the other over all workers."""

    def __init__(self, space: Space, decide: Decide, heartbeats: HeartbeatMonitor) -> None:
        self.space = space
        self.decide = decide
        self.heartbeats = heartbeats
        self.decision: Proposal | Wait | Settled = Wait()
        # How many of the first trials have all ended, and those of them with a plan: they do not change any more.
        self._ended: tuple[int, Pairs] = 0, []
        self.given: Proposal | None = None  # instead of a decision

    def snapshot(self, study: Study) -> Snapshot:
        """The study's trials now; those before the first one that has not ended are read once."""
        number, known = self._ended  # threads may call this
        later = study.get_trials(deepcopy=False)[number:]
        ended = list(itertools.takewhile(lambda trial: trial.state.is_finished(), later))
        known = [*known, *with_records(ended)]
        self._ended = number + len(ended), known
        pairs = [*known, *with_records(later[len(ended) :])]
        return Snapshot([trial for trial, _ in pairs], [record for _, record in pairs])

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.space.distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Value]:
        self._await_turn(study, trial)
        self.decision = self.given or self.decide(self.snapshot(study))
        if isinstance(self.decision, Proposal):
            # Before all else that is known of the trial: the next ticket waits for it.
            study._storage.set_trial_user_attr(trial._trial_id, PLAN, asdict(self.decision))
            return self.space.params(self.decision.size, self.decision.recipe)
        return self.space.params(0, (0.0,) * len(self.space.recipes))  # withdrawn at once

    def _await_turn(self, study: Study, trial: FrozenTrial) -> None:
        """Wait until every trial with a lower number has a plan or has ended. Sends heartbeats meanwhile.

        Raises UpdateFinishedTrialError where another worker has ended this trial.
        """
        started = last_heartbeat = time.monotonic()
        while undecided := [
            earlier
            for earlier in running_trials(study)
            if earlier.number < trial.number and PLAN not in earlier.user_attrs
        ]:
            for earlier in undecided:
                if self.heartbeats.is_stale(earlier):
                    end_trial(study, earlier.number, TrialState.FAIL)
            time.sleep(TICKET_SECONDS * len(undecided))
            if (now := time.monotonic()) - last_heartbeat >= self.heartbeats.timeout / HEARTBEATS_PER_TIMEOUT:
                last_heartbeat = now
                study._storage.set_trial_user_attr(trial._trial_id, HEARTBEAT, now - started)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise AssertionError(f"{param_name} must be sampled together with all other parameters")


def running_trials(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def end_trial(study: Study, trial: Trial | int, state: TrialState, value: float | None = None) -> None:
    """End a trial, unless another worker has ended it: the first one to do so counts."""
    with contextlib.suppress(UpdateFinishedTrialError):
        study.tell(trial, value, state, skip_if_finished=True)


def records(study: Study) -> list[TrialRecord]:
    """The study's trials as the strategy sees them, by number; trials without a plan are left out."""
    return [record for _, record in with_records(study.get_trials(deepcopy=False))]


def with_records(trials: Sequence[FrozenTrial]) -> Pairs:
    """The trials with a plan, as they are and as the strategy sees them."""
    return [(trial, record) for trial in trials if (record := as_record(trial)) is not None]


def as_record(trial: FrozenTrial) -> TrialRecord | None:
    """The trial as the strategy sees it; None for one without a plan."""
    plan = trial.user_attrs.get(PLAN)
    if plan is None:
        return None
    outcome = trial.user_attrs.get(OUTCOME, STALE)
    if trial.state == TrialState.RUNNING:
        outcome = RunStatus.RUNNING
    elif trial.state == TrialState.FAIL and outcome != RunStatus.FAILED:
        outcome = STALE  # its worker died while it reported the end
    return TrialRecord(
        number=trial.number,
        size=plan["size"],
        recipe=tuple(plan["recipe"]),
        seed=plan["seed"],
        outcome=outcome,
        margins={step: -shortfall for step, shortfall in trial.intermediate_values.items()},
        threshold=plan.get("threshold", ""),
        loss=result_of(trial).get("val_loss"),
        standings={name: as_standing(entry) for name, entry in result_of(trial).get("thresholds", {}).items()},
    )


def as_standing(entry: Mapping[str, Any]) -> Standing:
    """How a trial stands towards a threshold, from its entry in `thresholds` of the trial's Result."""
    margins = {int(step): -shortfall for step, shortfall in entry["shortfalls"].items()}
    return Standing(entry["outcome"], margins)


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
    num_windows: int | None = None  # that val_loss and margin are of; None: the evaluated ones, no more were looked at
    margin_df: float | None = None  # degrees of freedom of margin_se; None for infinitely many
    lacks_context: bool = False  # its margin would certify it, but no use of the context is shown
    stage: str = "training"  # where it crashed: start (of its process), setup (before training) or training
    # The settings below `device` that its numbers depend on to the last bit; None where a GPU multiplied.
    device: dict[str, str | int] | None = None
    # Where the search has several thresholds, by threshold: the fields above at the evaluation that decides for it,
    # its `outcome` (null: it is open), and `shortfalls` by step.
    thresholds: dict[str, dict[str, Any]] | None = None
    reused: bool = False  # an earlier run that search.reuse names: nothing was trained


def result_of(trial: FrozenTrial) -> dict[str, Any]:
    """The fields of the trial's Result that are not None; empty for a running or stale trial."""
    result: dict[str, Any] = trial.user_attrs.get(RESULT, {})
    return result


def result_for(trial: FrozenTrial, threshold: str) -> dict[str, Any]:
    """The same, with what the trial shows of a threshold where the search has several."""
    result = result_of(trial)
    return result | result.get("thresholds", {}).get(threshold, {})


def as_result(trial: FrozenTrial) -> Result:
    """The Result of a trial that has one."""
    needed = {field.name: None for field in fields(Result) if field.default is MISSING}
    return Result(**(needed | result_of(trial)))


def heartbeat_of(trial: FrozenTrial) -> float | None:
    """Seconds from the beginning of the trial to its last heartbeat; None where there was none."""
    attributes = trial.user_attrs
    seconds: float | None = attributes.get(HEARTBEAT, attributes.get(OLD_HEARTBEAT))
    return seconds


@dataclass(frozen=True)
class SharedStudy:
    """A study that other workers may share."""

    study: Study
    sampler: Sampler

    def snapshot(self) -> Snapshot:
        return self.sampler.snapshot(self.study)

    def ask(self, given: Proposal | None = None) -> tuple[Trial, Proposal] | None:
        """A new trial with its plan, which is the strategy's unless one is given.

        None where there is nothing to start after all.
        """
        self.sampler.given = given
        with contextlib.suppress(UpdateFinishedTrialError):  # this worker was so slow that its trial became stale
            trial = self.study.ask(self.sampler.space.distributions)
            _ = trial.relative_params  # Optuna does not ask the sampler where every parameter has but one value
            decision = self.sampler.decision
            if not isinstance(decision, Proposal):
                trial.set_user_attr(OUTCOME, WITHDRAWN)
                end_trial(self.study, trial, TrialState.FAIL)
                return None
            size = self.sampler.space.sizes[decision.size]
            trial.set_user_attr("size", str(size))
            trial.set_user_attr(WORKER, f"{platform.node()} {os.getpid()}")
            # A database may have let the plan through while another worker ended the trial.
            if any(other.number == trial.number for other in running_trials(self.study)):
                return trial, decision
        return None

    def tell(self, trial: Trial, result: Result, cost: float, min_steps_per_minute: float | None) -> None:
        """Record how a trial ended: constraints first, then its state. Does nothing where another worker ended it."""
        with contextlib.suppress(UpdateFinishedTrialError):
            fields = {name: value for name, value in asdict(result).items() if value is not None}
            trial.set_user_attr(RESULT, fields)
            trial.set_user_attr(OUTCOME, result.outcome)
            if result.outcome != RunStatus.FAILED:
                reported = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
                measured = reported and result.outcome != RunStatus.DIVERGED
                trial.set_constraint(LOSS, reported[max(reported)] if measured else DIVERGED_VIOLATION)
                if min_steps_per_minute is not None and result.steps_per_minute is not None:
                    trial.set_constraint(SPEED, min_steps_per_minute - result.steps_per_minute)
            state = STATES.get(result.outcome, TrialState.PRUNED)
            end_trial(self.study, trial, state, cost if state == TrialState.COMPLETE else None)

    def fail_stale_trials(self, *, alone: bool = False) -> None:
        """End stale trials, so that they are retried. Where this worker is `alone`, every running trial is stale."""
        for trial in running_trials(self.study):
            if alone or self.sampler.heartbeats.is_stale(trial):
                end_trial(self.study, trial.number, TrialState.FAIL)

    def release(self, trial: Trial) -> None:
        """End a trial that was interrupted, so that the next worker retries it."""
        with contextlib.suppress(StorageError):  # then other workers will find it stale
            end_trial(self.study, trial, TrialState.FAIL)


def open_study(
    storage: BaseStorage, name: str, space: Space, decide: Decide, settings: Mapping[str, Any], timeout: float
) -> SharedStudy:
    """Create the study, or join it.

    Raises ValueError where a study of that name began under other rules, or has another space or other `settings`
    (JSON-able).
    """
    sampler = Sampler(space, decide, HeartbeatMonitor(timeout, storage))
    with _quiet():
        study = optuna.create_study(
            storage=storage, sampler=sampler, study_name=name, direction=StudyDirection.MINIMIZE, load_if_exists=True
        )
    expected = {
        "space": {key: json.loads(distribution_to_json(value)) for key, value in space.distributions.items()},
        "config": json.loads(json.dumps(settings)) | {"rules": RULES},
    }
    if "config" in study.user_attrs and (began := study.user_attrs["config"].get("rules", 1)) != RULES:
        raise CheckError(
            f"search.study = {name}: must have begun under the rules of this version ({RULES}), by which trials are "
            f"judged, and began under other ones ({began}); take another hydra.sweep.dir or search.study"
        )
    for attribute, ours in expected.items():
        if attribute not in study.user_attrs:
            study.set_user_attr(attribute, ours)
        theirs = with_current_keys(study.user_attrs[attribute])
        theirs = {key: value for key, value in ADDED_SETTINGS.items() if key in ours} | theirs
        for key in {**theirs, **ours}:
            if theirs.get(key) != ours.get(key):
                difference = f"{key} was {theirs.get(key)}, now {ours.get(key)}"
                raise CheckError(f"search.study = {name}: must have the {attribute} it began with: {difference}")
    return SharedStudy(study, sampler)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's message about the new study from the user."""
    logger = logging.getLogger("optuna")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
