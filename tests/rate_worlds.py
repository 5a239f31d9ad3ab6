"""Worlds in which every recipe of every size has a pass rate of its own, and searches in them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from worlds import make_space

from marble_sweep.searches.fresh_seeds import Candidate
from marble_sweep.searches.pass_rate import PassRate, Verdict
from marble_sweep.searches.strategy import Proposal, SearchState, Settled, TrialRecord, decide

STANDARD = PassRate(0.8, 0.95)
SPACE = make_space("model.num_layers=0,1", "model.hidden_dim=2,3,4", "optimizer.lr=tag(log,interval(1e-2,1e-1))")
HARD_RATES = (0.5, 0.7, 0.79, 0.8, 0.85, 0.95)  # around the asked one: where errors are likeliest
LOSING = 0.05  # nats per token below the threshold that a failed trial ends, give or take as much


@dataclass(frozen=True)
class RateWorld:
    """Pass rates drawn from `rates`; a trial that does not certify is undecided with probability `undecided`."""

    seed: int
    rates: Sequence[float] = HARD_RATES
    undecided: float = 0.0

    def rate(self, candidate: Candidate) -> float:
        return random.Random(f"{self.seed} {candidate}").choice(self.rates)

    def train(self, number: int, plan: Proposal, search_seed: int) -> TrialRecord:
        """A trial: certified with the probability of its recipe, which no other trial changes."""
        draw = random.Random(f"{self.seed} {search_seed} {plan.size} {plan.recipe} {plan.seed}")
        certified = draw.random() < self.rate((plan.size, plan.recipe))
        last = 0.02 if certified else -2 * LOSING * draw.random()
        undecided = not certified and draw.random() < self.undecided
        outcome = "certified" if certified else "refuted"
        return TrialRecord(number, plan.size, plan.recipe, plan.seed, outcome, {400: last}, undecided)


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
