"""A search whose workers are started elsewhere, by a launcher: all join one study, and this process watches it.

There is no batch: every worker takes trials until the search has ended. A worker that dies leaves a stale trial, which
another one retries. The study alone says how the search stands, so it does not matter who runs the workers, nor when
each of them begins.
"""

import contextlib
import functools
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from optuna.trial import FrozenTrial, Trial

from marble_sweep.checks import CheckError
from marble_sweep.humanize import counted
from marble_sweep.runs import layout
from marble_sweep.runs.files import write_text
from marble_sweep.runs.parcel import recover
from marble_sweep.runs.status import RunStatus, find_run
from marble_sweep.searches.outcome import SearchResult
from marble_sweep.searches.storage import SERVED, StorageError, require_grpc
from marble_sweep.searches.strategy import Proposal
from marble_sweep.searches.study import PLAN, SharedStudy, as_result, result_of
from marble_sweep.searches.thresholds import trial_settings
from marble_sweep.searches.view import describe_trial
from marble_sweep.searches.worker import STOPPED, WAIT_SECONDS, WORKERS, WORKING, Ending, Params, Search, Train
from marble_sweep.training.signals import stop_requests

if TYPE_CHECKING:  # gRPC need not be installed
    from marble_sweep.searches.home import RunsAtHome

STOP_SECONDS = 1.0  # between two looks at whether the workers are asked to stop
SAVING_SECONDS = 10.0  # that workers are given to save their trials' states after Ctrl-C


@dataclass(frozen=True)
class Start:
    """What the workers of one start of a search have in common. It is pickled."""

    name: str
    address: str  # of the study's storage
    first_trial: int

    @property
    def key(self) -> str:
        """The study's user attribute that says whether these workers go on."""
        return WORKERS + self.name


Launch = Callable[[Start], Sequence[Ending | Exception]]  # starts the workers; returns how they ended, once all have


class LaunchedWorker(Search):
    """One of the workers that a launcher starts."""

    home: "RunsAtHome | None" = None  # where the runs of a worker go that does not share the sweep directory

    def work(self, start: Start, train: Train, log: TextIO) -> Ending:
        """Take trials until the search has ended; lines about them go to `log`.

        Raises CheckError where this worker is on a machine that does not reach the study. `train` raises
        KeyboardInterrupt once `should_stop` says so.
        """
        self.train, self.workers, self.first_trial = train, 1, start.first_trial
        if "://" not in start.address and not Path(start.address).exists():
            raise unreachable(start.address)
        self._open(start.address, log)
        study = self.shared.study
        try:
            if start.key not in study.user_attrs:
                raise unreachable(start.address)
            if study.user_attrs[start.key] == STOPPED:  # this job waited in a queue until the search was over
                return Ending("interrupted", None, [])
            if start.address.startswith(SERVED) and not self._shares_folder(start):
                from marble_sweep.searches.home import RunsAtHome

                self.home = RunsAtHome(start.address.removeprefix(SERVED), self.storage)
                self.train = functools.partial(self._train_away, self.home, train)
            with stop_requests() as self._stop_requested, self._heeding(start):
                ended = self._loop(self.shared)
            if self.error is not None:
                study.set_user_attr(start.key, STOPPED)  # the other workers would meet it too
            return Ending(ended, self.error, [])
        except KeyboardInterrupt:
            return Ending("interrupted", None, [])
        except Exception:
            with contextlib.suppress(StorageError):
                study.set_user_attr(start.key, STOPPED)
            raise
        finally:
            self.view.close()
            if self.home is not None:
                self.home.close()
            self.storage.close()

    def _shares_folder(self, start: Start) -> bool:
        """Whether the sweep directory here is that of the process which started this worker."""
        try:
            return (self.directory / layout.WORKERS_START).read_text(encoding="utf-8") == start.name
        except FileNotFoundError:
            return False

    def _train(self, shared: SharedStudy, trial: Trial, plan: Proposal) -> SearchResult:
        if self.home is not None:
            config = self.resolve(self._params(plan) | trial_settings(self.base, plan))
            self.home.fetch(config, self.directory, trial.number, is_retry=plan.reason == "retry")
        return super()._train(shared, trial, plan)

    def _train_away(self, home: "RunsAtHome", train: Train, number: int, params: Params) -> Path | str:
        """Train where nobody else reads the run, and send it home."""
        try:
            directory = train(number, params)
        except KeyboardInterrupt:
            self.storage.hurry()
            begun = find_run(self.resolve(params), self.directory)
            if begun is not None:
                with contextlib.suppress(StorageError):  # then it stays here, and is begun anew elsewhere
                    home.send(begun)
            raise
        return home.send(directory) if isinstance(directory, Path) else directory

    def _write(self, so_far: SearchResult) -> None:
        """Nothing: the process that watches writes for all workers."""

    def _measure(self) -> dict[str, float]:
        """The process that watches has measured before it started this worker, which so looks at another study."""
        raise unreachable(self.address)

    def _heeding(self, start: Start) -> contextlib.AbstractContextManager[None]:
        """Stop, as after a signal, once the study says that the workers of this start are to stop."""

        def listen(ended: threading.Event) -> None:
            while not ended.wait(STOP_SECONDS):
                with contextlib.suppress(StorageError):  # the worker itself raises it
                    if self.shared.study.user_attrs.get(start.key) == STOPPED:
                        self._worker_failed.set()
                        return

        return beside(listen)


@contextlib.contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Do `work` in a thread meanwhile. It ends soon after its event is set, and is waited for."""
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def absolute(address: str) -> str:
    """The address of a storage, for processes in other folders."""
    return address if "://" in address else str(Path(address).expanduser().absolute())


def unreachable(address: str) -> CheckError:
    needed = "one that every worker reaches: a file in a folder that all machines share, or a database"
    served = "search.serve=HOST:PORT has the study served"
    return CheckError(
        f"search.storage = {address}: must be {needed}; on {socket.gethostname()} it is not there; {served}"
    )


class LaunchingSearch(Search):
    """The process that has a launcher start the workers, shows how the search goes, and concludes."""

    def run_launched(self, launch: Launch, workers: int, threads: int | None = None) -> Ending:
        """Search with so many workers until the question is settled, the budget is spent or the user interrupts.

        `threads` of the CPU are what each of them gives a trial; None leaves them to its config.
        """
        self.launch, self.workers, self.threads = launch, workers, threads
        self.interrupted = self.all_ended = False
        if self.base.search.serve is not None:
            require_grpc("search.serve", self.base.search.serve)
        return self._run()

    @property
    def address(self) -> str:
        """Of the study's storage. What is served cannot be a journal."""
        if self.base.search.serve is None or self.base.search.storage is not None:
            return super().address
        return f"sqlite:///{(self.directory / layout.DATABASE).resolve()}"

    def _search(self) -> Ending:
        """Search, and serve the study meanwhile where the user asked for that."""
        if self.base.search.serve is None:
            return super()._search()
        from marble_sweep.searches.home import runs_service
        from marble_sweep.searches.proxy import serving

        recover(self.directory)
        runs = runs_service(self.directory, self.view.line)
        with serving(self.storage, self.base.search.serve, runs):
            self.view.line(f"The study is served at {self.base.search.serve}: whoever reaches that port can change it")
            try:
                return super()._search()
            finally:
                if not self.all_ended:  # an idle worker looks so often whether it is to stop
                    time.sleep(2 * STOP_SECONDS)

    def _work_all(self) -> str:
        serve = self.base.search.serve
        address = absolute(self.address) if serve is None else SERVED + serve
        start = Start(uuid.uuid4().hex, address, self.first_trial)
        (self.directory / layout.WORKERS).mkdir(exist_ok=True)
        write_text(self.directory / layout.WORKERS_START, start.name)
        self.view.line(f"{counted(self.workers, 'worker')} to start, each of which trains one trial after the other")
        with beside(self._watch):
            try:
                self.shared.study.set_user_attr(start.key, WORKING)
                return self._await_workers(start)
            except KeyboardInterrupt:
                self.interrupted = True
                self.storage.hurry()
                self._stop(start)
                self._await_states()
                raise
            except StorageError:
                self.storage.hurry()
                raise
            finally:
                self._stop(start)

    def _stop(self, start: Start) -> None:
        """Have the workers stop, also those whose jobs begin later."""
        with contextlib.suppress(StorageError):  # then the next start does it
            self.shared.study.set_user_attr(start.key, STOPPED)

    def _await_workers(self, start: Start) -> str:
        """What ended the search. Raises what every worker raised, and KeyboardInterrupt where all were interrupted."""
        try:
            returned = self.launch(start)
        except Exception as error:  # whatever a launcher raises where a worker died
            if not any(record.number >= self.first_trial for record in self.result().records):
                raise  # it could not start them
            return self._await_survivors(error)
        self.all_ended = True
        errors = [ending for ending in returned if isinstance(ending, Exception)]
        endings = [ending for ending in returned if isinstance(ending, Ending) and ending.reason != "interrupted"]
        if not endings and errors:
            raise errors[0]
        for failure in errors:
            self.view.line(f"A worker ended with {type(failure).__name__}: {failure}")
        for ending in endings:
            self.error = self.error or ending.error
        if not endings:
            raise KeyboardInterrupt
        return "error" if self.error is not None else endings[0].reason

    def _await_survivors(self, death: Exception) -> str:
        """Wait for the workers that are left once one has died; where none is, the search ends in an error."""
        line = " ".join(f"{type(death).__name__}: {death}".split())
        self.view.line(f"A worker died, and any others go on ({line})")
        idle_since = time.monotonic()
        while time.monotonic() - idle_since < self.base.search.worker_timeout:
            result = self.result()
            if any(record.outcome == RunStatus.RUNNING for record in result.records):
                idle_since = time.monotonic()
            else:
                if (reason := self._ended_by(result, result.decision)) is not None:
                    return reason
            time.sleep(WAIT_SECONDS)
        self.error = f"the workers ended before the search did ({line}); the same command continues"
        return "error"

    def _await_states(self) -> None:
        """Give the workers some seconds to save their trials' states."""
        give_up = time.monotonic() + SAVING_SECONDS
        while time.monotonic() < give_up:
            if not any(record.outcome == RunStatus.RUNNING for record in self.result().records):
                return
            time.sleep(WAIT_SECONDS)

    # ------------------------------------------------------------------ what a person sees

    def _watch(self, ended: threading.Event) -> None:
        """Show trials that begin and end, and write search.json, from a thread: the launcher has the first one."""
        shown: dict[int, str] = {}  # the outcome of every trial, as it was shown
        is_last = False
        while not is_last:
            is_last = ended.wait(WAIT_SECONDS)
            with contextlib.suppress(StorageError):  # the workers wait for it too, and a line has said so
                self.shared.fail_stale_trials()
                self._show(self.result(), shown)

    def _show(self, result: SearchResult, shown: dict[int, str]) -> None:
        """Show what is new since the last look."""
        pairs = [
            (trial, record)
            for trial, record in zip(result.trials, result.records, strict=True)
            if record.number >= self.first_trial
        ]
        news = [(trial, record.outcome) for trial, record in pairs if shown.get(record.number) != record.outcome]
        asked = {self._plan(trial).threshold for trial, _ in news}
        brackets = {threshold: result.bracket(threshold) for threshold in asked}
        for trial, outcome in news:
            bracket = brackets[self._plan(trial).threshold]
            self._show_trial(trial, outcome, bracket, is_new=trial.number not in shown)
            shown[trial.number] = outcome
        for trial, record in pairs:
            if record.outcome == RunStatus.RUNNING:
                self.view.step(self._describe(trial), record.last_step)
        if news:
            self._write(result)
            self._tidy(result, is_over=False)

    def _show_trial(self, trial: FrozenTrial, outcome: str, bracket: str, *, is_new: bool) -> None:
        description = self._describe(trial)
        if is_new:
            self.view.begin(description, lambda: bracket)
        if outcome == RunStatus.RUNNING:
            return
        if result_of(trial):
            self.view.end(description, as_result(trial), bracket)
        else:
            self.view.lose(description, interrupted=self.interrupted)

    @staticmethod
    def _plan(trial: FrozenTrial) -> Proposal:
        planned = trial.user_attrs[PLAN]
        return Proposal(**(planned | {"recipe": tuple(planned["recipe"])}))

    def _describe(self, trial: FrozenTrial) -> str:
        plan = self._plan(trial)
        return describe_trial(trial.number, plan, self.space.sizes[plan.size], self._params(plan))
