"""A search's workers: each asks the strategy, trains, tells, until the question is settled or the budget is spent.

Several workers of one process are threads, each with a sampler of its own; in the study they are as good as strangers.
"""

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import yaml
from optuna.trial import Trial

from marble_sweep import config as schema
from marble_sweep.checks import require
from marble_sweep.report.frontier import draw_frontier
from marble_sweep.report.page import write_page
from marble_sweep.report.summary import compare_runs
from marble_sweep.report.table import render
from marble_sweep.runs import layout
from marble_sweep.runs.damage import flat
from marble_sweep.runs.discovery import find_runs
from marble_sweep.runs.files import lock_directory, write_json, write_text
from marble_sweep.runs.removed import remove_tensors
from marble_sweep.runs.run import Run
from marble_sweep.runs.status import RunStatus, find_run, mark_start, read_metadata, run_directories
from marble_sweep.search_config import FRONTIER
from marble_sweep.searches.cost import COSTS, build_space
from marble_sweep.searches.crashes import shared_error
from marble_sweep.searches.disk import disk_line
from marble_sweep.searches.frontier_result import FrontierResult
from marble_sweep.searches.keep import unneeded
from marble_sweep.searches.outcome import FINAL, SearchResult
from marble_sweep.searches.reuse import (
    REUSABLE,
    Reusable,
    continue_reused,
    find_reusable,
    plan_key,
    reuse_lines,
    reused_run,
)
from marble_sweep.searches.seeds import trial_seed
from marble_sweep.searches.space import Dimension, Size, Value
from marble_sweep.searches.step_seconds import measure_step_seconds, shared_step_seconds
from marble_sweep.searches.storage import StorageError, open_storage
from marble_sweep.searches.strategy import Proposal, Settled, Wait
from marble_sweep.searches.study import Result, SharedStudy, Snapshot, open_study, result_of
from marble_sweep.searches.thresholds import trial_settings
from marble_sweep.searches.trial_watch import TrialWatch
from marble_sweep.searches.view import View, describe_trial
from marble_sweep.terminal import warning_on_error
from marble_sweep.training.signals import await_all, stop_requests

WAIT_SECONDS = 0.5  # between two checks of what other processes' workers do
WORKERS = "workers "  # begins the user attributes that say, for every start, whether its launched workers go on
WORKING, STOPPED = "working", "stopped"

RESULTS: dict[str, type[SearchResult]] = {"smallest": SearchResult, FRONTIER: FrontierResult}  # by search.question
Params = Mapping[str, Value]
Resolve = Callable[[Params], schema.Config]  # the checked config of a trial; raises ValueError where it is impossible
Train = Callable[[int, Params], Path | str]  # trains a trial; returns the run directory, or why there is none


@dataclass(frozen=True)
class Ending:
    """How a worker's part in a search ended."""

    reason: str  # one of outcome.ENDINGS
    error: str | None  # that every trial would meet
    crashes: list[dict[str, Any]]  # that keep the answer from being proved


class Search:
    """One process's part in a search."""

    reusable: Sequence[Reusable] = ()  # runs that search.reuse names
    threads: int | None = None  # of the CPU for a trial; None leaves them to its config

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        resolve: Resolve,
        directory: Path,
        *,
        overrides: Sequence[str] = (),
        config_options: Sequence[str] = (),
    ) -> None:
        """Check everything that can be checked before the first trial. Raises ValueError for what cannot be searched.

        Threads may call `resolve` at the same time. `overrides` (that all trials share) and `config_options` (that name
        other config files) are arguments for the command that trains the answer.
        """
        searched = {dimension.key for dimension in dimensions}
        for key in ("seed", "objective", "resume"):
            require(key not in searched, key, "a sweep", "one value; a search takes fresh seeds by itself")
        self.resolve = resolve
        self.directory = directory
        self.overrides = list(overrides)
        self.config_options = list(config_options)
        first: dict[str, Value] = {dimension.key: dimension.values[0] for dimension in dimensions}
        for dimension in dimensions:
            for value in dimension.values:
                if not dimension.decides_size:
                    resolve(first | {dimension.key: value})
        self.space = build_space(dimensions, lambda size: resolve(first | size))
        self.base = resolve(first | dict(self.space.sizes[0].params))
        self._check()
        self.workers = 1  # so many trials at once
        self._latest: SearchResult | None = None
        self.first_trial = 0  # of this start; known once there is a study
        self.data: dict[str, Any] | None = None  # of the first trial: the corpus and the baselines
        self._tidied: set[Path] = set()  # run directories that search.keep was applied to
        self.error: str | None = None  # that every trial would meet
        self._worker_failed = threading.Event()
        self._stop_requested: Callable[[], bool] = lambda: False
        self._trial_ended = threading.Condition()  # held while that is shown and written

    def _check(self) -> None:
        """Raise CheckError for a config that cannot be searched."""
        base = self.base
        part, stop = base.trainer.eval_part, base.certify.stop
        if base.search.question == FRONTIER:
            require(not stop, "certify.stop", True, "false for a frontier, which asks for the loss at the end")
            require(part == "all", "trainer.eval_part", part, "all for a frontier, whose losses are compared")
        else:
            require(stop, "certify.stop", False, "true in a search")
            allowed = "search or all in a search, which confirms on `confirm`"
            require(part != "confirm", "trainer.eval_part", part, allowed)
        require(base.objective is None, "objective", base.objective, "null in a search")
        given = [override for override in self.overrides if override.lstrip("+").startswith("certify.threshold")]
        are_several = base.search.thresholds is not None
        require(
            not (given and are_several), "certify.threshold", given, "left out with search.thresholds, which sets it"
        )

    def largest(self) -> list[schema.Config]:
        """The config of the size with most parameters, with each recipe that differs in one value from the first."""
        size = dict(max(self.space.sizes, key=lambda size: size.num_parameters).params)
        params = {dimension.key: dimension.values[0] for dimension in self.space.recipes} | size
        others = [(dimension.key, value) for dimension in self.space.recipes for value in dimension.values[1:]]
        return [self.resolve(params), *(self.resolve(params | {key: value}) for key, value in others)]

    def run(self, train: Train, workers: int = 1, threads: int | None = None) -> Ending:
        """Search until the question is settled, the budget is spent or the user interrupts.

        `threads` of the CPU are what `train` gives a trial; None leaves them to its config. A single worker calls
        `train` in this thread. Several do so in threads of their own, where `train` raises KeyboardInterrupt once
        `should_stop` says so.
        """
        self.train, self.workers, self.threads = train, workers, threads
        return self._run()

    def _run(self) -> Ending:
        reuse = [Path(path) for path in self.base.search.reuse]
        earlier = find_runs(reuse, "search.reuse")  # a path that is not there is refused before anything is made
        # Workers of a shared study may share the directory too: each trial has a number of its own.
        alone = self.base.search.storage is None
        lock = lock_directory(self.directory, "hydra.sweep.dir") if alone else None
        try:
            self._begin(alone=alone)
            if earlier:
                self._find_reusable(earlier)
            return self._search()
        finally:
            if lock is not None:
                lock.release()

    def _begin(self, *, alone: bool) -> None:
        """Open the storage, create or join the study, and say so."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._open(self.address)
        self.first_trial = len(self.shared.study.get_trials(deepcopy=False))
        self._latest = None
        mark_start(self.directory)
        unit = "losses in nats per token" if self.view.shows_loss else "margins in nats per token ± one standard error"
        self.view.line(f"{len(self.space.sizes)} sizes to search in {self.directory}; {unit}")
        sizes = sorted(self.space.sizes, key=lambda size: size.num_parameters)
        smallest, largest = (self._config(size) for size in (sizes[0], sizes[-1]))
        self.view.line(disk_line(smallest, largest, self.directory, self.workers))
        outlived = alone and self._stop_earlier_workers()
        self.shared.fail_stale_trials(alone=alone and not outlived)

    def _stop_earlier_workers(self) -> bool:
        """Stop the launched workers of earlier starts whose process was killed; returns whether there may be any."""
        study = self.shared.study
        keys = [key for key, state in study.user_attrs.items() if key.startswith(WORKERS) and state == WORKING]
        for key in keys:
            study.set_user_attr(key, STOPPED)
        if keys:
            stale = f"a trial of theirs is retried after {self.base.search.worker_timeout:g} s without a heartbeat"
            self.view.line(f"Workers of an earlier start may still be at work: they are told to stop, and {stale}")
        return bool(keys)

    @property
    def address(self) -> str:
        """Of the study's storage."""
        return self.base.search.storage or str((self.directory / layout.JOURNAL).resolve())

    def _open(self, address: str, log: TextIO | None = None) -> None:
        """Create the study, or join it. Lines about trials go to `log`, by default to standard error."""
        self.storage = open_storage(address, self.base.search.storage_patience)
        self.shared = self._join()
        if COSTS[self.base.search.minimise].of is None:
            self.space = self.space.with_costs(shared_step_seconds(self.shared.study, self._measure))
            self.shared = self._join()
        shows_loss = self.base.search.question == FRONTIER
        self.view = View(self.base.trainer.total_steps, log, shows_loss=shows_loss)

    def _config(self, size: Size) -> schema.Config:
        """The config of a size with the first value of whatever else is searched."""
        first = {dimension.key: dimension.values[0] for dimension in self.space.recipes}
        return self.resolve(first | dict(size.params))

    def _measure(self) -> dict[str, float]:
        """The seconds of a step of every size, with the first value of whatever else is searched."""
        configs = [self._config(size) for size in self.space.sizes]
        return measure_step_seconds(self.space.sizes, configs, self.directory / layout.PRODUCTS, self.threads)

    def _search(self) -> Ending:
        """Work until the search has ended, and conclude."""
        ended = "error"
        try:
            self._take_reusable()
            ended = self._work_all()
        except KeyboardInterrupt:
            ended = "interrupted"
            self.storage.hurry()
        except StorageError:
            self.storage.hurry()
            raise
        finally:
            self.view.close()
            crashes = self._conclude(ended)
            self.storage.close()
        return Ending(ended, self.error, crashes)

    def _join(self) -> SharedStudy:
        """The study, with a sampler for one worker."""
        search = self.base.search
        return open_study(self.storage, search.study, self.space, self._decide, self._settings(), search.worker_timeout)

    def _work_all(self) -> str:
        """Run the workers, several of them in threads; returns what ended the search.

        Raises what a worker raised, once all have ended.
        """
        if self.workers == 1:
            return self._loop(self.shared)
        studies = [self.shared, *(self._join() for _ in range(self.workers - 1))]
        with stop_requests() as self._stop_requested, ThreadPoolExecutor(self.workers) as pool:
            futures = [pool.submit(self._work, study) for study in studies]
            await_all(futures)
        reasons = raise_first(futures)
        return "error" if self.error is not None else reasons[0]

    def _work(self, shared: SharedStudy) -> str:
        """One of several workers; what ends it otherwise than the search's end stops the others too."""
        try:
            return self._loop(shared)
        except BaseException:
            self._worker_failed.set()
            raise

    def should_stop(self) -> bool:
        """Whether workers that are threads must stop, their trials' states saved."""
        return self._stop_requested() or self._worker_failed.is_set()

    def _settings(self) -> dict[str, Any]:
        """The settings that workers of a study must share beside the space: all that changes what a run computes."""
        config = dict(flat(yaml.safe_load(schema.dump(self.base)), ""))
        searched = [dimension.key for dimension in self.space.dimensions]
        ignored = ("model.name", "experiment_name", "notes", *(key for key in config if key.startswith("device.")))
        kept = {key: value for key, value in config.items() if key not in (*searched, *ignored)}
        search = self.base.search
        names = ("confirm_seeds", "pass_rate", "confidence", "minimise", *(["thresholds"] if search.thresholds else []))
        if search.question == FRONTIER:
            names = ("question", "frontier_seeds", *names)
        return kept | {f"search.{name}": getattr(search, name) for name in names}

    def result(self) -> SearchResult:
        """The result of the trials so far."""
        return self._result_of(self.shared.snapshot())

    def _result_of(self, snapshot: Snapshot) -> SearchResult:
        """The result of these trials: the last one where nothing has changed since."""
        latest = self._latest
        if latest is None or latest.recorded != snapshot.records:
            options = self.first_trial, self.config_options, self.workers
            records = snapshot.records
            latest = RESULTS[self.base.search.question](
                self.space, self.base, snapshot.trials, self.overrides, *options, records
            )
            self._latest = latest
        return latest

    def _decide(self, snapshot: Snapshot) -> Proposal | Wait | Settled:
        """The strategy's decision, within the budget of trials."""
        result = self._result_of(snapshot)
        decision = result.decision
        return Settled() if isinstance(decision, Proposal) and self._ended_by(result, decision) else decision

    @staticmethod
    def _ended_by(result: SearchResult, decision: Proposal | Wait | Settled) -> str | None:
        """What ends the search; None while it may go on."""
        reason = result.ended_by(settled=isinstance(decision, Settled))
        is_retry = isinstance(decision, Proposal) and decision.reason == "retry"
        return None if reason == "n_trials" and is_retry else reason  # what is retried was counted before

    def _loop(self, shared: SharedStudy) -> str:
        """Run trials; returns what ended the search, once no running trial of another worker can change the answer."""
        result: SearchResult | None = None
        while self.error is None:
            if self.should_stop():
                raise KeyboardInterrupt
            shared.fail_stale_trials()
            result = result or self.result()  # a trial of ours that ended has just been looked at
            decision = result.decision
            reason = self._ended_by(result, decision)
            others = any(record.outcome == RunStatus.RUNNING for record in result.records)
            if reason is not None and not others:
                return reason
            result = None
            if reason is not None or isinstance(decision, Wait):
                with self._trial_ended:
                    self._trial_ended.wait(WAIT_SECONDS)
            elif (asked := shared.ask()) is not None:
                result = self._train(shared, *asked)
        return "error"

    def _params(self, plan: Proposal) -> dict[str, Value]:
        """What a trial searches, and its seed."""
        params = self.space.params(plan.size, plan.recipe)
        return params | {"seed": trial_seed(self.base.seed, params, plan.seed)}

    def _train(self, shared: SharedStudy, trial: Trial, plan: Proposal) -> SearchResult:
        """Train one trial by its plan, and record its end in the study; returns the result of all trials then."""
        params, size = self._params(plan), self.space.sizes[plan.size]
        description = describe_trial(trial.number, plan, size, params)
        params = params | trial_settings(self.base, plan)
        config = self.resolve(params)
        self.view.begin(description, lambda: self.result().bracket(plan.threshold))
        directory = self.directory / str(trial.number)
        if plan.reason == "retry":
            directory = find_run(config, self.directory) or directory
        show = functools.partial(self.view.step, description)
        watch = TrialWatch(trial, config, directory, config.search.worker_timeout, show)
        runs: dict[str, str] = self.shared.study.user_attrs.get(REUSABLE, {})
        reused = reused_run(plan, self.space, runs)
        try:
            with watch:
                if reused is None:
                    continue_reused(plan, self.space, runs, config, self.directory, trial.number)
                run_dir = reused or self.train(trial.number, params)
        except BaseException:
            self.storage.hurry()
            shared.release(trial)
            raise
        result = replace(watch.result(run_dir), reused=reused is not None)
        shared.tell(trial, result, size.cost, config.certify.min_steps_per_minute)
        with self._trial_ended:
            so_far = self._report(description, plan.threshold, result)
            self._trial_ended.notify_all()
        return so_far

    def _find_reusable(self, directories: Sequence[Path]) -> None:
        """Say which runs are reused, and record them in the study for all workers."""
        self.reusable, refused = find_reusable(directories, self.space, self.base, self.resolve)
        study = self.shared.study
        known = {plan_key(run.plan, self.space): str(run.directory) for run in self.reusable}
        study.set_user_attr(REUSABLE, study.user_attrs.get(REUSABLE, {}) | known)
        for line in reuse_lines(self.reusable, refused):
            self.view.line(line)

    def _take_reusable(self) -> None:
        """Make trials of the reused runs with the search's own seed, where the study has none such yet."""
        tried = {(record.size, record.recipe) for record in self.result().records if record.seed == 0}
        own = [run.plan for run in self.reusable if run.plan.seed == 0]
        for plan in own:
            if (plan.size, plan.recipe) not in tried and (asked := self.shared.ask(plan)) is not None:
                self._train(self.shared, *asked)

    def _report(self, trial: str, threshold: str, result: Result) -> SearchResult:
        """Show and write how a trial ended, unless every trial would end so; returns the result of all trials."""
        so_far = self.result()
        if so_far.ended_by(settled=False) != "max_failures":
            searched = [dimension.key for dimension in self.space.dimensions]
            self.error = self.error or shared_error(result, searched, nothing_trained=so_far.nothing_trained)
        if self.error is None:
            self.view.end(trial, result, so_far.bracket(threshold))
        self._write(so_far)
        self._tidy(so_far, is_over=False)
        return so_far

    def _tidy(self, result: SearchResult, *, is_over: bool) -> None:
        """Remove what search.keep does not ask for, of trials in this sweep directory."""
        here = self.directory.resolve()
        for directory in unneeded(result, is_over=is_over):
            if directory not in self._tidied and directory.parent.resolve() == here:
                try:
                    remove_tensors(directory, f"search.keep={self.base.search.keep}")
                except OSError as error:
                    self.view.line(f"The tensors of {directory} stay: {error}")
            self._tidied.add(directory)

    def _write(self, so_far: SearchResult) -> None:
        write_json(self.directory / layout.SEARCH, so_far.as_json("running", self._data(so_far)))

    def _data(self, result: SearchResult) -> dict[str, Any] | None:
        """The corpus and the baselines of the search's own trials; None while none on this machine has any."""
        if self.data is None:
            ended = zip(result.trials, result.records, strict=True)
            directories = [result_of(trial).get("directory") for trial, record in ended if record.seed == 0]
            for metadata in (read_metadata(Path(directory)) for directory in directories if directory):
                if metadata.get("baselines") and metadata.get("corpus"):
                    self.data = {"corpus": metadata["corpus"], "baselines": metadata["baselines"]}
                    break
        return self.data

    def _conclude(self, ended: str) -> list[dict[str, Any]]:
        """Write the result and print it; returns the crashes that keep the answer from being proved."""
        result = self.result()
        summary = result.as_json(ended, self._data(result)) | {"error": self.error}
        write_json(self.directory / layout.SEARCH, summary)
        self._tidy(result, is_over=ended in FINAL)
        answers = {of_threshold["threshold"]: of_threshold["answer"] for of_threshold in summary["thresholds"]}
        self.shared.study.set_user_attr("answers", answers)
        with warning_on_error(f"the comparison in {self.directory}"):
            draw_frontier(summary, self.directory / layout.FRONTIER)
            reused = [path for path in map(Path, summary["reused_runs"]) if (path / layout.CONFIG).is_file()]
            if runs := [Run.read(path) for path in (*run_directories(self.directory), *reused)]:
                comparison = compare_runs(runs)
                write_text(self.directory / layout.SUMMARY, render(comparison.rows, list(comparison.rows[0]), "csv"))
                write_page(comparison, self.directory / layout.PAGE)
        if self.error is None or not result.nothing_trained:
            self.view.line("\n" + "\n".join(summary["summary_lines"]))
            self.view.line(f"Everything is in {self.directory}")
        return result.crashes()


def raise_first(futures: Sequence[Future[str]]) -> list[str]:
    """What the workers returned. Raises the first error of one, else the KeyboardInterrupt by which they stopped."""
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, KeyboardInterrupt)):
        raise error
    return [future.result() for future in futures]
