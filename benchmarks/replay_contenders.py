"""The strategies that search_replay.py compares: this project's search and its simple rivals."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from replay_recording import (
    LAYERS,
    RATE,
    RATES,
    TOKENS_PER_STEP,
    WIDTH,
    Contender,
    Key,
    Replay,
    Rule,
    current_rule,
    stopped,
)

from marble_sweep.searches import space as spaces
from marble_sweep.searches.pass_rate import SeedResult, Standard
from marble_sweep.searches.strategy import Proposal, SearchState, Settled, Wait, decide
from marble_sweep.searches.trial_record import TrialRecord

# ------------------------------------------------------------------------------------------- this project's search

Decide = Callable[[spaces.Space, Sequence[TrialRecord], Standard], Proposal | Wait | Settled]


def ours(replay: Replay, next_trial: Decide = decide, rule: Rule = current_rule) -> None:
    """marble_sweep.searches.strategy with one worker and early stops; in its quick form, or by a pass rate."""
    records: list[TrialRecord] = []
    while isinstance(proposal := next_trial(replay.space, records, replay.standard), Proposal):
        params = replay.space.params(proposal.size, proposal.recipe)
        curve = replay.curve(int(params[LAYERS]), int(params[WIDTH]), float(params[RATE]), proposal.seed)
        failed = [each.raw for each in records if isinstance(each, Trial) and each.failed_at(proposal.size)]
        outcome, looks, steps = stopped(curve, rule, failed)
        replay.spend(steps, proposal.reason)
        replay.num_trials += 1
        above = dict(zip(curve.steps[:looks], curve.above, strict=False))
        raw = dict(zip(curve.steps[:looks], curve.margins, strict=False))
        if outcome == "below" and 2 * curve.margins[-1] > curve.above[-1]:  # margin + its errors are above 0
            outcome = "undecided"
        made = (len(records), proposal.size, proposal.recipe, proposal.seed, outcome, above)
        records.append(Trial(*made, raw=raw))
        state = SearchState(replay.space, records, replay.standard)
        answer = state.smallest()
        sizes = [size for size in state.by_size if state.confirmed(size)]
        for trace, size in ((replay.answers, answer), (replay.confirmed, min(sizes, default=None))):
            parameters = None if size is None else replay.space.sizes[size].num_parameters
            if parameters != (trace[-1][1] if trace else None):
                trace.append((replay.tokens, parameters))
    replay.excluded = ruled_out(SearchState(replay.space, records, replay.standard))


def ruled_out(state: SearchState) -> set[tuple[int, int]]:
    """The sizes below the answer that are refuted or implied, as layers and width."""
    answer, sizes = state.answer(), state.space.sizes
    below = range(len(sizes) if answer is None else answer)
    return {layers_and_width(sizes[size]) for size in below if size in state.refuted or state.implied(size)}


@dataclass(frozen=True)
class Trial(TrialRecord):
    """An record that also keeps its margins to the unigram loss, for rules that look at those."""

    raw: dict[int, float] = field(default_factory=dict)

    def failed_at(self, size: int) -> bool:
        return self.size == size and self.seed == 0 and self.outcome != "certified"


def climb_up(space: spaces.Space, records: Sequence[TrialRecord], standard: Standard) -> Proposal | Wait | Settled:
    """A variant without probes: climb over the recipes of each size in turn, smallest first, until one is confirmed."""
    state = SearchState(space, records, standard)
    for size in range(len(space.sizes)):
        if size in state.refuted:
            continue
        if (record := state.certified(size)) is not None:
            seed = state.fresh.next_seed((size, record.recipe), SeedResult.PASSED)
            return Settled() if seed is None else Proposal(size, record.recipe, seed, "confirm")
        for recipe in state.next_recipes(size):
            return Proposal(size, recipe, 0, "refute")
    return Settled()


def neighbours_first(
    space: spaces.Space, records: Sequence[TrialRecord], standard: Standard
) -> Proposal | Wait | Settled:
    """A variant that tries the smaller sizes once before it confirms, where that is fewer trials than the fresh seeds.

    Each with the recipe that certified next to it. If one certifies, so does a smaller size than would be confirmed.
    """
    proposal = decide(space, records, standard)
    if isinstance(proposal, Proposal) and proposal.reason == "confirm":
        state = SearchState(space, records, standard)
        untried = [size for size in state.widest_below(proposal.size) if not state.by_size.get(size)]
        if 0 < len(untried) < state.fresh.seeds_to_accept((proposal.size, proposal.recipe)):
            return Proposal(untried[-1], state.first_recipe(untried[-1]), 0, "refute")
    return proposal


# ------------------------------------------------------------------------------------------------------- the rivals


def draw(replay: Replay) -> tuple[int, int, float]:
    return replay.rng.randint(0, 4), replay.rng.randint(2, 64), 10 ** replay.rng.uniform(-3, 0)


def random_search(replay: Replay) -> None:
    while True:
        shape = draw(replay)
        if replay.full(*shape).certifies_at_end:
            replay.incumbent(*shape)


def layers_and_width(size: spaces.Size) -> tuple[int, int]:
    params = dict(size.params)
    return int(params[LAYERS]), int(params[WIDTH])


def certified(replay: Replay, size: spaces.Size, num_rates: int, *, early: bool) -> Iterator[Key]:
    """Try a size with one lr after the other; those that certify."""
    for lr in RATES[:num_rates]:
        shape = (*layers_and_width(size), lr)
        if replay.early(*shape) if early else replay.full(*shape).certifies_at_end:
            yield shape


def ascending(replay: Replay, num_rates: int, *, early: bool = False) -> None:
    """Every size in turn, smallest first, until a recipe that certifies is proved."""
    for size in replay.space.sizes:
        if any(replay.propose(*shape) for shape in certified(replay, size, num_rates, early=early)):
            return


def binary(replay: Replay, num_rates: int, *, early: bool = False) -> None:
    """Bisection over the sizes in order, as if all above the boundary certified and none below.

    The size that is left is proved. Where that fails with every lr, so does the size: the bisection goes on between it
    and the next larger size that certified.
    """
    sizes = replay.space.sizes
    left = dict[int, Iterator[Key]]()  # of the sizes that were tried: the recipes that certify, as they are asked for
    first = dict[int, Key | None]()  # the first of them; None where there is none, or no further one
    low = 0
    while low < len(sizes):
        high = min((size for size, shape in first.items() if size >= low and shape is not None), default=len(sizes))
        while low < high:
            middle = (low + high) // 2
            if middle not in first:
                left[middle] = certified(replay, sizes[middle], num_rates, early=early)
                first[middle] = next(left[middle], None)
            low, high = (low, middle) if first[middle] is not None else (middle + 1, high)
        if low == len(sizes):
            return
        shape = first[low]
        assert shape is not None
        if replay.propose(*shape) or any(replay.propose(*other) for other in left[low]):
            return
        first[low] = None
        low += 1


Tried = tuple[int, float, Key]  # parameters, margin above what certifies, shape


def top_k(replay: Replay, draws: int, short: int, keep: int, rank: str) -> None:
    """Train many for a short while, keep the best, train those on to the end, the smallest first."""
    tried = list[Tried]()
    for _ in range(draws):
        shape = draw(replay)
        curve = replay.curve(*shape)
        replay.spend(min(short, curve.full_steps))
        replay.num_trials += 1
        look = max((at for at, step in enumerate(curve.steps) if step <= short), default=0)
        above = curve.above[look] if curve.steps[look] == short else -math.inf
        tried.append((replay.parameters(*shape[:2]), above, shape))
    if rank == "margin":
        kept = sorted(tried, key=lambda each: -each[1])[:keep]
    else:  # by fronts: those first that no smaller one beats, then those that only these beat, …
        left, kept = sorted(tried, key=lambda each: (each[0], -each[1])), []
        while left and len(kept) < keep:
            best, front, rest = -math.inf, list[Tried](), list[Tried]()
            for each in left:
                (front if each[1] > best else rest).append(each)
                best = max(best, each[1])
            kept += front or rest
            left = rest if front else []
        kept = kept[:keep]
    for _, _, shape in sorted(kept, key=lambda each: each[0]):
        if replay.full(*shape, trained=short).certifies_at_end and replay.propose(*shape):
            return


def contenders() -> dict[str, dict[str, Contender]]:
    """Our own search and every simple rival with its settings; of several the best one is reported."""
    counts = range(1, len(RATES) + 1)
    short_runs = [
        (draws, short, keep, rank)
        for draws in (100, 200, 400)
        for short in (50, 100)
        for keep in (5, 10, 20)
        for rank in ("margin", "fronts")
        if draws * short * TOKENS_PER_STEP < 35e6
    ]
    return {
        "ours": {"": ours},
        "random search": {"": random_search},
        "ascending scan": {f"{n} lr": partial(ascending, num_rates=n) for n in counts},
        "binary search": {f"{n} lr": partial(binary, num_rates=n) for n in counts},
        "short runs, keep the best": {
            f"{draws} x {short} steps, {keep} by {rank}": partial(top_k, draws=draws, short=short, keep=keep, rank=rank)
            for draws, short, keep, rank in short_runs
        },
        "ascending scan, early stop": {f"{n} lr": partial(ascending, num_rates=n, early=True) for n in counts},
        "binary search, early stop": {f"{n} lr": partial(binary, num_rates=n, early=True) for n in counts},
        "ours without probes": {"": partial(ours, next_trial=climb_up)},
        "ours, neighbours first": {"": partial(ours, next_trial=neighbours_first)},
    }
