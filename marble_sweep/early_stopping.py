"""May a run end early, because its held-out margin is real, or because it has no hope of becoming so?

A margin is threshold - loss, paired by window where the threshold is a baseline. It is certified, below or undecided
(metrics/margin.py), by so many standard errors that all interim evaluations together err no more often than a single
one. Where the threshold is a baseline, the gain from the context must be that many errors above 0 too.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace

from marble_sweep.config import Config
from marble_sweep.metrics.margin import (
    DECIDING_MARGINS,
    DECISIONS,
    Measured,
    Outcome,
    errors_needed,
    measured,
    outcome_of,
    outcome_with_context,
)
from marble_sweep.runs.status import RunStatus
from marble_sweep.search_config import CertifyConfig
from marble_sweep.training.schedule import evaluation_steps
from marble_sweep.uncertainty.student import student_errors

# A model ignores its context when exchanging contexts changes its held-out loss by less than this, in nats per token.
# Of the recorded runs that ignored it after so large a part of their steps, none certified (docs/truth.md).
NO_CONTEXT = 1e-7
PART_WITHOUT_CONTEXT = 1 / 4
# How much held-out loss may yet fall with each doubling of the steps, as a share of itself. Once the first descent is
# over, no recorded curve of the default corpus falls faster between two evaluations (docs/truth.md).
FASTEST_FALL = 0.12


class EarlyStopping:
    """Decides at the evaluations of a run, at `steps`, whether the run ends there."""

    def __init__(self, config: Config) -> None:
        trainer = config.trainer
        self.config = config.certify
        self.steps = evaluation_steps(trainer.total_steps, trainer.num_evals, trainer.eval_spacing)
        # A run that does not end early is judged once, by its last evaluation.
        num_decisions = len(self.steps) * DECISIONS if config.certify.stop else 1
        self.errors_needed = errors_needed(config.verdict.min_standard_errors, num_decisions)

    def stop_reason(self, evals: Sequence[dict[str, float]], steps_per_minute: float) -> RunStatus | None:
        """Why the run ends after the last of its `evals` (rows of evals.csv), or None where it goes on."""
        slowest = self.config.min_steps_per_minute
        if slowest is not None and steps_per_minute < slowest:
            return RunStatus.TOO_SLOW
        if self.outcome(evals[-1]) == Outcome.CERTIFIED:
            return RunStatus.CERTIFIED
        if evals[-1]["step"] < self.steps[-1] and is_hopeless(self.config, evals, self.steps):
            return RunStatus.PRUNED
        return None

    def outcome(self, row: dict[str, float]) -> Outcome | None:
        """What a row of evals.csv shows of the threshold; None where that was not measured."""
        return outcome(self.config, row, self.errors_needed)

    def needs_all_windows(self, row: dict[str, float]) -> bool:
        """Whether the evaluated windows leave the threshold undecided; at the last step, any that a search asks of."""
        asked = self.thresholds if row["step"] == self.steps[-1] else [self.config]
        return any(outcome(config, row, self.errors_needed) == Outcome.UNDECIDED for config in asked)

    @property
    def thresholds(self) -> list[CertifyConfig]:
        """The config for each threshold that a search asks of the run; its own alone where none are named."""
        names = self.config.thresholds or [self.config.threshold]
        return [replace(self.config, threshold=name) for name in names]

    def standing(
        self, config: CertifyConfig, evals: Sequence[dict[str, float]]
    ) -> tuple[RunStatus | Outcome | None, int]:
        """How a run stands towards one of `thresholds` by all of its evaluations, and after how many of them.

        It is certified by the first evaluation that certifies it. Below, undecided, or pruned as hopeless it can only
        be by the last one. None: the run ended early for another threshold, and could be continued for this one.
        """
        for number, row in enumerate(evals, 1):
            if outcome(config, row, self.errors_needed) == Outcome.CERTIFIED:
                return RunStatus.CERTIFIED, number
        if not evals:
            return None, 0
        if evals[-1]["step"] == self.steps[-1]:
            return outcome(config, evals[-1], self.errors_needed) or Outcome.UNDECIDED, len(evals)
        return (RunStatus.PRUNED if is_hopeless(config, evals, self.steps) else None), len(evals)


def margin(config: CertifyConfig, row: dict[str, float]) -> tuple[float, float]:
    """The margin to the threshold in nats per token, and its standard error, of a row of evals.csv."""
    value, error, _ = _decisive(config, row)
    return value, error


def margin_df(config: CertifyConfig, row: dict[str, float]) -> float:
    """The degrees of freedom of the margin's standard error."""
    return _decisive(config, row)[2]


def _decisive(config: CertifyConfig, row: dict[str, float]) -> Measured:
    if config.loss is not None:
        value, error, df = measured(row, "val_loss")
        return config.loss - value, error, df
    return measured(row, f"{DECIDING_MARGINS[config.threshold]}_margin")


def _context_gain(row: dict[str, float]) -> Measured:
    """What the true context is worth."""
    return measured(row, "context_gain")


def outcome(config: CertifyConfig, row: dict[str, float], errors: float) -> Outcome | None:
    """What a row shows of the threshold, as certainly as by `errors` standard errors of a normal distribution.

    A baseline is beaten only with the help of the context. None where a number that decides was not measured.
    """
    if config.loss is not None:  # a number may lie above what token frequencies reach
        return outcome_of(_decisive(config, row), errors)
    return outcome_with_context(_decisive(config, row), _context_gain(row), errors)


def lacks_context(config: CertifyConfig, row: dict[str, float], errors: float) -> bool:
    """Whether a row's margin would certify it, if only the context were used."""
    alone, together = outcome_of(_decisive(config, row), errors), outcome(config, row, errors)
    return alone == Outcome.CERTIFIED != together


def shortfall(config: CertifyConfig, row: dict[str, float], errors: float) -> float:
    """What a row lacks to be certified, in nats per token: 0 or less where it is, above 0 where it is not."""
    needed = [_decisive(config, row)] if config.loss is not None else [_decisive(config, row), _context_gain(row)]
    lacking = max(student_errors(errors, df) * error - value for value, error, df in needed)
    if not all(math.isfinite(value) and math.isfinite(error) for value, error, _ in needed):
        return math.inf
    # A margin of 0 without any error lacks nothing by this arithmetic, and yet beats nothing.
    certified = outcome(config, row, errors) == Outcome.CERTIFIED
    return lacking if certified else max(lacking, sys.float_info.epsilon)


def is_hopeless(config: CertifyConfig, evals: Sequence[dict[str, float]], steps: Sequence[int]) -> bool:
    """Whether a run that is not certified can no longer be by its last evaluation.

    Either its predictions do not depend on the context at all after PART_WITHOUT_CONTEXT of its steps, and the
    threshold cannot be reached without. Or its loss misses the threshold even if it goes on falling at each step as it
    did since the evaluation before, or by FASTEST_FALL of itself with each doubling of the steps, whichever is more.
    """
    last = evals[-1]
    ignores_context = config.loss is None and abs(last["context_gain"]) < NO_CONTEXT
    if ignores_context and last["step"] >= PART_WITHOUT_CONTEXT * steps[-1]:
        return True
    if len(evals) < 2:
        return False
    (prev_margin, _), (last_margin, _) = margin(config, evals[-2]), margin(config, last)
    # An evaluation by an earlier version did not measure it; a loss of NaN or infinity ends the run as diverged.
    if math.isnan(prev_margin) or not math.isfinite(last_margin):
        return False
    steps_left = steps[-1] - last["step"]
    as_before = steps_left * (last_margin - prev_margin) / (last["step"] - evals[-2]["step"])
    at_most = math.log2(steps[-1] / last["step"]) * FASTEST_FALL * last["val_loss"]
    return not last_margin + max(as_before, at_most) > 0
