"""The result of a frontier: the lowest loss of every size, the law through them, and what it predicts."""

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marble_sweep.runs.status import RunStatus
from marble_sweep.scaling.law import Interval, Law, fit_law
from marble_sweep.scaling.points import Point, Refusal, SeedNoise, mean_interval, seed_noise, staircase
from marble_sweep.search_config import loss_of
from marble_sweep.searches.frontier_strategy import FrontierState, SizeState, loss_of_trial, next_frontier_trial
from marble_sweep.searches.frontier_windows import window_errors
from marble_sweep.searches.frontier_words import frontier_lines
from marble_sweep.searches.outcome import VERSION, SearchResult
from marble_sweep.searches.strategy import Proposal, Settled, Wait
from marble_sweep.searches.study import result_for, result_of
from marble_sweep.searches.thresholds import thresholds_of
from marble_sweep.searches.trial_record import TrialRecord

NUM_DRAWN = 80  # points of the law that are drawn


@dataclass(frozen=True)
class FrontierResult(SearchResult):
    """The trials of a frontier, and what follows from them."""

    @functools.cached_property
    def state(self) -> FrontierState:
        return FrontierState(self.space, self.records, self.base.search.frontier_seeds)

    @functools.cached_property
    def decision(self) -> Proposal | Wait | Settled:
        """The next trial."""
        return next_frontier_trial(self.state)

    def ended_by(self, *, settled: bool) -> str | None:
        """What ends the search now; None while it may go on."""
        if settled:
            return "crashed" if self.crashes() else "settled"
        return super().ended_by(settled=False)

    def _crashed_twice(self) -> set[int]:
        return self.state.crashed

    def crashes(self) -> list[dict[str, Any]]:
        """The sizes where a trial crashed twice, and so may not be tuned: the trials, and why the last crashed."""
        rows = []
        for size in sorted(self.state.crashed):
            failed = [record for record in self.records if record.size == size and record.outcome == RunStatus.FAILED]
            numbers = [record.number for record in failed]
            reason = next(result_of(trial).get("reason") for trial in self.trials if trial.number == numbers[-1])
            rows.append({"size": str(self.space.sizes[size]), "trials": numbers, "reason": reason})
        return rows

    def named_trials(self, *, is_over: bool) -> set[int]:
        """The numbers of the trials of every size's best recipe."""
        bests = [(size, size.best) for size in self.state.sizes if size.best is not None]
        own = {size.trained[best].number for size, best in bests}
        return own | {record.number for size, _ in bests for record in size.fresh(self.state.num_seeds)}

    def bracket(self, threshold: str = "") -> str:
        """How many sizes are done, and the lowest loss so far."""
        sizes = self.state.sizes
        climbed = sum(size.has_climbed for size in sizes)
        lowest = min((loss_of_trial(record) for size in sizes for record in self._records(size)), default=None)
        loss = "" if lowest is None else f" | lowest loss {lowest:.3f}"
        return f"{climbed} of {len(sizes)} sizes climbed, {sum(size.tuned for size in sizes)} tuned{loss}"

    def _records(self, size: SizeState) -> list[TrialRecord]:
        return size.of_best(self.base.search.frontier_seeds)

    def _result(self, record: TrialRecord, threshold: str = "") -> dict[str, Any]:
        trial = next(trial for trial in self.trials if trial.number == record.number)
        return result_for(trial, threshold)

    # ------------------------------------------------------------------ search.json

    def as_json(self, ended: str, data: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What search.json holds. Losses are in nats per token, intervals [value, low, high].

        The law is fitted once the search has ended. `data` has the corpus and the baselines of a trial.
        """
        has_ended = ended != "running"
        points, common = self._points(with_windows=has_ended)
        measured = list(points.values())
        law = fit_law(measured, common) if has_ended else Refusal("it is fitted once the search has ended")
        noise = seed_noise(measured)
        rows = [self._row(index, points.get(index), noise) for index in range(len(self.space.sizes))]
        steps = [point.name for point in staircase(measured)]
        summary = {
            "version": VERSION,
            "question": "frontier",
            "budget": {key: getattr(self.base.trainer, key) for key in ("total_steps", "batch_size", "seq_len")},
            "data": data,
            "ended": ended,
            "seeds": self.base.search.frontier_seeds,
            "sizes": rows,
            "staircase": steps,
            "law": law_json(law),
            "common_error": common,
            "thresholds": [self._threshold(name, law) for name in thresholds_of(self.base)],
            "crashes": self.crashes(),
            "sizes_in_space": len(self.space.sizes),
            "impossible_sizes": list(self.space.impossible),
            "trials": self.num_trials(),
            "reused": len(self._reused),
            "reused_runs": self.reused_runs(),
            "outcomes": dict(Counter(record.outcome for record in self.as_recorded)),
            "tokens": self.tokens(),
            "seconds": self.seconds(),
        }
        return summary | {"summary_lines": frontier_lines(summary, self.workers)}

    def _points(self, *, with_windows: bool) -> tuple[dict[int, Point], float]:
        """The sizes with a loss, by index, and the error that all losses share.

        Without the losses of single windows, a size's error is that of its margin to the first threshold.
        """
        records = {index: found for index, size in enumerate(self.state.sizes) if (found := self._measured(size))}
        directories = [[Path(self._result(record)["directory"]) for record in found] for found in records.values()]
        errors = window_errors(directories, self.base.trainer.total_steps) if with_windows and records else None
        points = {}
        for place, (index, found) in enumerate(records.items()):
            size = self.space.sizes[index]
            paired = [self._result(record, thresholds_of(self.base)[0]).get("margin_se") or 0.0 for record in found]
            own = paired if errors is None else [errors[0][place]] * len(found)
            losses = tuple(loss_of_trial(record) for record in found)
            state = self.state.sizes[index]
            tuned = state.tuned and not state.diverged(self.base.search.frontier_seeds)
            points[index] = Point(str(size), size.num_parameters, losses, tuple(own), tuned)
        return points, 0.0 if errors is None else errors[1]

    def _measured(self, size: SizeState) -> list[TrialRecord]:
        return [record for record in self._records(size) if record.loss is not None]

    def _row(self, index: int, point: Point | None, noise: SeedNoise) -> dict[str, Any]:
        """One size at its best recipe."""
        size, state = self.space.sizes[index], self.state.sizes[index]
        records = self._measured(state)
        params = self.space.params(index, state.best) if state.best is not None else None
        return {
            "size": str(size),
            "n_params": size.num_parameters,
            "params": params,
            "recipes": len(state.trained),
            "losses": [record.loss for record in records],
            "loss": point.loss if point is not None else None,
            "interval": list(mean_interval(point, noise)) if point is not None else None,
            "error": point.error if point is not None else None,
            "climbed": state.has_climbed,
            "tuned": point.tuned if point is not None else False,
            "diverged_seeds": state.diverged(self.base.search.frontier_seeds) if state.best is not None else 0,
            "thresholds": {name: self._standing(records, name) for name in thresholds_of(self.base)},
            "trials": [record.number for record in records],
        }

    def _standing(self, records: list[TrialRecord], threshold: str) -> str | None:
        """Certified or below where it is so on every seed, else undecided; None where nothing was measured."""
        outcomes = {self._result(record, threshold).get("outcome") for record in records}
        if not outcomes:
            return None
        return outcomes.pop() if len(outcomes) == 1 else "undecided"

    def _threshold(self, name: str, law: Law | Refusal) -> dict[str, Any]:
        """A threshold's loss, the smallest size that is certified, and the size that the law predicts."""
        loss = self._threshold_loss(name)
        measured = [(size, self._measured(self.state.sizes[index])) for index, size in enumerate(self.space.sizes)]
        certified = [size for size, records in measured if self._standing(records, name) == RunStatus.CERTIFIED]
        smallest = min(certified, key=lambda size: size.num_parameters, default=None)
        predicted = None
        if isinstance(law, Law) and loss is not None:
            predicted = law.size_for(loss, same_windows=loss_of(name) is None)
        return {
            "threshold": name,
            "loss": loss,
            "answer": None if smallest is None else {"size": str(smallest), "n_params": smallest.num_parameters},
            "predicted": predicted.as_list() if isinstance(predicted, Interval) else None,
            "not_predicted": predicted.reason if isinstance(predicted, Refusal) else None,
        }

    def _threshold_loss(self, name: str) -> float | None:
        """The loss of a threshold on the windows of the last evaluations."""
        if (number := loss_of(name)) is not None:
            return number
        for record in self.records:
            shown = self._result(record, name)
            if record.loss is not None and shown.get("margin") is not None:
                return float(shown["val_loss"] + shown["margin"])
        return None


def law_json(law: Law | Refusal) -> dict[str, Any]:
    """A law with its intervals, its points and its curve with the prediction interval, or why there is none."""
    if isinstance(law, Refusal):
        return {"refused": law.reason}
    return {
        "refused": None,
        "E": law.level.as_list(),
        "A": law.drop.as_list(),
        "alpha": law.alpha.as_list(),
        "sizes": [point.name for point in law.points],
        "smallest_predicted": law.min_size,
        "largest_predicted": law.max_size,
        "curve": [[size, *predicted.as_list()] for size, predicted in law.curve_points(NUM_DRAWN)],
    }
