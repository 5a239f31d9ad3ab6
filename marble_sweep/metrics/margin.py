"""Whether a held-out margin is real: certified, below or undecided. What "beats" means is decided here alone.

A margin is a threshold's loss minus the model's, in nats per token, with its clustered standard error and the degrees
of freedom of that (uncertainty/clusters.py). "3 standard errors" stands for a certainty, that of 3 of a normal
distribution: with few degrees of freedom more of them are needed for as much (docs/truth.md).
"""

import math
from collections.abc import Mapping
from enum import StrEnum
from statistics import NormalDist

from marble_sweep.runs.renamed import OF_ALL_WINDOWS
from marble_sweep.runs.status import RunStatus
from marble_sweep.uncertainty.student import student_errors

NORMAL = NormalDist()
# The margin, in evals.csv, that decides for a baseline. Of the uniform, the fitted and the tempered unigram the
# tempered one is never worse than the others (data/baselines.py), so to beat it is to beat all three.
DECIDING_MARGINS = {"unigram": "tempered", "oracle": "oracle", "bigram": "bigram"}
# At each evaluation of a run that may end there: on the evaluated windows, and where these leave it undecided on all.
DECISIONS = 2
Measured = tuple[float, float, float]  # a number, its standard error, and the degrees of freedom of that


class Outcome(StrEnum):
    """What is shown of a margin. BELOW and CERTIFIED ask for the same certainty; what shows neither is UNDECIDED."""

    CERTIFIED = RunStatus.CERTIFIED.value  # above 0: a run that ends because of that has the same word
    BELOW = "below"  # not above 0
    UNDECIDED = "undecided"

    @property
    def passed(self) -> bool | None:
        """As the answer to `is it above 0?`; None: undecided."""
        return {Outcome.CERTIFIED: True, Outcome.BELOW: False}.get(self)


def degrees_of_freedom(row: Mapping[str, float], name: str) -> float:
    """Those of a row's `{name}_se`. Infinite in a row of an earlier version, whose windows counted as independent."""
    df = row.get(f"{name}_df", math.nan)
    return math.inf if math.isnan(df) else df


def deciding_column(row: Mapping[str, float], name: str) -> str:
    """The column of a row of evals.csv that decides: that of all windows where those were looked at."""
    of_all = f"{OF_ALL_WINDOWS}{name}"
    return name if math.isnan(row.get(of_all, math.nan)) else of_all


def measured(row: Mapping[str, float], name: str) -> Measured:
    """A number of a row of evals.csv, of all windows where those were looked at; NaN where the row has none."""
    name = deciding_column(row, name)
    return row.get(name, math.nan), row.get(f"{name}_se", math.nan), degrees_of_freedom(row, name)


def unigram_margin(row: Mapping[str, float | None]) -> Measured:
    """The margin to the best unigram; to the fitted one in a row of an earlier version, which knows no other."""
    numbers = {name: value for name, value in row.items() if value is not None}
    best = measured(numbers, "tempered_margin")
    return measured(numbers, "unigram_margin") if math.isnan(best[0]) else best


def outcome_of(number: Measured, errors_needed: float) -> Outcome | None:
    """What a number with its error shows, as certainly as by `errors_needed` standard errors of a normal distribution.

    None where it was not measured: the number or its error is NaN, as the error of a single window is. A number or an
    error that is infinite decides nothing.
    """
    value, error, df = number
    if math.isnan(value) or math.isnan(error):
        return None
    if math.isinf(value) or math.isinf(error):
        return Outcome.UNDECIDED
    reach = student_errors(errors_needed, df) * error if error > 0 else 0.0
    if 0 < value >= reach:
        return Outcome.CERTIFIED
    return Outcome.BELOW if value + reach <= 0 else Outcome.UNDECIDED


def outcome_with_context(margin: Measured, context_gain: Measured, errors_needed: float) -> Outcome | None:
    """Whether a margin to a baseline and the gain from the context are both above 0.

    Held-out text of another kind than training can put a model below a baseline without any use of context. Both are
    certified together by mistake no more often than one of them. If either is below, so is the whole. None where one
    was not measured and the other is not below.
    """
    outcomes = {outcome_of(margin, errors_needed), outcome_of(context_gain, errors_needed)}
    if Outcome.BELOW in outcomes:
        return Outcome.BELOW
    if None in outcomes:
        return None
    return Outcome.CERTIFIED if outcomes == {Outcome.CERTIFIED} else Outcome.UNDECIDED


def errors_needed(single: float, num_decisions: int) -> float:
    """How many standard errors of a normal distribution a margin needs at any of `num_decisions` about a run.

    `single` is what it needs where there is one decision. K decisions give chance K tries, so each of them is allowed
    a K-th of a single one's error probability (Bonferroni; it holds however they depend on each other): with 9
    evaluations of DECISIONS each, 3 standard errors become 3.79.
    """
    if num_decisions <= 1:
        return single
    return -NORMAL.inv_cdf(NORMAL.cdf(-single) / num_decisions)
