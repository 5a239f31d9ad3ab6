"""May a run end because its held-out margin is real, or has no hope to become so? Looked at a few times in a run.

A margin is threshold - loss, paired by window where the threshold is a baseline. It certifies once it beats the
threshold (metrics/margin.py), by so many standard errors that all looks together err no more often than a single one.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from marble_sweep.config import CertifyConfig, Config
from marble_sweep.metrics.margin import beats, errors_needed
from marble_sweep.runs.status import RunStatus
from marble_sweep.training.schedule import evaluation_steps

# A model whose held-out loss does not change by even this, in nats per token, when its contexts are exchanged, so few
# looks before the end: none that did was seen to certify (docs/search_replay.md).
NO_CONTEXT = 1e-6
LOOKS_WITHOUT_CONTEXT = 3
# How much held-out loss falls at most from one look to the next once the first descent is over, as a share of itself:
# so fast does a model leave the unigram plateau. Of 270 recorded curves two fell faster for one look (by 0.044 and
# 0.048); none that certified would have been given up (docs/search_replay.md).
FASTEST_FALL = 0.04


def margin(config: CertifyConfig, row: dict[str, float]) -> tuple[float, float]:
    """The margin to the threshold in nats per token, and its standard error, of a row of evals.csv."""
    if config.loss is not None:
        return config.loss - row["val_loss"], row["val_loss_se"]
    return row[f"{config.threshold}_margin"], row[f"{config.threshold}_margin_se"]


@dataclass
class EarlyStopping:
    """Rules at each look of one run. Its rows are saved with the run's state."""

    config: Config
    rows: list[dict[str, float]] = field(default_factory=list)  # of evals.csv, so far
    ruling: RunStatus | None = None  # certified, pruned, too_slow; None while the run may go on

    def __post_init__(self) -> None:
        trainer = self.config.trainer
        self.steps = evaluation_steps(trainer.total_steps, trainer.num_evals, trainer.eval_spacing)
        self.errors = errors_needed(self.config.verdict.min_standard_errors, len(self.steps))

    def look(self, row: dict[str, float], steps_per_minute: float) -> None:
        """Take up a row of evals.csv and rule on the run, if the config asks for rulings."""
        self.rows.append(row)
        if not self.config.certify.stop:
            return
        slowest = self.config.certify.min_steps_per_minute
        if slowest is not None and steps_per_minute < slowest:
            self.ruling = RunStatus.TOO_SLOW
        elif beats(*margin(self.config.certify, row), self.errors):
            self.ruling = RunStatus.CERTIFIED
        elif row["step"] < self.steps[-1] and is_hopeless(self.config.certify, self.rows, self.steps):
            self.ruling = RunStatus.PRUNED


def shortfall(config: CertifyConfig, row: dict[str, float], errors: float) -> float:
    """What a row lacks to be certified, in nats per token: 0 or less where it is, above 0 where it is not."""
    value, error = margin(config, row)
    lacking = errors * error - value
    if not math.isfinite(lacking):
        return math.inf
    # A margin of 0 without any error lacks nothing by this arithmetic, and yet beats nothing.
    return lacking if beats(value, error, errors) else max(lacking, sys.float_info.epsilon)


def is_hopeless(config: CertifyConfig, rows: Sequence[dict[str, float]], steps: Sequence[int]) -> bool:
    """Whether a run that is not certified can no longer be by the last look.

    Either because its predictions do not depend on the context at all when only LOOKS_WITHOUT_CONTEXT looks are
    left, where the threshold cannot be reached without; or because not even falling as fast as it ever could brings
    its loss to the threshold: by as much at each look that is left as it fell up to this one, or by FASTEST_FALL
    of itself, whichever is more.
    """
    looks_left = sum(step > rows[-1]["step"] for step in steps)
    if looks_left <= LOOKS_WITHOUT_CONTEXT and config.loss is None and abs(rows[-1]["context_gain"]) < NO_CONTEXT:
        return True
    if len(rows) < 2:
        return False
    (before, _), (now, _) = margin(config, rows[-2]), margin(config, rows[-1])
    fastest = max(now - before, FASTEST_FALL * rows[-1]["val_loss"])
    return not now + looks_left * fastest > 0
