"""The recorded learning curves, and what a replay of a search on them costs and answers."""

import csv
import gzip
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from marble_sweep.early_stopping import is_hopeless, shortfall
from marble_sweep.metrics.margin import errors_needed
from marble_sweep.search_config import CertifyConfig, SearchConfig
from marble_sweep.searches import space as spaces
from marble_sweep.searches.pass_rate import SeedResult, Standard, Verdict, judge
from marble_sweep.training.schedule import evaluation_steps

OVERRIDES = (
    "model.num_layers=range(0,5)",
    "model.hidden_dim=range(2,65)",
    "optimizer.lr=tag(log,interval(1e-3,1))",
)
LAYERS, WIDTH, RATE = "model.num_layers", "model.hidden_dim", "optimizer.lr"
SEQ_LEN, BATCH_SIZE = 128, 16
TOTAL_STEPS, NUM_LOOKS, CONFIRM_SEEDS = 400, 9, 3
ASKED_RATE = SearchConfig().pass_rate
STEPS = tuple(evaluation_steps(TOTAL_STEPS, NUM_LOOKS, "geometric"))
ERRORS = errors_needed(3.0, NUM_LOOKS)
TOKENS_PER_STEP = BATCH_SIZE * SEQ_LEN
RATES = (0.0316, 0.1, 0.01, 0.316, 0.00316)  # the middle of the interval first: what a scan tries for each size


@dataclass(frozen=True)
class Corpus:
    """A recorded corpus, and the boundaries that it is replayed at."""

    file: str
    vocab_size: int
    nats: tuple[float, ...]  # per token, taken off every margin, so that other sizes are right
    packages_at: tuple[float, ...]  # of these, where published packages are replayed too


CORPORA = {
    "pydocs": Corpus("curves.csv.gz", 10_000, (0.0, 0.1, 0.2, 0.4, 0.7), (0.0,)),
    "markov": Corpus("markov_curves.csv.gz", 512, (0.0, 0.4, 0.6, 0.8, 1.0), ()),
}
CERTIFY = CertifyConfig()
WORDS = ("corpus", "budget")  # columns that are not numbers
Key = tuple[int, int, float]  # layers, width, lr
Played = tuple[int, int, float]  # the layers and width that were asked for, and the recorded lr that plays the lr


def num_parameters(num_layers: int, hidden_dim: int, vocab_size: int = CORPORA["pydocs"].vocab_size) -> int:
    """What Config.num_parameters is for the default sequence length."""
    return (vocab_size + SEQ_LEN + 2) * hidden_dim + num_layers * (12 * hidden_dim**2 + 13 * hidden_dim)


# ------------------------------------------------------------------------------------------------ the recording


@dataclass(frozen=True)
class Curve:
    """One recorded run. Losses and margins are in nats per token, an entry a look."""

    key: Key
    seed: int
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    margins: tuple[float, ...]  # to the threshold
    above: tuple[float, ...]  # margins above what certifies
    gains: tuple[float, ...]  # context_gain
    hopeless: tuple[bool, ...]  # what certify.is_hopeless says

    @property
    def certifies(self) -> bool:
        return max(self.above) >= 0

    @property
    def certifies_at_end(self) -> bool:
        return self.steps[-1] == TOTAL_STEPS and self.above[-1] >= 0

    @property
    def full_steps(self) -> int:
        """Steps of a run that is not stopped; one that diverged is taken to have done so at its next look."""
        return STEPS[min(len(self.steps), len(STEPS) - 1)]


def as_measured_now(row: dict[str, float]) -> dict[str, float]:
    """A recorded row with the columns that decide now.

    The recording of the default corpus has neither the tempered unigram, worth 0.001 nats there, nor the error of the
    context's gain: at every evaluation that certifies, the gain is more than 0.005 nats.
    """
    if "tempered_margin" in row:
        return row
    tempered = {"tempered_margin": row["unigram_margin"], "tempered_margin_se": row["unigram_margin_se"]}
    return row | tempered | {"context_gain_se": 0.0}


def make_curve(key: Key, seed: int, rows: Sequence[dict[str, float]]) -> Curve:
    """A curve from its rows of a recording, in order of their step."""
    rows = [as_measured_now(row) for row in rows]
    return Curve(
        key,
        seed,
        tuple(int(row["step"]) for row in rows),
        tuple(row["val_loss"] for row in rows),
        tuple(row["tempered_margin"] for row in rows),
        tuple(-shortfall(CERTIFY, row, ERRORS) for row in rows),
        tuple(row["context_gain"] for row in rows),
        tuple(is_hopeless(CERTIFY, rows[: look + 1], STEPS) for look in range(len(rows))),
    )


def read_curves(path: Path, harder: float = 0.0) -> list[Curve]:
    """The curves of a recording; `harder` nats per token are taken off every margin."""
    grouped: dict[tuple[Key, int], list[dict[str, float]]] = defaultdict(list)
    with gzip.open(path, "rt", newline="") as file:
        for text in csv.DictReader(file):
            row = as_measured_now({name: float(value) for name, value in text.items() if name not in WORDS})
            row["tempered_margin"] -= harder
            key = (int(row["num_layers"]), int(row["hidden_dim"]), row["lr"])
            grouped[key, int(row["seed"])].append(row)
    return [make_curve(key, seed, sorted(rows, key=lambda row: row["step"])) for (key, seed), rows in grouped.items()]


def nearest(value: float, choices: Sequence[float]) -> float:
    """On the log scale; the smaller of two that are equally near."""
    return min(sorted(choices), key=lambda choice: abs(math.log(value / choice)))


class Recording:
    """The curves of a recording, found by the recorded settings or by those nearest to others."""

    def __init__(self, curves: Sequence[Curve], vocab_size: int = CORPORA["pydocs"].vocab_size) -> None:
        self.curves = list(curves)
        self.vocab_size = vocab_size
        self.cells: dict[Key, dict[int, Curve]] = defaultdict(dict)  # by seed
        for each in self.curves:
            self.cells[each.key][each.seed] = each
        self.seeds = sorted({each.seed for each in self.curves})
        self.rates: dict[tuple[int, int], list[float]] = defaultdict(list)
        self.layers: dict[int, list[int]] = defaultdict(list)
        for num_layers, hidden_dim, lr in sorted(self.cells):
            self.rates[num_layers, hidden_dim].append(lr)
            self.layers[hidden_dim].append(num_layers)
        self._snapped: dict[tuple[int, int], tuple[int, int]] = {}

    def parameters(self, num_layers: int, hidden_dim: int) -> int:
        return num_parameters(num_layers, hidden_dim, self.vocab_size)

    def snap(self, num_layers: int, hidden_dim: int) -> tuple[int, int]:
        """The recorded size that plays a size."""
        size = (num_layers, hidden_dim)
        if size not in self._snapped:
            width = int(nearest(hidden_dim, list(self.layers)))
            depth = min(sorted(set(self.layers[width])), key=lambda each: abs(each - num_layers))
            self._snapped[size] = (depth, width)
        return self._snapped[size]

    def played_rate(self, num_layers: int, hidden_dim: int, lr: float) -> float:
        """The recorded lr that plays an lr of a size."""
        return nearest(lr, self.rates[self.snap(num_layers, hidden_dim)])

    def cell(self, num_layers: int, hidden_dim: int, lr: float) -> dict[int, Curve]:
        return self.cells[(*self.snap(num_layers, hidden_dim), self.played_rate(num_layers, hidden_dim, lr))]

    def certifying(self, size: tuple[int, int]) -> dict[float, str]:
        """For each recorded lr of a recorded size: on how many of the seeds it certifies, as 3/4."""
        cells = {lr: self.cells[(*size, lr)].values() for lr in self.rates[size]}
        return {lr: f"{sum(curve.certifies for curve in cell)}/{len(cell)}" for lr, cell in cells.items()}

    def pass_rate(self, key: Key) -> float:
        """The share of the recorded seeds of a recipe that certify."""
        cell = self.cells[key].values()
        return sum(curve.certifies for curve in cell) / len(cell)

    def is_good(self, size: tuple[int, int]) -> bool:
        """Whether a recorded size certifies with some lr on the asked share of its recorded seeds."""
        return any(self.pass_rate((*size, lr)) >= ASKED_RATE for lr in self.rates[size])

    def is_lucky(self, size: tuple[int, int]) -> bool:
        """Whether it certifies on some seed only."""
        cells = [self.cells[(*size, lr)].values() for lr in self.rates[size]]
        return not self.is_good(size) and any(each.certifies for cell in cells for each in cell)


# ------------------------------------------------------------------------------------------------- the bookkeeping


class Spent(Exception):  # noqa: N818 - the expected end of a rival
    """The tokens of a replay are used up, or what it is to find is found."""


@dataclass
class Replay:
    """A strategy's run over the recording: what it has spent, and what it would have answered when.

    Every answer is proved on fresh seeds by the same sequential test, for which it pays. A fresh seed plays one of the
    recipe's recorded seeds, drawn with replacement: so the recipe's pass rate is the share of those that certify.
    """

    recording: Recording
    space: spaces.Space
    seed: int
    max_tokens: float
    standard: Standard = CONFIRM_SEEDS
    right: int | None = None  # parameters; where given, the replay of what never ends by itself ends once it is proved
    tokens: int = 0
    by_reason: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # tokens
    answers: list[tuple[int, int | None]] = field(default_factory=list)  # after so many tokens: parameters
    confirmed: list[tuple[int, int | None]] = field(default_factory=list)  # those proved on fresh seeds
    excluded: set[tuple[int, int]] = field(default_factory=set)  # sizes that it says are ruled out, at its end
    verdicts: dict[Played, Verdict] = field(default_factory=dict)  # of the recipes that were tested, in order
    num_trials: int = 0
    ended: bool = False  # by itself

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.order = self.rng.sample(self.recording.seeds, len(self.recording.seeds))

    def curve(self, num_layers: int, hidden_dim: int, lr: float, role: int = 0) -> Curve:
        """The curve that plays a trial; `role` 0 is the search's seed, 1, 2, … are the fresh ones."""
        cell = self.recording.cell(num_layers, hidden_dim, lr)
        seeds = [seed for seed in self.order if seed in cell]
        if role == 0:
            return cell[seeds[0]]
        return cell[random.Random(f"{self.seed} {num_layers} {hidden_dim} {lr:g} {role}").choice(seeds)]

    def parameters(self, num_layers: int, hidden_dim: int) -> int:
        return self.recording.parameters(num_layers, hidden_dim)

    def spend(self, steps: int, reason: str = "train") -> None:
        """Raises Spent where the tokens do not suffice."""
        cost = steps * TOKENS_PER_STEP
        if self.tokens + cost > self.max_tokens:
            raise Spent
        self.tokens += cost
        self.by_reason[reason] += cost

    def full(self, num_layers: int, hidden_dim: int, lr: float, trained: int = 0) -> Curve:
        """Train to the end, from `trained` steps on."""
        curve = self.curve(num_layers, hidden_dim, lr)
        self.spend(curve.full_steps - trained)
        self.num_trials += 1
        return curve

    def early(self, num_layers: int, hidden_dim: int, lr: float) -> bool:
        """Train until certified or hopeless."""
        outcome, _, steps = stopped(self.curve(num_layers, hidden_dim, lr))
        self.spend(steps)
        self.num_trials += 1
        return outcome == "certified"

    def propose(self, num_layers: int, hidden_dim: int, lr: float) -> bool:
        """Take what certified on the search's seed for the answer; whether fresh seeds prove it."""
        parameters = self.parameters(num_layers, hidden_dim)
        lower(self.answers, self.tokens, parameters)
        accepted = self._test((num_layers, hidden_dim, self.recording.played_rate(num_layers, hidden_dim, lr)))
        if accepted:
            lower(self.confirmed, self.tokens, parameters)
        return accepted

    def incumbent(self, num_layers: int, hidden_dim: int, lr: float) -> bool:
        """As propose, of a strategy that goes on for ever; whether this is still a candidate for the smallest size.

        Favours the strategy: nobody knows when it has found the right size, and yet its replay ends once that is
        proved, and no larger size is tested.
        """
        parameters = self.parameters(num_layers, hidden_dim)
        if self.right is not None and parameters > self.right:
            lower(self.answers, self.tokens, parameters)
            return True
        accepted = self.propose(num_layers, hidden_dim, lr)
        if accepted and parameters == self.right:
            raise Spent
        return accepted

    def _test(self, recipe: Played) -> bool:
        """Whether fresh seeds accept a recipe, each trained until certified or hopeless. No recipe is tested twice."""
        number, results = len(self.verdicts) + 1, list[SeedResult]()
        while recipe not in self.verdicts:
            curve = self.curve(*recipe, role=len(results) + 1)
            outcome, _, steps = stopped(curve)
            self.spend(steps, "confirm")
            results.append(SeedResult.PASSED if outcome == "certified" else SeedResult.FAILED)
            if (verdict := judge(self.standard, number, tuple(results)).verdict) != Verdict.OPEN:
                self.verdicts[recipe] = verdict
        return self.verdicts[recipe] == Verdict.ACCEPTED


def lower(answers: list[tuple[int, int | None]], tokens: int, parameters: int) -> None:
    """The smallest size so far is the answer."""
    last = answers[-1][1] if answers else None
    if last is None or parameters < last:
        answers.append((tokens, parameters))


Failed = Sequence[dict[int, float]]  # margins by step of trials of the same size that have failed
Rule = Callable[[Curve, int, Failed], bool]  # whether to give up a curve at a look


def current_rule(curve: Curve, look: int, failed: Failed) -> bool:
    return curve.hopeless[look]


def stopped(curve: Curve, rule: Rule = current_rule, failed: Failed = ()) -> tuple[str, int, int]:
    """The outcome, number of looks and steps of a run that ends once it is certified or given up."""
    for look, above in enumerate(curve.above):
        if above >= 0:
            return "certified", look + 1, curve.steps[look]
        if curve.steps[look] < TOTAL_STEPS and rule(curve, look, failed):
            return "pruned", look + 1, curve.steps[look]
    outcome = "below" if curve.steps[-1] == TOTAL_STEPS else "diverged"
    return outcome, len(curve.steps), curve.full_steps


@dataclass(frozen=True)
class Score:
    """How one replay went."""

    seed: int
    right_at: float  # tokens after which the proved answer is right and stays so; inf where it never is
    ended_at: float  # tokens after which the strategy ends by itself; inf where it does not
    verdict: str  # right, wrong (smaller than the right one), miss (larger, or none)
    answer: int | None  # parameters
    num_trials: int
    by_reason: dict[str, int]
    excluded: int  # sizes that are ruled out
    overturned: int  # of these, such as have a recorded recipe with the asked pass rate


def score(replay: Replay, right: int | None) -> Score:
    """Judge a replay by the answers that it proved. `right` in parameters; None where no size is."""
    final = replay.confirmed[-1][1] if replay.confirmed else None
    right_at = math.inf
    for tokens, answer in reversed(replay.confirmed):
        if answer != right:
            break
        right_at = tokens
    is_smaller = final is not None and (right is None or final < right)
    verdict = "right" if final == right else "wrong" if is_smaller else "miss"
    ended_at = replay.tokens if replay.ended else math.inf
    overturned = sum(replay.recording.is_good(replay.recording.snap(*size)) for size in replay.excluded)
    counts = replay.num_trials, dict(replay.by_reason), len(replay.excluded), overturned
    return Score(replay.seed, right_at, ended_at, verdict, final, *counts)


Contender = Callable[[Replay], None]


def play(contender: Contender, replay: Replay) -> Replay:
    """The replay, once its strategy has ended or spent all tokens."""
    try:
        contender(replay)
        replay.ended = True
    except Spent:
        pass
    return replay
