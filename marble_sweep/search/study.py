"""The study: trials in an Optuna storage, shared by any number of workers, each killed at any time.

Optuna's states say how a trial ended: COMPLETE is certified (its constraint is met) or refuted (it is not, at the end
of the budget); PRUNED was stopped as hopeless, as diverged or as too slow, its constraint set before; FAIL crashed, or
lost its worker. The value is the number of parameters, and an intermediate value is what the loss still lacks to be
certified, in nats per token. Everything else is in user attributes.

Two workers that ask at once must not choose the same configuration. A trial's number is its ticket: a worker decides
only once every trial with a lower number has been decided on, so decisions happen one after the other in any storage.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from marble_sweep.search.space import Space, Value
from marble_sweep.search.strategy import Attempt, Proposal, Settled, Wait

PLAN = "plan"  # the user attribute that says a trial is decided on
BEAT = "beat"  # counts up while the trial's worker lives
OUTCOME = "outcome"
WITHDRAWN = "withdrawn"  # asked for when there was nothing left to do
LOSS, SPEED = "held_out_loss", "speed"  # the constraints
NEVER = 1e6  # nats per token that a diverged loss lacks: Optuna's constraints are finite
STATES = {"certified": TrialState.COMPLETE, "refuted": TrialState.COMPLETE, "failed": TrialState.FAIL}
TICKET_SECONDS = 0.02  # between two looks at the tickets before ours

Decide = Callable[[list[Attempt]], Proposal | Wait | Settled]


class JournalFile(JournalFileBackend):
    """A journal that outlives a torn last line.

    A writer that is killed or finds the disk full leaves half a line. Optuna would append to it and make the
    journal unreadable; here the half goes before the next line comes. Nobody had read it: it was never whole.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), _Mending(path))


class _Mending(JournalFileSymlinkLock):
    """The journal's lock, which every append takes: whoever gets it first makes the file end in a whole line."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path

    def acquire(self) -> bool:
        acquired = super().acquire()
        try:
            self._mend()
        except BaseException:
            self.release()
            raise
        return acquired

    def _mend(self) -> None:
        with self.path.open("rb+") as file:
            size = file.seek(0, 2)
            if size == 0:
                return
            file.seek(size - 1)
            if file.read(1) == b"\n":
                return
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def open_storage(address: str) -> BaseStorage:
    """A database where the address is a URL, else a journal file. Raises ValueError where it cannot be opened."""
    if "://" not in address:
        path = Path(address)
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFile(path))
    try:
        return RDBStorage(address)
    except Exception as error:  # whatever the database's driver raises
        reason = str(error).strip().splitlines()[0]
        allowed = "a journal file or the URL of a database that answers"
        raise ValueError(f"search.storage = {address}: must be {allowed}: {reason}") from None


class SignsOfLife:
    """Which workers are dead: their trial's beat has not changed for `timeout` seconds, on this worker's own clock."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._seen: dict[int, tuple[int | None, float]] = {}  # by trial: its beat, and when that was new to us

    def is_gone(self, trial: FrozenTrial) -> bool:
        beat, now = trial.user_attrs.get(BEAT), time.monotonic()
        known = self._seen.get(trial.number)
        if known is None or known[0] != beat:
            self._seen[trial.number] = known = (beat, now)
        return now - known[1] > self.timeout


class Sampler(BaseSampler):
    """Hands the strategy's decisions to Optuna, one at a time over all workers."""

    def __init__(self, space: Space, decide: Decide, signs: SignsOfLife) -> None:
        self.space = space
        self.decide = decide
        self.signs = signs
        self.decision: Proposal | Wait | Settled = Wait()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.space.distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Value]:
        while any(
            each.number < trial.number and PLAN not in each.user_attrs and not self.signs.is_gone(each)
            for each in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        ):
            time.sleep(TICKET_SECONDS)
        self.decision = self.decide(attempts(study))
        if isinstance(self.decision, Proposal):
            return self.space.params(self.decision.size, self.decision.recipe)
        return self.space.params(0, (0.0,) * len(self.space.recipes))  # withdrawn at once

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise AssertionError(f"{param_name} is sampled with all others")


def attempts(study: Study) -> list[Attempt]:
    """The study's trials as the strategy sees them, in the order of their numbers; withdrawn ones left out."""
    return [attempt for trial in study.get_trials(deepcopy=False) if (attempt := as_attempt(trial)) is not None]


def as_attempt(trial: FrozenTrial) -> Attempt | None:
    """None for a trial that was not decided on, or withdrawn."""
    plan = trial.user_attrs.get(PLAN)
    if plan is None:
        return None
    running = trial.state == TrialState.RUNNING
    return Attempt(
        number=trial.number,
        size=plan["size"],
        recipe=tuple(plan["recipe"]),
        seed=plan["seed"],
        outcome="running" if running else trial.user_attrs.get(OUTCOME, "lost"),
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


@dataclass(frozen=True)
class Shared:
    """A study that other workers may share."""

    study: Study
    sampler: Sampler

    def ask(self) -> tuple[Trial, Proposal] | None:
        """A new trial with its plan; None where there is nothing to start, after all."""
        trial = self.study.ask(self.sampler.space.distributions)
        decision = self.sampler.decision
        if not isinstance(decision, Proposal):
            trial.set_user_attr(OUTCOME, WITHDRAWN)
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        size = self.sampler.space.sizes[decision.size]
        trial.set_user_attr("size", str(size))
        trial.set_user_attr(PLAN, asdict(decision))
        return trial, decision

    def tell(self, trial: Trial, result: Result, num_parameters: int, slowest: float | None) -> None:
        """Record how a trial ended: constraints first, then its state."""
        for name, value in asdict(result).items():
            if value is not None:
                trial.set_user_attr(name, value)
        if result.outcome != "failed":
            reported = self.study.trials[trial.number].intermediate_values
            lacking = reported[max(reported)] if reported and result.outcome != "diverged" else NEVER
            trial.set_constraint(LOSS, lacking)
            if slowest is not None and result.steps_per_minute is not None:
                trial.set_constraint(SPEED, slowest - result.steps_per_minute)
        state = STATES.get(result.outcome, TrialState.PRUNED)
        value = num_parameters if state == TrialState.COMPLETE else None
        self._end(trial, state, value)

    def reap(self, *, alone: bool = False) -> list[FrozenTrial]:
        """End the trials of dead workers, so that they are taken up again; of all workers where this one is alone."""
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        gone = [trial for trial in running if alone or self.sampler.signs.is_gone(trial)]
        for trial in gone:
            self._end(trial.number, TrialState.FAIL, None)
        return gone

    def release(self, trial: Trial) -> None:
        """Give up a trial that was interrupted: whoever comes next takes it up again."""
        self._end(trial, TrialState.FAIL, None)

    def _end(self, trial: Trial | int, state: TrialState, value: float | None) -> None:
        # Another worker may have ended it: the first one to do so counts.
        with contextlib.suppress(UpdateFinishedTrialError):
            self.study.tell(trial, value, state, skip_if_finished=True)


def open_study(
    storage: BaseStorage, name: str, space: Space, decide: Decide, settings: Mapping[str, Any], timeout: float
) -> Shared:
    """Begin the study, or join it.

    Raises ValueError where one of that name searches another space, or with other `settings` (JSON-able).
    """
    sampler = Sampler(space, decide, SignsOfLife(timeout))
    with _quiet():
        study = optuna.create_study(
            storage=storage, sampler=sampler, study_name=name, direction=StudyDirection.MINIMIZE, load_if_exists=True
        )
    described = {key: json.loads(distribution_to_json(each)) for key, each in space.distributions.items()}
    ours = {"space": described} | {key: json.loads(json.dumps(value)) for key, value in settings.items()}
    theirs = study.user_attrs
    for key, value in ours.items():
        if key not in theirs:
            study.set_user_attr(key, value)
        elif theirs[key] != value:
            raise ValueError(f"search.study = {name}: must have the {key} it began with, {theirs[key]}; now {value}")
    return Shared(study, sampler)


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
