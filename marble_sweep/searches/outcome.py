"""The result of a search: what its trials show of every threshold, what they cost, and search.json."""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.trial import FrozenTrial

from marble_sweep.config import Config
from marble_sweep.early_stopping import EarlyStopping
from marble_sweep.humanize import counted, duration
from marble_sweep.runs.status import RunStatus
from marble_sweep.searches.cost import COSTS
from marble_sweep.searches.pass_rate import Standard, confidence_of, standard_of
from marble_sweep.searches.space import Space
from marble_sweep.searches.standing import data_in_words, standard_json, trials_in_words
from marble_sweep.searches.step_seconds import ROUNDS
from marble_sweep.searches.strategy import Proposal, Settled, Wait, forget_crashes
from marble_sweep.searches.study import as_record, heartbeat_of, result_of
from marble_sweep.searches.threshold_result import ThresholdResult
from marble_sweep.searches.thresholds import as_seen_by, thresholds_of
from marble_sweep.searches.trial_record import STALE, TrialRecord

VERSION = 2  # of search.json: 1 had a single threshold
ENDINGS = {
    "settled": "The question is settled",
    "undecided": "Nothing is left to try",
    "n_trials": "search.n_trials is used up",
    "max_tokens": "search.max_tokens are used up",
    "max_minutes": "search.max_minutes are used up",
    "max_failures": "sweep.max_failures trials crashed",
    "crashed": "Nothing is left to try",
    "interrupted": "It was interrupted",
    "error": "It ended in an error",
    "running": "It is going on",
}
PRUNED = (RunStatus.PRUNED, RunStatus.DIVERGED, RunStatus.TOO_SLOW)
MAX_CRASHED_SIZES = 2  # once so many crashed and nothing trained, the search ends
FINAL = ("settled", "undecided")  # endings after which nothing smaller is left to try


@dataclass(frozen=True)
class SearchResult:
    """The trials of a search, and what follows from them."""

    space: Space
    base: Config  # what all trials share: the budget, the thresholds
    trials: Sequence[FrozenTrial]  # those with a plan
    overrides: Sequence[str]  # that all trials share
    first_trial: int = 0  # of this start of the search: earlier ones that crashed are retried
    config_options: Sequence[str] = ()  # for a command that reads the same config files
    workers: int = 1  # of this process: so many trials at once
    recorded: Sequence[TrialRecord] | None = None  # the trials' records, where they are known

    @functools.cached_property
    def records(self) -> list[TrialRecord]:
        return forget_crashes(self.as_recorded, self.first_trial)

    @functools.cached_property
    def as_recorded(self) -> Sequence[TrialRecord]:
        """The records with all crashes."""
        if self.recorded is not None:
            return self.recorded
        return [record for trial in self.trials if (record := as_record(trial)) is not None]

    @functools.cached_property
    def thresholds(self) -> list[ThresholdResult]:
        """What the trials show of every threshold, in the order in which they are searched."""
        return [
            ThresholdResult(
                self.space,
                self.base,
                name,
                self.trials,
                as_seen_by(name, self.records) if self.are_named else self.records,
                self.standard,
                confidence_of(self.base.search),
                self.overrides,
                self.config_options,
                self.workers,
            )
            for name in thresholds_of(self.base)
        ]

    @property
    def are_named(self) -> bool:
        """Whether search.thresholds names the thresholds, of which there may be several."""
        return self.base.search.thresholds is not None

    @functools.cached_property
    def decision(self) -> Proposal | Wait | Settled:
        """The next trial, for the first threshold that needs one."""
        waits = False
        for result in self.thresholds:
            decision = result.decision
            if isinstance(decision, Proposal):
                return replace(decision, threshold=result.threshold) if self.are_named else decision
            waits = waits or isinstance(decision, Wait)
        return Wait() if waits else Settled()

    def of(self, threshold: str) -> ThresholdResult:
        """What the trials show of the threshold that a trial is for; "" where the search has one alone."""
        return next((result for result in self.thresholds if result.threshold == threshold), self.thresholds[0])

    def named_trials(self, *, is_over: bool) -> set[int]:
        """The numbers of the trials that an answer names, or while it is not over, may still come to name."""
        return set().union(*(result.named_trials(is_over=is_over) for result in self.thresholds))

    def bracket(self, threshold: str) -> str:
        """How the search stands for the threshold that a trial is for, in a line."""
        return self.of(threshold).bracket()

    @property
    def standard(self) -> Standard:
        return standard_of(self.base.search)

    @property
    def tokens_per_step(self) -> int:
        return self.base.trainer.batch_size * self.base.trainer.seq_len

    # ------------------------------------------------------------------ what was spent

    def num_trials(self) -> int:
        """Trials begun; a stale or crashed one and its retry count once, and so does one that was continued.

        Reused runs are not among them.
        """
        return len(self.records) - len(self._replaced() | self._reused)

    @functools.cached_property
    def _reused(self) -> set[int]:
        """The numbers of trials for which nothing was trained."""
        return {trial.number for trial in self.trials if result_of(trial).get("reused")}

    def reused_runs(self) -> list[str]:
        """The directories of the reused runs."""
        return [result_of(trial)["directory"] for trial in self.trials if trial.number in self._reused]

    def tokens(self) -> int:
        """Tokens trained on; of a running or stale trial, up to its last evaluation."""
        left_out = self._replaced() | self._reused
        spent = 0
        for trial, record in zip(self.trials, self.records, strict=True):
            if record.number not in left_out:
                spent += result_of(trial).get("tokens", record.last_step * self.tokens_per_step)
        return spent

    def seconds(self) -> float:
        """The time of all ended trials together, from creation to end; of stale ones to the last heartbeat."""
        seconds = 0.0
        for trial, record in zip(self.trials, self.records, strict=True):
            if record.outcome == STALE and not result_of(trial):
                seconds += heartbeat_of(trial) or 0.0
            elif trial.duration is not None:
                seconds += trial.duration.total_seconds()
        return seconds

    def _replaced(self) -> set[int]:
        """The numbers of trials that a later one has retried, or continued for another threshold."""
        latest = {(record.size, record.recipe, record.seed): record.number for record in self.records}
        return {record.number for record in self.records} - {*latest.values()}

    def ended_by(self, *, settled: bool) -> str | None:
        """What ends the search now; None while it may go on."""
        search, failures = self.base.search, self.base.sweep.max_failures
        crashed = sum(record.outcome == RunStatus.FAILED for record in self.records)
        if settled:
            undecided = any(result.undecided_below for result in self.thresholds)
            return "crashed" if self.crashes() else "undecided" if undecided else "settled"
        if self._everything_crashes():
            return "crashed"
        if failures is not None and crashed >= failures:
            return "max_failures"
        if self.num_trials() >= search.n_trials:
            return "n_trials"
        if search.max_tokens is not None and self.tokens() >= search.max_tokens:
            return "max_tokens"
        if search.max_minutes is not None and self.seconds() >= 60 * search.max_minutes:
            return "max_minutes"
        return None

    @property
    def nothing_trained(self) -> bool:
        """Whether no trial has reached its first evaluation."""
        without_training = (RunStatus.RUNNING, RunStatus.FAILED, STALE)
        return not any(record.margins or record.outcome not in without_training for record in self.records)

    def _everything_crashes(self) -> bool:
        """Whether MAX_CRASHED_SIZES sizes have crashed twice, and no trial has trained."""
        return self.nothing_trained and len(self._crashed_twice()) >= MAX_CRASHED_SIZES

    def _crashed_twice(self) -> set[int]:
        return {record.size for record in self.thresholds[0].state.records if record.outcome == RunStatus.FAILED}

    def crashes(self) -> list[dict[str, Any]]:
        """The crashes that keep an answer from being proved, once each, by size."""
        crashes = {crash["size"]: crash for result in self.thresholds for crash in result.crashes()}
        return list(crashes.values())

    # ------------------------------------------------------------------ search.json

    def as_json(self, ended: str, data: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What search.json holds. Losses and margins are in nats per token.

        `data` has the corpus and the baselines of a trial's metadata.json; None where there is none yet.
        """
        config = self.base
        early_stopping = EarlyStopping(config)
        summary = {
            "version": VERSION,
            "minimise": config.search.minimise,
            "cost_unit": COSTS[config.search.minimise].unit,
            "standard_errors": config.verdict.min_standard_errors,
            "standard_errors_each_evaluation": early_stopping.errors_needed,
            "evaluation_steps": early_stopping.steps,
            "budget": {key: getattr(config.trainer, key) for key in ("total_steps", "batch_size", "seq_len")},
            "data": data,
            "ended": ended,
            "standard": standard_json(self.standard, confidence_of(config.search)),
            "sizes_in_space": len(self.space.sizes),
            "impossible_sizes": list(self.space.impossible),
            "trials": self.num_trials(),
            "reused": len(self._reused),
            "reused_runs": self.reused_runs(),
            "outcomes": dict(Counter(record.outcome for record in self.as_recorded)),
            "tokens": self.tokens(),
            "tokens_saved": self._saved(),
            "seconds": self.seconds(),
        }
        thresholds = [result.as_json() for result in self.thresholds]
        return summary | {"thresholds": thresholds, "summary_lines": self._summary_lines(summary, thresholds)}

    def _saved(self) -> dict[str, int]:
        """Tokens of the trials' budgets that were not needed, by reason."""
        budget = self.base.trainer.total_steps * self.tokens_per_step
        saved = {"certified_early": 0, "given_up_early": 0}
        left_out = self._replaced() | self._reused
        for trial, record in zip(self.trials, self.records, strict=True):
            if record.number in left_out:
                continue
            left = budget - result_of(trial).get("tokens", budget)
            if record.outcome == RunStatus.CERTIFIED:
                saved["certified_early"] += left
            elif record.outcome in PRUNED:
                saved["given_up_early"] += left
        return saved

    def _summary_lines(self, summary: Mapping[str, Any], thresholds: Sequence[Mapping[str, Any]]) -> list[str]:
        """The answers, their proof and their cost, in lines."""
        lines = []
        for result, of_threshold in zip(self.thresholds, thresholds, strict=True):
            is_settled = isinstance(result.decision, Settled) and not of_threshold["crashes"]
            is_final = summary["ended"] in FINAL or is_settled
            lines += result.summary_lines(of_threshold, is_final=is_final)
        if self.space.impossible:
            number = counted(len(self.space.impossible), "size")
            lines.append(f"{number} cannot be, such as {self.space.impossible[0]}.")
        early, hopeless = (summary["tokens_saved"][name] / 1e6 for name in ("certified_early", "given_up_early"))
        together = f" of {self.workers} workers together" if self.workers > 1 else ""
        time_spent = duration(summary["seconds"]) + together
        lines.append(
            f"{ENDINGS[summary['ended']]} after {trials_in_words(summary)}, "
            f"{summary['tokens'] / 1e6:.1f} M tokens and {time_spent}; stopping as soon as a trial "
            f"was certified saved {early:.1f} M tokens, giving up hopeless ones {hopeless:.1f} M."
        )
        if (cost := COSTS[self.base.search.minimise]).of is None:
            lines.append(f"The {cost.unit} are medians of {ROUNDS} steps, measured before the first trial.")
        if summary["data"] is not None:
            lines.append(data_in_words(summary["data"]))
        for of_threshold in thresholds:
            if (answer := of_threshold["answer"]) is not None:
                named = f" for {of_threshold['threshold']}" if len(thresholds) > 1 else ""
                lines.append(f"To train it{named}: {answer['command']}")
        return lines
