"""Hydra's sweep syntax as the dimensions of a search."""

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from marble_sweep.checks import CheckError, wrong_value
from marble_sweep.hydra_app.sweep_length import require_few
from marble_sweep.searches.space import Dimension, Value, interval_grid


def parse(arguments: Sequence[str], parser: OverridesParser) -> tuple[list[Dimension], dict[str, str]]:
    """Split overrides into searched dimensions and fixed ones, as `key=value`; the last of a key counts.

    Raises CheckError for a sweep that is empty.
    """
    dimensions: dict[str, Dimension] = {}
    fixed: dict[str, str] = {}
    for override in parser.parse_overrides(list(arguments)):
        require_few([override])
        key = override.get_key_element()
        bare = key.lstrip("+~")
        dimensions.pop(bare, None)
        fixed.pop(bare, None)
        if override.is_sweep_override():
            dimensions[bare] = dimension(key, override)
        else:
            fixed[bare] = override.input_line or ""
    return list(dimensions.values()), fixed


def dimension(key: str, override: Override) -> Dimension:
    """A sweep in Hydra's syntax as a dimension. A `range` ends before its stop, as it does in a grid."""
    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        assert sweep.start is not None
        assert sweep.end is not None
        log, low, high = "log" in sweep.tags, sweep.start, sweep.end
        if not low <= high or (log and low <= 0):
            raise wrong_value(key, override.input_line, f"an interval from low to high{', > 0' * log}")
        if isinstance(low, int) and isinstance(high, int):
            return Dimension(key, IntDistribution(low, high, log=log), tuple(range(low, high + 1)), ordered=True)
        return Dimension(key, FloatDistribution(low, high, log=log), interval_grid(low, high, log=log), ordered=True)
    values = [typed(text) for text in override.sweep_string_iterator()]
    if not values:
        raise CheckError(f"{key} = {override.input_line}: must have at least one value", key)
    numeric = all(not isinstance(value, str) for value in values)
    if isinstance(sweep, RangeSweep) and all(isinstance(value, int) for value in values) and not sweep.shuffle:
        step = abs(int(sweep.step))
        low, high = min(map(int, values)), max(map(int, values))
        return Dimension(key, IntDistribution(low, high, step=step), tuple(range(low, high + 1, step)), ordered=True)
    distinct = list(dict.fromkeys(values))
    ordered = tuple(sorted(distinct, key=float)) if numeric else tuple(distinct)
    return Dimension(key, CategoricalDistribution(ordered), ordered, ordered=numeric)


def typed(text: str) -> Value:
    """A value as a number where it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
