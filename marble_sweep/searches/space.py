"""The space of a search: dimensions with their Optuna distributions, split into sizes and recipes.

A *size* is one choice of everything that the number of parameters depends on; a *recipe* is one choice of
everything else, the learning rate first of all. Sizes are known before anything is trained, and are ordered by what the
search minimises (cost.py).
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from marble_sweep.checks import CheckError, require
from marble_sweep.config import MAX_JOBS

Value = str | int | float
SIZE_KEYS = ("model", "data", "data.vocab_size", "trainer.seq_len")  # and everything below model
RECIPE_KEYS = ("model.embedding_std",)  # but for these
WIDTH = "model.hidden_dim"
STEP_LOG = math.sqrt(10)  # between neighbouring recipes of a log-scaled interval: half a decade
NUM_STEPS = 5  # recipes that a linear interval or a long range is divided into


@dataclass(frozen=True)
class Dimension:
    """One searched key: its Optuna distribution, and the values that the search tries."""

    key: str
    distribution: BaseDistribution
    values: tuple[Value, ...]  # ascending where ordered
    ordered: bool  # whether neighbours in `values` give similar models

    @property
    def decides_size(self) -> bool:
        return self.key in SIZE_KEYS or (self.key.startswith("model.") and self.key not in RECIPE_KEYS)

    def between(self, position: float) -> Value:
        """The value at a position in `values`; x.5 lies between two values of an ordered, continuous dimension."""
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
    """Three significant digits, as a person would type it."""
    return float(f"{value:.3g}")


@dataclass(frozen=True)
class Size:
    """One value for every dimension that decides the size."""

    params: tuple[tuple[str, Value], ...]
    num_parameters: int
    cost: float  # what the search minimises

    @property
    def rank(self) -> tuple[float, int]:
        """By which sizes are compared: of those with the same cost, one with fewer parameters is smaller."""
        return self.cost, self.num_parameters

    @property
    def key(self) -> str:
        """Its values in an order that no command line changes."""
        return " ".join(f"{key}={value}" for key, value in sorted(self.params))

    def narrower_than(self, other: "Size") -> bool:
        """Whether it differs from the other by a smaller width alone."""
        ours, theirs = dict(self.params), dict(other.params)
        narrower = WIDTH in ours and float(ours.pop(WIDTH)) < float(theirs.pop(WIDTH))
        return narrower and ours == theirs

    def __str__(self) -> str:
        """As 1L4D where only layers and width are searched."""
        params = dict(self.params)
        if set(params) == {"model.num_layers", WIDTH}:
            return f"{params['model.num_layers']}L{params[WIDTH]}D"
        return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.params) or "the only size"


@dataclass(frozen=True)
class Space:
    """Everything that is searched. `sizes` are sorted by rank."""

    dimensions: tuple[Dimension, ...]
    sizes: tuple[Size, ...]
    impossible: tuple[str, ...] = field(default=())  # why some sizes were left out, a line each

    @property
    def recipes(self) -> tuple[Dimension, ...]:
        return tuple(dimension for dimension in self.dimensions if not dimension.decides_size)

    @functools.cached_property
    def wider(self) -> tuple[frozenset[int], ...]:
        """For every size, the indices of those that differ from it by a larger width alone."""
        families: dict[tuple[tuple[str, Value], ...], list[int]] = {}
        for index, size in enumerate(self.sizes):
            others = tuple((key, value) for key, value in size.params if key != WIDTH)
            families.setdefault(others, []).append(index)
        family = {index: members for members in families.values() for index in members}
        return tuple(
            frozenset(other for other in family[index] if size.narrower_than(self.sizes[other]))
            for index, size in enumerate(self.sizes)
        )

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        return {dimension.key: dimension.distribution for dimension in self.dimensions}

    @functools.cached_property
    def has_ties(self) -> bool:
        """Whether sizes of the same cost differ in their number of parameters."""
        return any(
            size.cost == following.cost and size.num_parameters < following.num_parameters
            for size, following in itertools.pairwise(self.sizes)
        )

    def with_costs(self, costs: Mapping[str, float]) -> "Space":
        """The space with these costs, by the sizes' keys, and in their order."""
        return replace(self, sizes=in_order([replace(size, cost=costs[size.key]) for size in self.sizes]))

    def params(self, size: int, recipe: Sequence[float]) -> dict[str, Value]:
        """The values by key, for the index of a size and the positions of a recipe."""
        chosen = {
            dimension.key: dimension.between(position) for dimension, position in zip(self.recipes, recipe, strict=True)
        }
        return dict(self.sizes[size].params) | chosen


def interval_grid(low: float, high: float, *, log: bool) -> tuple[float, ...]:
    """Values in an interval: half-decades around its geometric middle, or NUM_STEPS evenly spaced ones."""
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


def in_order(sizes: Sequence[Size]) -> tuple[Size, ...]:
    return tuple(sorted(sizes, key=lambda size: size.rank))


def build(
    dimensions: Sequence[Dimension],
    num_parameters: Callable[[dict[str, Value]], int],
    cost: Callable[[dict[str, Value]], float] | None = None,
) -> Space:
    """The space with its sizes in order, by `cost`, or by `num_parameters` where none is given.

    `num_parameters` raises ValueError for an impossible size. Raises ValueError where every size is impossible.
    """
    deciding = [dimension for dimension in dimensions if dimension.decides_size]
    thinned = tuple(dimension if dimension.decides_size else thin(dimension) for dimension in dimensions)
    number = math.prod(len(dimension.values) for dimension in deciding)
    keys = ", ".join(dimension.key for dimension in deciding)
    require(number <= MAX_JOBS, keys, f"{number:,} sizes", f"at most {MAX_JOBS:,}")
    sizes, impossible = [], []
    for values in itertools.product(*(dimension.values for dimension in deciding)):
        params = dict(zip((dimension.key for dimension in deciding), values, strict=True))
        try:
            number_of_parameters = num_parameters(params)
            size_cost = number_of_parameters if cost is None else cost(params)
            sizes.append(Size(tuple(params.items()), number_of_parameters, size_cost))
        except CheckError as error:
            impossible.append(str(error))
    if not sizes:
        raise CheckError(impossible[0])
    return Space(thinned, in_order(sizes), tuple(impossible))


def thin(dimension: Dimension) -> Dimension:
    """A recipe dimension of integers, reduced to NUM_STEPS of them, evenly or geometrically spaced."""
    if not isinstance(dimension.distribution, IntDistribution) or len(dimension.values) <= NUM_STEPS:
        return dimension
    last = len(dimension.values) - 1
    low, high = dimension.distribution.low, dimension.distribution.high
    if dimension.is_log:
        positions = [round(low * (high / low) ** (step / (NUM_STEPS - 1))) - low for step in range(NUM_STEPS)]
    else:
        positions = [round(last * step / (NUM_STEPS - 1)) for step in range(NUM_STEPS)]
    values: Any = tuple(dimension.values[position] for position in sorted(set(positions)))
    return Dimension(dimension.key, dimension.distribution, values, dimension.ordered)
