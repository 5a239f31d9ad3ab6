"""Worlds in which the pass rate of every recipe of every size is known, and searches in them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from worlds import make_space

from marble_sweep.searches.fresh_seeds import Candidate
from marble_sweep.searches.pass_rate import PassRate, Verdict
from marble_sweep.searches.strategy import Proposal, SearchState, Settled, decide
from marble_sweep.searches.trial_record import TrialRecord

STANDARD = PassRate(0.8, 0.95)
SPACE = make_space("model.num_layers=0,1", "model.hidden_dim=2,3,4", "optimizer.lr=tag(log,interval(1e-2,1e-1))")
HARD_RATES = (0.5, 0.7, 0.79, 0.8, 0.85, 0.95)  # around the asked one: where errors are likeliest
SPREAD = 0.03  # nats per token: the standard deviation of a recipe's margin over seeds
NORMAL = NormalDist()
SURE = 1e-9  # from 0 and 1: a normal margin has neither rate


@dataclass(frozen=True)
class RateWorld:
    """Every size has a best recipe, whose pass rate is drawn from `rates`; others are worse the farther they are off.

    Margins over seeds are normal, so a pass rate is the share of them above 0. A trial that does not certify is
    undecided with probability `undecided`.
    """

    seed: int
    rates: Sequence[float] = HARD_RATES
    undecided: float = 0.0
    penalty: float = 0.5  # standard deviations that the margin of a neighbouring recipe is lower

    def _mean(self, candidate: Candidate) -> float:
        """The mean margin of a recipe, in standard deviations."""
        size, (position,) = candidate
        draw = random.Random(f"{self.seed} {size}")
        best, peak = draw.choice(self.rates), draw.uniform(0, 2)
        mean = NORMAL.inv_cdf(min(max(best, SURE), 1 - SURE))
        nearest = round(2 * peak) / 2  # on the grid of half steps: some recipe has the best rate
        return mean - self.penalty * abs(position - nearest)

    def rate(self, candidate: Candidate) -> float:
        return round(NORMAL.cdf(self._mean(candidate)), 9)

    def train(self, number: int, plan: Proposal, search_seed: int) -> TrialRecord:
        """A trial, which no other trial changes."""
        draw = random.Random(f"{self.seed} {search_seed} {plan.size} {plan.recipe} {plan.seed}")
        last = SPREAD * (self._mean((plan.size, plan.recipe)) + draw.gauss())
        outcome = "certified" if last > 0 else "undecided" if draw.random() < self.undecided else "below"
        return TrialRecord(number, plan.size, plan.recipe, plan.seed, outcome, {400: last})


def search(world: RateWorld, search_seed: int = 0, standard: PassRate | int = STANDARD) -> SearchState:
    """What one worker knows once nothing is left to try."""
    records: list[TrialRecord] = []
    while isinstance(plan := decide(SPACE, records, standard), Proposal):
        records.append(world.train(len(records), plan, search_seed))
    assert plan == Settled()
    return SearchState(SPACE, records, standard)


def claims(state: SearchState, verdict: Verdict) -> set[Candidate]:
    """The recipes of which a search says that."""
    return {candidate for candidate, tally in state.fresh.tallies.items() if tally.verdict == verdict}


def false_claims(world: RateWorld, state: SearchState) -> list[Candidate]:
    """Accepted recipes whose pass rate is below the asked one, and ruled-out ones whose rate is not."""
    accepted, ruled_out = claims(state, Verdict.ACCEPTED), claims(state, Verdict.RULED_OUT)
    return [
        *(candidate for candidate in accepted if world.rate(candidate) < STANDARD.rate),
        *(candidate for candidate in ruled_out if world.rate(candidate) >= STANDARD.rate),
    ]


def contradict(first: SearchState, second: SearchState) -> bool:
    """Whether one search rules out the size that the other confirms, or any other size the same way."""

    def confirmed(state: SearchState) -> set[int]:
        return {size for size in state.by_size if state.confirmed(size)}

    return bool(confirmed(first) & second.refuted or confirmed(second) & first.refuted)
