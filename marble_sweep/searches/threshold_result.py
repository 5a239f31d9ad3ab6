"""What a search shows of one threshold: its smallest size, what stands below it, and both in words."""

import functools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from marble_sweep.commands import shell_command
from marble_sweep.config import Config
from marble_sweep.humanize import duration, perplexity
from marble_sweep.runs.status import RunStatus
from marble_sweep.searches.cost import COSTS, Cost
from marble_sweep.searches.pass_rate import PassRate, Standard
from marble_sweep.searches.seeds import trial_seed
from marble_sweep.searches.space import Space
from marble_sweep.searches.standing import (
    crashes_in_words,
    evidence,
    ruled_out_status,
    ruled_out_words,
    standing,
    status_of,
    tested_recipe,
    tested_recipes,
    undecided_line,
)
from marble_sweep.searches.strategy import Proposal, SearchState, Settled, Wait, next_probe, next_trial
from marble_sweep.searches.study import result_for
from marble_sweep.searches.trial_record import STALE, TrialRecord

THRESHOLDS = {
    "unigram": "the best unigram loss",
    "oracle": "the oracle unigram loss",
    "bigram": "the bigram loss",
}
SIZES = {  # status of the sizes below the answer, in words
    "ruled_out": "ruled out",
    "refuted": "not certified with the recipes tried",
    "implied": "narrower than one of these and otherwise the same",
    "too_slow": "ruled out as too slow",
    "undecided": "undecided",
    "crashed": "crashed",
    "open": "tried, with other recipes left",
    "untried": "not tried",
}
# Statuses that the bracket does not count as ruled out.
APART = {"undecided": "undecided", "too_slow": "too slow", "crashed": "crashed"}
SEEDS_TO_EXCLUDE = 6  # that rule out a recipe which never certifies, as a rule
RECIPES_TO_REFUTE = 3  # for a typical size: the best recipe and its two neighbours


@dataclass(frozen=True)
class ThresholdResult:
    """The trials of a search as one threshold sees them, and what follows from them."""

    space: Space
    base: Config  # what all trials share
    threshold: str
    trials: Sequence[FrozenTrial]  # all of the search
    records: Sequence[TrialRecord]  # as this threshold sees them
    standard: Standard
    confidence: float  # of all that is said of this threshold
    overrides: Sequence[str]  # that all trials share
    config_options: Sequence[str]  # for a command that reads the same config files
    workers: int

    @functools.cached_property
    def state(self) -> SearchState:
        return SearchState(self.space, self.records, self.standard)

    @functools.cached_property
    def decision(self) -> Proposal | Wait | Settled:
        """The next trial for this threshold."""
        return next_trial(self.state)

    @property
    def cost(self) -> Cost:
        """What the search minimises."""
        return COSTS[self.base.search.minimise]

    @property
    def ruled_out(self) -> str:
        return ruled_out_status(self.standard)

    @functools.cached_property
    def undecided_below(self) -> set[int]:
        """The undecided sizes below the answer."""
        return self.state.undecided & self._below(self.state)

    def crashes(self) -> list[dict[str, Any]]:
        """The crashes that keep the answer from being proved, by size: the trials, and why the last one crashed."""
        below = self._below(self.state)
        rows = []
        for size in sorted(size for size, status in self.statuses.items() if status == "crashed" and size in below):
            records = [record for record in self.records if record.size == size]
            trials = [record.number for record in records if record.outcome == RunStatus.FAILED]
            reason = self._result(self._trial(trials[-1])).get("reason")
            rows.append({"size": str(self.space.sizes[size]), "trials": trials, "reason": reason})
        return rows

    # ------------------------------------------------------------------ the answer

    def named_trials(self, *, is_over: bool) -> Iterator[int]:
        """The numbers of the trials that the answer names, or may still come to name."""
        if is_over:
            answer = self.answer()
            return iter(() if answer is None else (answer["trial"],))
        confirmed = min((size for size in self.state.by_size if self.state.confirmed(size)), default=math.inf)
        certified = (record for record in self.records if record.outcome == RunStatus.CERTIFIED)
        return (record.number for record in certified if record.size <= confirmed)

    def answer(self) -> dict[str, Any] | None:
        """The smallest confirmed size, else the smallest certified one: its parameters, loss, margin and fresh seeds.

        None where there is none.
        """
        size = self.state.answer()
        return None if size is None else self._certified(size)

    def smaller_unconfirmed(self) -> dict[str, Any] | None:
        """The smallest size that is certified but not confirmed, where the answer is a larger one."""
        size = self.state.smallest()
        return None if size is None or size == self.state.answer() else self._certified(size)

    def _certified(self, size: int) -> dict[str, Any]:
        """A certified size. Loss and margin are those of the first trial of its recipe that certified."""
        state = self.state
        record = state.certified(size)
        assert record is not None
        recipe = record.recipe
        params = self.space.params(size, recipe)
        confirmations = state.confirmations.get((size, recipe), {})
        certified = sorted(seed for seed, trial in confirmations.items() if trial.outcome == RunStatus.CERTIFIED)
        if record.outcome != RunStatus.CERTIFIED:
            record = confirmations[certified[0]]
        trial, seed = self._trial(record.number), trial_seed(self.base.seed, params, record.seed)
        keys = ("val_loss", "num_windows", "margin", "margin_se", "margin_df", "step", "steps_per_minute", "directory")
        return {
            "size": str(self.space.sizes[size]),
            "params": params,
            "n_params": self.space.sizes[size].num_parameters,
            "cost": self.space.sizes[size].cost,
            "seed": seed,
            "trial": record.number,
            **{key: self._result(trial).get(key) for key in keys},
            "perplexity": perplexity(self._result(trial)["val_loss"]),
            "confirmed": self._confirmed(size),
            "confirming_seeds": [trial_seed(self.base.seed, params, index) for index in certified],
            "fresh_seeds": tested_recipe(state, self.base.seed, self.confidence, size, recipe),
            "evidence": evidence(self.standard, state.fresh.tally((size, recipe)), self.confidence),
            "command": self.command(params | {"seed": seed}, self._result(trial).get("device")),
        }

    def _confirmed(self, size: int) -> bool:
        """Whether fresh seeds accepted it, and there is at least one."""
        return self.standard != 0 and self.state.confirmed(size)

    def command(self, params: Mapping[str, Any], device: Mapping[str, Any] | None) -> str:
        """The command that trains such a model for the whole budget, with the numbers of the trial that certified."""
        settings = {f"device.{name}": value for name, value in (device or {}).items()} | dict(params)
        if self.base.search.thresholds is not None:
            settings["certify.threshold"] = self.threshold
        left_out = ("certify.stop=", "search.", "sweep.", *(f"{key}=" for key in settings))
        kept = [override for override in self.overrides if not override.lstrip("+").startswith(left_out)]
        return shell_command([*self.config_options, *kept, *(f"{key}={value}" for key, value in settings.items())])

    def _trial(self, number: int) -> FrozenTrial:
        return next(trial for trial in self.trials if trial.number == number)

    @functools.cached_property
    def statuses(self) -> dict[int, str]:
        """The status of every size, by its index."""
        return {size: status_of(self.state, size) for size in range(len(self.space.sizes))}

    def frontier(self) -> list[dict[str, Any]]:
        """Every size that was trained or is no larger than the answer, with its best margin."""
        statuses, state = self.statuses, self.state
        top = state.answer()
        rows = []
        for index, size in enumerate(self.space.sizes):
            tried = state.by_size.get(index, {})
            if not tried and statuses[index] != "crashed" and (top is None or index > top):
                continue
            best = self._best(state, index)
            rows.append(
                {
                    "size": str(size),
                    "params": dict(size.params),
                    "n_params": size.num_parameters,
                    "cost": size.cost,
                    "status": statuses[index],
                    "trials": len(tried),
                    "margin": best.get("margin"),
                    "margin_se": best.get("margin_se"),
                    "margin_df": best.get("margin_df"),
                }
            )
        return rows

    def _best(self, state: SearchState, size: int) -> dict[str, Any]:
        """The result of the trial that certified a size, or came closest.

        A recipe that failed on a fresh seed counts by that failure.
        """
        if (record := state.certified(size)) is not None:
            return self._result(self._trial(record.number))
        recipes = state.by_size.get(size, {})
        seeds = [state.confirmations.get((size, recipe), {}) for recipe in recipes]
        numbers = [
            min([own, *others.values()], key=lambda record: record.margin).number
            for own, others in zip(recipes.values(), seeds, strict=True)
        ]
        results = [self._result(self._trial(number)) for number in numbers]
        measured = [result for result in results if "margin" in result]
        return max(measured, key=lambda result: result["margin"], default={})

    def _result(self, trial: FrozenTrial) -> dict[str, Any]:
        """A trial's result, with loss and margin at the evaluation that decides for this threshold."""
        return result_for(trial, self.threshold)

    def _below(self, state: SearchState) -> set[int]:
        """The indices of the sizes smaller than the answer; all where there is none."""
        top, sizes = state.answer(), self.space.sizes
        if top is None:
            return set(range(len(sizes)))
        return {index for index, size in enumerate(sizes) if size.rank < sizes[top].rank}

    def as_json(self) -> dict[str, Any]:
        """An entry of `thresholds` in search.json. Losses and margins are in nats per token."""
        statuses, state = self.statuses, self.state
        below = {size: status for size, status in statuses.items() if size in self._below(state)}
        refuted = [size for size, status in below.items() if status == self.ruled_out]
        return {
            "threshold": self.threshold,
            "answer": self.answer(),
            "smaller_unconfirmed": self.smaller_unconfirmed(),
            "tested_recipes": tested_recipes(state, self.base.seed, self.confidence),
            "undecided_below": [str(self.space.sizes[size]) for size in sorted(self.undecided_below)],
            "ruled_out_below": [str(self.space.sizes[size]) for size in refuted],
            "largest_refuted_below": str(self.space.sizes[max(refuted)]) if refuted else None,
            "sizes_below": dict(Counter(below.values())),
            "crashes": self.crashes(),
            "frontier": self.frontier(),
        }

    # ------------------------------------------------------------------ in words

    def bracket(self) -> str:
        """The smallest certified size, what is refuted below it, and an estimate of the time left."""
        state, statuses, sizes = self.state, self.statuses, self.space.sizes
        top = state.answer()
        below = self._below(state)
        refuted = [size for size in below if statuses[size] == self.ruled_out]
        counts = Counter(statuses[size] for size in below)
        apart = [f", {counts[status]} {name}" for status, name in APART.items() if counts[status]]
        parts = ["none certified" if top is None else f"{self.cost.named(sizes[top])} {standing(state, top)}"]
        smaller = f"{self.cost.smaller('', self.space)} " if top is not None else ""
        largest = f", largest {sizes[max(refuted)]}" if refuted else ""
        closed, ruled_out = counts[self.ruled_out] + counts["implied"], self.ruled_out.replace("_", " ")
        parts.append(f"{closed} of {len(below)} {smaller}{ruled_out}{largest}{''.join(apart)}")
        if (left := self.seconds_left(state, top)) is not None:
            parts.append(f"about {duration(left)} left")
        return " | ".join(parts)

    def seconds_left(self, state: SearchState, top: int | None) -> float | None:
        """An estimate of the time until the search is settled; None during the bisection, whose length is unknown.

        It takes this process's workers to be busy all the time.
        """
        ended = [result for trial in self.trials if (result := self._result(trial)).get("steps_per_minute")]
        if top is None or not ended or next_probe(state, top) is not None:
            return None
        training = [60 * result["step"] / result["steps_per_minute"] for result in ended]
        step_seconds = sum(training) / sum(result["step"] for result in ended)
        other_seconds = sum(result["seconds"] for result in ended) - sum(training)
        still_open = [size for size in state.widest_below(top) if size not in state.crashed]
        to_exclude = SEEDS_TO_EXCLUDE if isinstance(self.standard, PassRate) else 0
        recipes = sum(max(1, RECIPES_TO_REFUTE - len(state.by_size.get(size, {}))) + to_exclude for size in still_open)
        steps = recipes * self.base.trainer.total_steps
        record = state.certified(top)
        seeds = state.fresh.seeds_to_accept((top, record.recipe)) if record is not None else 0
        steps += seeds * record.last_step if record is not None else 0
        return (steps * step_seconds + (recipes + seeds) * other_seconds / len(ended)) / self.workers

    def summary_lines(self, summary: Mapping[str, Any], *, is_final: bool) -> list[str]:
        """The answer and what is shown of the smaller sizes. `summary` is as_json's."""
        answer = summary["answer"]
        lines = self._answer_lines(summary, is_final=is_final)
        below = summary["sizes_below"]
        words = SIZES | {"ruled_out": ruled_out_words(summary["tested_recipes"], summary["ruled_out_below"])}
        counts = ", ".join(f"{below[status]} {name}" for status, name in words.items() if below.get(status))
        sizes = "sizes" if answer is None else self.cost.smaller("sizes", self.space)
        none = f"There is no {self.cost.smaller('size', self.space)} in the space."
        lines.append(f"Of all {sizes} in the space: {counts}." if counts else none)
        if (undecided := undecided_line(summary["tested_recipes"], summary["undecided_below"])) is not None:
            lines.append(undecided)
        if summary["crashes"]:
            lines.append(f"The question is not settled: {crashes_in_words(summary['crashes'])}.")
        return lines

    def _answer_lines(self, summary: Mapping[str, Any], *, is_final: bool) -> list[str]:
        """The answer, or that there is none."""
        answer, config, trainer = summary["answer"], self.base, self.base.trainer
        threshold = THRESHOLDS.get(self.threshold, f"a loss of {self.threshold}")
        within = f"within {trainer.total_steps:,} steps of {trainer.batch_size} x {trainer.seq_len} tokens"
        if (slowest := config.certify.min_steps_per_minute) is not None:
            within += f" at {slowest:g} steps a minute or more"
        if answer is None:
            if {record.outcome for record in self.records} - {RunStatus.RUNNING, STALE, RunStatus.FAILED}:
                return [f"Nothing is certified: no size tried is shown to beat {threshold} {within}."]
            return [f"Nothing is certified: every trial {'crashed' if summary['crashes'] else 'was cut short'}."]
        so_far = "" if is_final else " so far"  # a smaller one may be left
        windows = f" on {answer['num_windows']:,} windows" if answer["num_windows"] else ""
        lines = [
            f"The {self.cost.smallest}{so_far}: {answer['size']}, "
            f"{self.cost.describe(answer['cost'], answer['n_params'])}, beats {threshold} {within}.",
            f"{' '.join(f'{key}={value}' for key, value in answer['params'].items())}: held-out loss "
            f"{answer['val_loss']:.4f}{windows} (perplexity {answer['perplexity']:,.1f}), {answer['margin']:.4f} nats "
            f"below (standard error {answer['margin_se']:.4f}), at step {answer['step']:,}; {answer['evidence']}.",
        ]
        if (smaller := summary["smaller_unconfirmed"]) is not None:
            which = self.cost.smaller("size", self.space)
            lines.append(f"A {which} is certified on the search's seed: {smaller['size']}; {smaller['evidence']}.")
        return lines
