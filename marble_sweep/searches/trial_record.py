"""A trial as a search's strategy sees it."""

import functools
import math
from dataclasses import dataclass, field

from marble_sweep.metrics.margin import Outcome
from marble_sweep.runs.status import RunStatus
from marble_sweep.searches.fresh_seeds import Recipe
from marble_sweep.searches.pass_rate import SeedResult

STALE = "stale"  # the outcome of a trial whose worker died or was interrupted
# Outcomes whose last evaluation does not show where training would have led.
NO_MARGIN = (RunStatus.DIVERGED, RunStatus.FAILED)


@dataclass(frozen=True)
class Standing:
    """How an ended trial stands towards one of several thresholds."""

    outcome: str | None  # None: it ended for another threshold, and could be continued for this one
    margins: dict[int, float]  # as a record's


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the strategy sees it."""

    number: int
    size: int  # index in Space.sizes
    recipe: Recipe
    seed: int  # 0: of the search; 1, 2, …: the fresh ones of a confirmation
    outcome: str  # running, certified, below, undecided, pruned, diverged, too_slow, failed, stale
    margins: dict[int, float] = field(default_factory=dict)  # by step: nats per token above what certifies
    threshold: str = ""  # that it was trained for; "" where the search has one alone
    standings: dict[str, Standing] = field(default_factory=dict)  # of an ended trial, by threshold, where several are
    loss: float | None = None  # held-out, at the last evaluation, in nats per token; None: not measured

    @functools.cached_property
    def seed_result(self) -> SeedResult:
        """What it shows as a run on a fresh seed."""
        if self.outcome == RunStatus.CERTIFIED:
            return SeedResult.PASSED
        if self.outcome == RunStatus.RUNNING:
            return SeedResult.RUNNING
        if self.outcome == RunStatus.FAILED:
            return SeedResult.CRASHED
        return SeedResult.UNDECIDED if self.outcome == Outcome.UNDECIDED else SeedResult.FAILED

    @functools.cached_property
    def last_step(self) -> int:
        return max(self.margins, default=0)

    @functools.cached_property
    def margin(self) -> float:
        """At the last evaluation; -inf where there was none, the loss diverged or the trial crashed."""
        return self.margins[self.last_step] if self.margins and self.outcome not in NO_MARGIN else -math.inf
