"""Worlds in which the smallest certified size is known, and a search of one worker in them."""

import math
from collections.abc import Callable

from hydra.core.override_parser.overrides_parser import OverridesParser

from marble_sweep.hydra_app.sweep_syntax import parse
from marble_sweep.searches.space import Space, Value, build
from marble_sweep.searches.strategy import Proposal, SearchState, Settled, decide
from marble_sweep.searches.trial_record import TrialRecord

STEPS = (100, 200, 400)
SEEDS = 2  # that confirm
World = Callable[[int, int, float, int], float]  # layers, width, log10 of lr, seed: the margin at the last step


def make_space(*words: str) -> Space:
    default = ("model.num_layers=range(0,3)", "model.hidden_dim=range(2,17)", "optimizer.lr=tag(log,interval(1e-3,1))")
    dimensions, _ = parse(words or default, OverridesParser.create())

    def num_parameters(params: dict[str, Value]) -> int:
        layers, width = int(params.get("model.num_layers", 0)), int(params.get("model.hidden_dim", 2))
        return 1000 * width + layers * width

    return build(dimensions, num_parameters)


SPACE = make_space()
FEW_SIZES = make_space("model.num_layers=0,1", "model.hidden_dim=range(2,7)", "optimizer.lr=tag(log,interval(1e-3,1))")


def train(space: Space, world: World, number: int, plan: Proposal) -> TrialRecord:
    """The record of a trial with this plan: certified at the first evaluation above 0."""
    params = space.params(plan.size, plan.recipe)
    layers, width = int(params.get("model.num_layers", 0)), int(params.get("model.hidden_dim", 2))
    last = world(layers, width, math.log10(float(params.get("optimizer.lr", 0.03))), plan.seed)
    margins = {}
    for step in STEPS:
        margins[step] = last - 0.05 * math.log2(STEPS[-1] / step)
        if margins[step] >= 0:
            return TrialRecord(number, plan.size, plan.recipe, plan.seed, "certified", margins)
    return TrialRecord(number, plan.size, plan.recipe, plan.seed, "below", margins)


def search(space: Space, world: World, *, max_trials: int = 200) -> tuple[list[TrialRecord], list[str]]:
    """One worker's records until the search is settled, and the reasons of its trials."""
    records: list[TrialRecord] = []
    reasons = []
    while isinstance(plan := decide(space, records, SEEDS), Proposal):
        assert len(records) < max_trials
        reasons.append(plan.reason)
        records.append(train(space, world, len(records), plan))
    assert plan == Settled()
    return records, reasons


def answer(space: Space, records: list[TrialRecord]) -> str | None:
    size = SearchState(space, records, SEEDS).smallest()
    return None if size is None else str(space.sizes[size])


def hill(boundary: float, peak: float = -1.5, depth: float = 0.0) -> World:
    """Wider is better, from `boundary` on it certifies; `peak` is the best log10 lr, a layer costs `depth`."""
    return lambda layers, width, lr, seed: 0.3 * math.log2(width / boundary) - 0.2 * (lr - peak) ** 2 - depth * layers


def index_of(name: str) -> int:
    return next(index for index, size in enumerate(SPACE.sizes) if str(size) == name)
