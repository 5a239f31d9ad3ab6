"""How long a sweep is, known before it is laid out: a slip such as range(1,2000000000) is refused at once."""

import math
from collections.abc import Iterable

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from marble_sweep.checks import require
from marble_sweep.config import MAX_JOBS


def length(override: Override) -> int:
    """How many values an override sweeps over; 1 where it is no sweep or an interval of real numbers."""
    sweep = override.value()
    if isinstance(sweep, ChoiceSweep):
        return len(sweep.list)
    if isinstance(sweep, RangeSweep):
        assert sweep.start is not None
        assert sweep.stop is not None
        return max(0, math.ceil((sweep.stop - sweep.start) / sweep.step)) if sweep.step else 1
    if isinstance(sweep, IntervalSweep) and isinstance(sweep.start, int) and isinstance(sweep.end, int):
        return max(0, sweep.end - sweep.start + 1)
    return 1


def require_few(overrides: Iterable[Override]) -> None:
    """Raise CheckError where a sweep, or all of them together, has more values than anyone could train."""
    total = 1
    for override in overrides:
        total *= length(override)
        key, _, text = (override.input_line or "").partition("=")
        require(
            total <= MAX_JOBS, key, text, f"shorter: with what comes before it, it makes more than {MAX_JOBS:,} jobs"
        )
