"""Many workers on one study: nothing is planned twice, whichever worker dies or is slow."""

import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState
from studies import decide_freely, join, made_up

from marble_sweep.searches.storage import open_storage
from marble_sweep.searches.strategy import Proposal, Settled, Wait
from marble_sweep.searches.study import OUTCOME, PLAN, Snapshot
from marble_sweep.searches.trial_record import TrialRecord

TIMEOUT = 0.5
HANGING = 20.0  # seconds after which a worker is counted as hanging
ANSWER = 3  # the smallest size that certifies


class DeathError(Exception):
    """A worker dies."""


class Worker(threading.Thread):
    """Works on a study until it is settled, or it dies."""

    def __init__(self, storage: BaseStorage, seed: int, dies: str | None, timeout: float) -> None:
        super().__init__(daemon=True)  # so that a hanging worker fails its test and does not keep the process alive
        self.shared = join(storage, self.decide, timeout=timeout)
        self.random = random.Random(f"{seed} {self.name}")
        self.dies = dies  # before its plan, with it, or never
        self.error: Exception | None = None

    def decide(self, now: Snapshot) -> Proposal | Wait | Settled:
        decision = decide_freely(now)
        time.sleep(self.random.random() / 100)  # workers that decide at the same time decide the same
        if self.dies == "before its plan":
            raise DeathError
        return decision

    def run(self) -> None:
        try:
            self.work()
        except DeathError:
            pass
        except Exception as error:
            self.error = error

    def work(self) -> None:
        while not isinstance(decide_freely(self.shared.snapshot()), Settled):
            self.shared.fail_stale_trials()
            asked = self.shared.ask()
            if asked is None:
                time.sleep(TIMEOUT / 20)
                continue
            if self.dies == "with its plan":
                raise DeathError
            trial, plan = asked
            good = plan.size >= ANSWER
            trial.report(-0.1 if good else 1.0 - plan.size / 10, 40)
            self.shared.tell(trial, made_up("certified" if good else "below"), 100, None)


def work_together(
    storages: Sequence[BaseStorage], deaths: Sequence[str | None], seed: int, timeout: float = TIMEOUT
) -> None:
    """Run all workers at once; together they must make one search without repetitions."""
    workers = [Worker(storage, seed, dies, timeout) for storage, dies in zip(storages, deaths, strict=True)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + HANGING
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
    assert not any(worker.is_alive() for worker in workers)
    assert [worker.error for worker in workers if worker.error is not None] == []
    check(storages[0])


def check(storage: BaseStorage) -> None:
    now = join(storage).snapshot()
    assert isinstance(decide_freely(now), Settled)
    tried = now.records
    kept = {configuration(record): record for record in tried if record.outcome != "stale"}
    assert len(kept) == sum(record.outcome != "stale" for record in tried)
    assert {record.outcome for record in kept.values()} == {"certified", "below"}
    for stale in tried:
        if stale.outcome == "stale" and configuration(stale) in kept:
            assert kept[configuration(stale)].number > stale.number


def configuration(record: TrialRecord) -> tuple[int, tuple[float, ...], int]:
    """What must be trained only once."""
    return record.size, record.recipe, record.seed


DEATHS = st.lists(st.sampled_from([None, None, "before its plan", "with its plan"]), min_size=2, max_size=5)


@settings(
    max_examples=8, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow], database=None
)
@given(deaths=DEATHS, seed=st.integers(0, 1000))
def test_nothing_is_planned_twice(deaths: list[str | None], seed: int) -> None:
    storage = InMemoryStorage()
    work_together([storage] * (len(deaths) + 1), [None, *deaths], seed)


def test_nothing_is_planned_twice_in_a_journal(tmp_path: Path) -> None:
    storages = [open_storage(str(tmp_path / "study.log")) for _ in range(4)]
    work_together(storages, [None, "before its plan", None, "with its plan"], 0)


def test_a_dead_workers_ticket_ends_no_other() -> None:
    """The workers that wait for it send heartbeats: once it is stale they decide one after the other."""
    storage = InMemoryStorage()
    work_together([storage] * 4, ["before its plan", None, None, None], 0, timeout=2.0)
    trials = join(storage).study.get_trials()
    assert sum(PLAN not in trial.user_attrs and OUTCOME not in trial.user_attrs for trial in trials) == 1


def test_a_worker_whose_trial_became_stale_plans_nothing() -> None:
    storage, asleep, wake = InMemoryStorage(), threading.Event(), threading.Event()

    def doze(now: Snapshot) -> Proposal | Wait | Settled:
        asleep.set()
        wake.wait()
        return decide_freely(now)

    answers = []
    dozing, awake = join(storage, doze, timeout=TIMEOUT), join(storage, timeout=TIMEOUT)
    thread = threading.Thread(target=lambda: answers.append(dozing.ask()), daemon=True)
    thread.start()
    asleep.wait()
    asked = awake.ask()
    wake.set()
    thread.join()
    assert asked is not None
    assert answers == [None]
    assert [trial.state for trial in awake.study.get_trials()] == [TrialState.FAIL, TrialState.RUNNING]
    assert [PLAN in trial.user_attrs for trial in awake.study.get_trials()] == [False, True]


def test_a_late_end_changes_nothing() -> None:
    """A worker reports the end of a trial that another worker has ended as stale."""
    storage = InMemoryStorage()
    late, other = join(storage), join(storage)
    asked = late.ask()
    assert asked is not None
    other.fail_stale_trials(alone=True)
    late.tell(asked[0], made_up("certified"), 100, None)
    late.release(asked[0])
    (trial,) = other.study.get_trials()
    assert trial.state == TrialState.FAIL
    assert [record.outcome for record in other.snapshot().records] == ["stale"]
    again = other.ask()
    assert again is not None
    assert again[1].reason == "retry"
