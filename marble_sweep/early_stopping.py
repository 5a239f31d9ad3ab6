"""Is a held-out margin real, and may the run that has it end? Looked at a few times in a run, not at every step.

A margin is threshold - loss, paired by window where the threshold is a baseline. It certifies once it is so many
standard errors above 0. Looking K times gives chance K tries, so each look gets a K-th of the error that a single
look would be allowed (Bonferroni; it holds however the looks depend on each other): with K = 9 looks, the 3 standard
errors of one look become 3.62.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

from marble_sweep.config import CertifyConfig, Config

NORMAL = NormalDist()
LOOK_RATIO = math.sqrt(2)  # between the steps of two looks
# A model whose held-out loss does not change by even this, in nats per token, when its contexts are exchanged, so few
# looks before the end: none that did was seen to certify (docs/search_replay.md).
NO_CONTEXT = 1e-6
LOOKS_WITHOUT_CONTEXT = 3
# How much held-out loss falls at most from one look to the next once the first descent is over, as a share of itself:
# so fast does a model leave the unigram plateau. Of 270 recorded curves two fell faster for one look (by 0.044 and
# 0.048); none that certified would have been given up (docs/search_replay.md).
FASTEST_FALL = 0.04


def look_steps(looks: int, total_steps: int) -> list[int]:
    """The steps of at most `looks` looks, each a factor of √2 after the one before, the last at the end."""
    return sorted({max(1, round(total_steps / LOOK_RATIO**back)) for back in range(looks)})


def evaluation_steps(config: Config) -> frozenset[int]:
    """The steps after which a run is evaluated: the looks, or every trainer.eval_interval; the last one always."""
    trainer, looks = config.trainer, config.certify.looks
    if looks:
        return frozenset(look_steps(looks, trainer.total_steps))
    every = trainer.eval_interval
    steps = range(every, trainer.total_steps, every) if every else ()
    return frozenset([*steps, trainer.total_steps])


def errors_needed(single_look: float, looks: int) -> float:
    """How many standard errors each of `looks` looks needs for the error rate of `single_look` on one look."""
    return -NORMAL.inv_cdf(NORMAL.cdf(-single_look) / max(1, looks))


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
    ruling: str | None = None  # certified, pruned, too_slow; None while the run may go on

    def __post_init__(self) -> None:
        self.steps = look_steps(self.config.certify.looks, self.config.trainer.total_steps)
        self.errors = errors_needed(self.config.verdict.min_standard_errors, len(self.steps))

    def look(self, row: dict[str, float], steps_per_minute: float) -> None:
        """Take up a row of evals.csv and rule on the run, if the config asks for rulings."""
        self.rows.append(row)
        if not self.config.certify.stop:
            return
        slowest = self.config.search.min_steps_per_minute
        if slowest is not None and steps_per_minute < slowest:
            self.ruling = "too_slow"
        elif shortfall(self.config.certify, row, self.errors) <= 0:
            self.ruling = "certified"
        elif self.steps and row["step"] < self.steps[-1] and is_hopeless(self.config.certify, self.rows, self.steps):
            self.ruling = "pruned"


def shortfall(config: CertifyConfig, row: dict[str, float], errors: float) -> float:
    """What a row lacks to be certified, in nats per token; 0 or less where nothing."""
    value, error = margin(config, row)
    return errors * error - value if math.isfinite(value + error) else math.inf


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
