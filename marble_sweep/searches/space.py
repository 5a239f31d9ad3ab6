"""The space of a search: dimensions with their Optuna distributions, split into sizes and recipes.

A *size* is one choice of everything that the number of parameters depends on; a *recipe* is one choice of
everything else, the learning rate first of all. Sizes are known before anything is trained, and are ordered.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from marble_sweep.checks import CheckError, require
from marble_sweep.config import MAX_JOBS

Value = str | int | float
SIZE_KEYS = ("model", "data", "data.vocab_size", "trainer.seq_len")  # and everything below model
WIDTH = "model.hidden_dim"
STEP_LOG = math.sqrt(10)  # between neighbouring recipes of a log-scaled interval: half a decade
NUM_STEPS = 5  # recipes that a linear interval or a long range is divided into


@dataclass(frozen=True)
class Dimension:
    """One searched key: what Optuna is told of it, and the values the search moves on."""

    key: str
    distribution: BaseDistribution
    values: tuple[Value, ...]  # ascending where ordered
    ordered: bool  # whether neighbours in `values` are alike

    @property
    def decides_size(self) -> bool:
        return self.key in SIZE_KEYS or self.key.startswith("model.")

    def between(self, position: float) -> Value:
        """The value at a position in `values`; half-way ones lie between two of an ordered, continuous dimension."""
        low = math.floor(position)
        if position == low:
            return self.values[low]
        first, second = float(self.values[low]), float(self.values[low + 1])
        return round_value(math.sqrt(first * second) if self.is_log else (first + second) / 2)

    @property
    def is_log(self) -> bool:
        return bool(getattr(self.distribution, "log", False))

    @property
    def is_continuous(self) -> bool:
        return isinstance(self.distribution, FloatDistribution) and self.distribution.step is None


def round_value(value: float) -> float:
    """Three significant digits: what a person can type again."""
    return float(f"{value:.3g}")


@dataclass(frozen=True)
class Size:
    """A point of all dimensions that decide the size."""

    params: tuple[tuple[str, Value], ...]
    num_parameters: int

    def narrower_than(self, other: "Size") -> bool:
        """Whether it is the other, but for a smaller width."""
        ours, theirs = dict(self.params), dict(other.params)
        narrower = WIDTH in ours and float(ours.pop(WIDTH)) < float(theirs.pop(WIDTH))
        return narrower and ours == theirs

    def __str__(self) -> str:
        """As 1L4D where layers and width are all there is to it."""
        params = dict(self.params)
        if set(params) == {"model.num_layers", WIDTH}:
            return f"{params['model.num_layers']}L{params[WIDTH]}D"
        return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.params) or "the only size"


@dataclass(frozen=True)
class Space:
    """All that is searched. `sizes` ascend in their number of parameters."""

    dimensions: tuple[Dimension, ...]
    sizes: tuple[Size, ...]
    impossible: tuple[str, ...] = field(default=())  # why some sizes were left out, a line each

    @property
    def recipes(self) -> tuple[Dimension, ...]:
        return tuple(each for each in self.dimensions if not each.decides_size)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        return {each.key: each.distribution for each in self.dimensions}

    def params(self, size: int, recipe: Sequence[float]) -> dict[str, Value]:
        """The values of a size's index and a recipe's positions, by key."""
        chosen = {each.key: each.between(at) for each, at in zip(self.recipes, recipe, strict=True)}
        return dict(self.sizes[size].params) | chosen


def interval_grid(low: float, high: float, *, log: bool) -> tuple[float, ...]:
    """Values of an interval: half-decades around its geometric middle, or NUM_STEPS evenly spaced ones."""
    if low == high:
        return (low,)
    if not log:
        return tuple(round_value(low + (high - low) * step / (NUM_STEPS - 1)) for step in range(NUM_STEPS))
    middle = math.sqrt(low * high)
    reach = math.floor(math.log(high / middle, STEP_LOG) + 1e-6)
    if reach == 0:
        return (low, round_value(middle), high)
    inner = [round_value(middle * STEP_LOG**step) for step in range(-reach, reach + 1)]
    return tuple(min(max(value, low), high) for value in inner)


def build(dimensions: Sequence[Dimension], num_parameters: Callable[[dict[str, Value]], int]) -> Space:
    """The space with its sizes in order. `num_parameters` raises ValueError for a size that cannot be.

    Raises ValueError where no size can be.
    """
    deciding = [each for each in dimensions if each.decides_size]
    thinned = tuple(each if each.decides_size else thin(each) for each in dimensions)
    number = math.prod(len(each.values) for each in deciding)
    keys = ", ".join(each.key for each in deciding)
    require(number <= MAX_JOBS, keys, f"{number:,} sizes", f"at most {MAX_JOBS:,}")
    sizes, impossible = [], []
    for values in itertools.product(*(each.values for each in deciding)):
        params = dict(zip((each.key for each in deciding), values, strict=True))
        try:
            sizes.append(Size(tuple(params.items()), num_parameters(params)))
        except CheckError as error:
            impossible.append(str(error))
    if not sizes:
        raise CheckError(impossible[0])
    sizes.sort(key=lambda size: size.num_parameters)
    return Space(thinned, tuple(sizes), tuple(impossible))


def thin(whole: Dimension) -> Dimension:
    """A recipe dimension of many whole numbers reduced to NUM_STEPS of them, evenly or geometrically spaced."""
    if not isinstance(whole.distribution, IntDistribution) or len(whole.values) <= NUM_STEPS:
        return whole
    last = len(whole.values) - 1
    low, high = whole.distribution.low, whole.distribution.high
    if whole.is_log:
        places = [round(low * (high / low) ** (step / (NUM_STEPS - 1))) - low for step in range(NUM_STEPS)]
    else:
        places = [round(last * step / (NUM_STEPS - 1)) for step in range(NUM_STEPS)]
    values: Any = tuple(whole.values[place] for place in sorted(set(places)))
    return Dimension(whole.key, whole.distribution, values, whole.ordered)
