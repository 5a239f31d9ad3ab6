"""The strategies that search_replay.py compares: this project's search and its rivals."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import TrialState
from replay_recording import (
    CONFIRM_SEEDS,
    LAYERS,
    MAX_TRIALS,
    PENALTY,
    RATE,
    RATES,
    STEPS,
    TOKENS_PER_STEP,
    TOTAL_STEPS,
    WIDTH,
    Contender,
    Key,
    Replay,
    Rule,
    Spent,
    current_rule,
    num_parameters,
    stopped,
)

from marble_sweep.searches import space as spaces
from marble_sweep.searches.pass_rate import SeedResult, Standard
from marble_sweep.searches.strategy import Proposal, SearchState, Settled, Wait, decide
from marble_sweep.searches.trial_record import TrialRecord

# ------------------------------------------------------------------------------------------- this project's search

Decide = Callable[[spaces.Space, Sequence[TrialRecord], Standard], Proposal | Wait | Settled]


def ours(
    replay: Replay, next_trial: Decide = decide, rule: Rule = current_rule, standard: Standard = CONFIRM_SEEDS
) -> None:
    """marble_sweep.searches.strategy with one worker and early stops; in its quick form, or by a pass rate.

    The recording has at most four seeds of a recipe: for a pass rate they play the fresh seeds again and again, which
    shows what the standard costs but not whether the answer is right.
    """
    records: list[TrialRecord] = []
    while isinstance(proposal := next_trial(replay.space, records, standard), Proposal):
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
        state = SearchState(replay.space, records, standard)
        answer = state.smallest()
        sizes = [size for size in state.by_size if state.confirmed(size)]
        for trace, size in ((replay.answers, answer), (replay.confirmed, min(sizes, default=None))):
            parameters = None if size is None else replay.space.sizes[size].num_parameters
            if parameters != (trace[-1][1] if trace else None):
                trace.append((replay.tokens, parameters))


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


# ------------------------------------------------------------------------------------------------------- the rivals


def draw(replay: Replay) -> tuple[int, int, float]:
    return replay.rng.randint(0, 4), replay.rng.randint(2, 64), 10 ** replay.rng.uniform(-3, 0)


def random_search(replay: Replay) -> None:
    while True:
        replay.full(*draw(replay))


def penalised(parameters: int, above: float) -> float:
    """Parameters where certified; else more than any size has, and the more so the farther it is from that."""
    return parameters if above >= 0 else PENALTY + min(-above, 1e3)


def tpe(seed: int) -> optuna.samplers.TPESampler:
    """With Optuna 2.10's defaults, which but for `multivariate` are still those of Optuna 5."""
    return optuna.samplers.TPESampler(multivariate=False, seed=seed)


def as_published(space: spaces.Space) -> dict[str, BaseDistribution]:
    """The published sweeper takes a range's stop for its highest value: one more layer and one more width are drawn."""
    distributions = dict(space.distributions)
    for key in (LAYERS, WIDTH):
        whole = distributions[key]
        assert isinstance(whole, IntDistribution)
        distributions[key] = IntDistribution(whole.low, whole.high + 1)
    return distributions


def suggested(trial: optuna.Trial) -> tuple[int, int, float]:
    return trial.params[LAYERS], trial.params[WIDTH], trial.params[RATE]


def hydra_optuna(replay: Replay) -> None:
    """The published hydra-optuna-sweeper with one job at a time: TPE, every trial to its end, no confirmation."""
    study = optuna.create_study(sampler=tpe(replay.seed))
    distributions = as_published(replay.space)
    while True:
        trial = study.ask(distributions)
        num_layers, hidden_dim, lr = suggested(trial)
        curve = replay.full(num_layers, hidden_dim, lr)
        above = curve.above[-1] if curve.steps[-1] == TOTAL_STEPS else -math.inf
        study.tell(trial, penalised(num_parameters(num_layers, hidden_dim), above))


def nsga(replay: Replay, population: int) -> None:
    """NSGA-II on parameters and held-out loss."""
    sampler = optuna.samplers.NSGAIISampler(population_size=population, seed=replay.seed)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    while True:
        trial = study.ask(replay.space.distributions)
        num_layers, hidden_dim, lr = suggested(trial)
        curve = replay.full(num_layers, hidden_dim, lr)
        loss = curve.losses[-1] if curve.steps[-1] == TOTAL_STEPS and math.isfinite(curve.losses[-1]) else 1e3
        study.tell(trial, [num_parameters(num_layers, hidden_dim), loss])


def asha(replay: Replay, factor: int, sampler: str) -> None:
    """Successive halving on the looks; the penalised objective is what it compares at each."""
    chosen = tpe(replay.seed) if sampler == "tpe" else optuna.samplers.RandomSampler(seed=replay.seed)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=STEPS[0], reduction_factor=factor)
    study = optuna.create_study(sampler=chosen, pruner=pruner)
    for _ in range(MAX_TRIALS):
        trial = study.ask(replay.space.distributions)
        num_layers, hidden_dim, lr = suggested(trial)
        parameters = num_parameters(num_layers, hidden_dim)
        curve = replay.curve(num_layers, hidden_dim, lr)
        trained, pruned = 0, False
        for step, above in zip(curve.steps, curve.above, strict=True):
            replay.spend(step - trained)
            trained = step
            trial.report(penalised(parameters, above), step)
            if pruned := step < TOTAL_STEPS and trial.should_prune():
                break
        replay.num_trials += 1
        if pruned:
            study.tell(trial, state=TrialState.PRUNED)
            continue
        replay.spend(curve.full_steps - trained)
        at_end = curve.above[-1] if curve.steps[-1] == TOTAL_STEPS else -math.inf
        study.tell(trial, penalised(parameters, at_end))
        if curve.certifies_at_end:
            replay.answer(parameters)
    raise Spent  # more trials are too slow to replay


def layers_and_width(size: spaces.Size) -> tuple[int, int]:
    params = dict(size.params)
    return int(params[LAYERS]), int(params[WIDTH])


def certifies(replay: Replay, size: spaces.Size, num_rates: int, *, early: bool) -> bool:
    """Try a size with one lr after the other until one certifies."""
    for lr in RATES[:num_rates]:
        shape = layers_and_width(size)
        if replay.early(*shape, lr) if early else replay.full(*shape, lr).certifies_at_end:
            return True
    return False


def ascending(replay: Replay, num_rates: int, *, early: bool = False) -> None:
    """Every size in turn, smallest first, until one certifies."""
    for size in replay.space.sizes:
        if certifies(replay, size, num_rates, early=early):
            return


def binary(replay: Replay, num_rates: int, *, early: bool = False) -> None:
    """Bisection over the sizes in order, as if all above the boundary certified and none below."""
    low, high = 0, len(replay.space.sizes)
    while low < high:
        middle = (low + high) // 2
        if certifies(replay, replay.space.sizes[middle], num_rates, early=early):
            high = middle
        else:
            low = middle + 1


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
        tried.append((num_parameters(*shape[:2]), above, shape))
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
        if replay.full(*shape, trained=short).certifies_at_end:
            return


def contenders() -> dict[str, dict[str, Contender]]:
    """Every contender with its settings; of several the best one is reported."""
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
        "hydra-optuna-sweeper, TPE": {"": hydra_optuna},
        "random search": {"": random_search},
        "NSGA-II": {f"population {size}": partial(nsga, population=size) for size in (10, 50)},
        "ascending scan": {f"{n} lr": partial(ascending, num_rates=n) for n in counts},
        "binary search": {f"{n} lr": partial(binary, num_rates=n) for n in counts},
        "ASHA": {
            f"{sampler}, factor {factor}": partial(asha, factor=factor, sampler=sampler)
            for sampler, factor in (("tpe", 4), ("random", 4), ("random", 2))
        },
        "short runs, keep the best": {
            f"{draws} x {short} steps, {keep} by {rank}": partial(top_k, draws=draws, short=short, keep=keep, rank=rank)
            for draws, short, keep, rank in short_runs
        },
        "ascending scan, early stop": {f"{n} lr": partial(ascending, num_rates=n, early=True) for n in counts},
        "binary search, early stop": {f"{n} lr": partial(binary, num_rates=n, early=True) for n in counts},
        "ours without probes": {"": partial(ours, next_trial=climb_up)},
    }
