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
from marble_sweep.search_config import CertifyConfig
from marble_sweep.searches import space as spaces
from marble_sweep.training.schedule import evaluation_steps

OVERRIDES = (
    "model.num_layers=range(0,5)",
    "model.hidden_dim=range(2,65)",
    "optimizer.lr=tag(log,interval(1e-3,1))",
)
LAYERS, WIDTH, RATE = "model.num_layers", "model.hidden_dim", "optimizer.lr"
VOCAB_SIZE, SEQ_LEN, BATCH_SIZE = 10_000, 128, 16
TOTAL_STEPS, NUM_LOOKS, CONFIRM_SEEDS = 400, 9, 3
STEPS = tuple(evaluation_steps(TOTAL_STEPS, NUM_LOOKS, "geometric"))
ERRORS = errors_needed(3.0, NUM_LOOKS)
TOKENS_PER_STEP = BATCH_SIZE * SEQ_LEN
RATES = (0.0316, 0.1, 0.01, 0.316, 0.00316)  # the middle of the interval first: what a scan tries for each size
MAX_TRIALS = 300  # of ASHA, whose stopped trials are cheap: this many take most of 40 M tokens
LONG = 300  # full runs; as many trials as a search makes unless told otherwise
UNENDING = ("hydra-optuna-sweeper, TPE", "random search", "NSGA-II")
STEADY = ("ours", "ascending scan", "binary search", "ascending scan, early stop", "binary search, early stop")
HARDER = (0.1, 0.2, 0.4, 0.7)  # nats per token taken off every margin, so that other sizes are right
PENALTY = 1e9  # more than any size has parameters
CERTIFY = CertifyConfig()
Key = tuple[int, int, float]  # layers, width, lr


def num_parameters(num_layers: int, hidden_dim: int) -> int:
    """What Config.num_parameters is for the default vocabulary and sequence length."""
    return (VOCAB_SIZE + SEQ_LEN + 2) * hidden_dim + num_layers * (12 * hidden_dim**2 + 13 * hidden_dim)


# ------------------------------------------------------------------------------------------------ the recording


@dataclass(frozen=True)
class Curve:
    """One recorded run. Losses and margins are in nats per token, an entry a look."""

    key: Key
    seed: int
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    margins: tuple[float, ...]  # to the unigram loss
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

    The recording has neither the tempered unigram, worth 0.001 nats on its corpus, nor the error of the context's gain:
    at every evaluation that certifies, the gain is more than 0.005 nats.
    """
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
        tuple(row["unigram_margin"] for row in rows),
        tuple(-shortfall(CERTIFY, row, ERRORS) for row in rows),
        tuple(row["context_gain"] for row in rows),
        tuple(is_hopeless(CERTIFY, rows[: look + 1], STEPS) for look in range(len(rows))),
    )


def read_curves(path: Path, harder: float = 0.0) -> list[Curve]:
    """The curves of a recording; `harder` nats per token are taken off every margin."""
    grouped: dict[tuple[Key, int], list[dict[str, float]]] = defaultdict(list)
    with gzip.open(path, "rt", newline="") as file:
        for text in csv.DictReader(file):
            row = {name: float(value) for name, value in text.items()}
            row["unigram_margin"] -= harder
            key = (int(row["num_layers"]), int(row["hidden_dim"]), row["lr"])
            grouped[key, int(row["seed"])].append(row)
    return [make_curve(key, seed, sorted(rows, key=lambda row: row["step"])) for (key, seed), rows in grouped.items()]


def nearest(value: float, choices: Sequence[float]) -> float:
    """On the log scale; the smaller of two that are equally near."""
    return min(sorted(choices), key=lambda choice: abs(math.log(value / choice)))


class Recording:
    """The curves of a recording, found by the recorded settings or by those nearest to others."""

    def __init__(self, curves: Sequence[Curve]) -> None:
        self.curves = list(curves)
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

    def snap(self, num_layers: int, hidden_dim: int) -> tuple[int, int]:
        """The recorded size that plays a size."""
        size = (num_layers, hidden_dim)
        if size not in self._snapped:
            width = int(nearest(hidden_dim, list(self.layers)))
            depth = min(sorted(set(self.layers[width])), key=lambda each: abs(each - num_layers))
            self._snapped[size] = (depth, width)
        return self._snapped[size]

    def cell(self, num_layers: int, hidden_dim: int, lr: float) -> dict[int, Curve]:
        size = self.snap(num_layers, hidden_dim)
        return self.cells[(*size, nearest(lr, self.rates[size]))]

    def certifying(self, size: tuple[int, int]) -> dict[float, str]:
        """For each recorded lr of a recorded size: on how many of the seeds it certifies, as 3/4."""
        cells = {lr: self.cells[(*size, lr)].values() for lr in self.rates[size]}
        return {lr: f"{sum(curve.certifies for curve in cell)}/{len(cell)}" for lr, cell in cells.items()}

    def is_good(self, size: tuple[int, int]) -> bool:
        """Whether a recorded size certifies with some lr on every recorded seed."""
        return any(all(each.certifies for each in self.cells[(*size, lr)].values()) for lr in self.rates[size])

    def is_lucky(self, size: tuple[int, int]) -> bool:
        """Whether it certifies on some seed only."""
        cells = [self.cells[(*size, lr)].values() for lr in self.rates[size]]
        return not self.is_good(size) and any(each.certifies for cell in cells for each in cell)


# ------------------------------------------------------------------------------------------------- the bookkeeping


class Spent(Exception):  # noqa: N818 - the expected end of a rival
    """The tokens of a replay are used up."""


@dataclass
class Replay:
    """One strategy's run over the recording: what it has spent and what it would have answered when."""

    recording: Recording
    space: spaces.Space
    seed: int
    max_tokens: float
    tokens: int = 0
    by_reason: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # tokens
    answers: list[tuple[int, int | None]] = field(default_factory=list)  # after so many tokens: parameters
    confirmed: list[tuple[int, int | None]] = field(default_factory=list)  # those certified on fresh seeds too
    num_trials: int = 0
    ended: bool = False  # by itself

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.order = self.rng.sample(self.recording.seeds, len(self.recording.seeds))

    def curve(self, num_layers: int, hidden_dim: int, lr: float, role: int = 0) -> Curve:
        """The curve that plays a trial; `role` 0 is the search's seed, 1, 2, … are the fresh ones."""
        cell = self.recording.cell(num_layers, hidden_dim, lr)
        seeds = [seed for seed in self.order if seed in cell]
        return cell[seeds[role % len(seeds)]]

    def spend(self, steps: int, reason: str = "train") -> None:
        """Raises Spent where the tokens do not suffice."""
        cost = steps * TOKENS_PER_STEP
        if self.tokens + cost > self.max_tokens:
            raise Spent
        self.tokens += cost
        self.by_reason[reason] += cost

    def full(self, num_layers: int, hidden_dim: int, lr: float, trained: int = 0) -> Curve:
        """Train to the end, from `trained` steps on; certified at the last look, the size is an answer."""
        curve = self.curve(num_layers, hidden_dim, lr)
        self.spend(curve.full_steps - trained)
        self.num_trials += 1
        if curve.certifies_at_end:
            self.answer(num_parameters(num_layers, hidden_dim))
        return curve

    def early(self, num_layers: int, hidden_dim: int, lr: float) -> bool:
        """Train until certified or hopeless; certified, the size is an answer."""
        outcome, _, steps = stopped(self.curve(num_layers, hidden_dim, lr))
        self.spend(steps)
        self.num_trials += 1
        if outcome == "certified":
            self.answer(num_parameters(num_layers, hidden_dim))
        return outcome == "certified"

    def answer(self, parameters: int) -> None:
        """The smallest size so far counts."""
        last = self.answers[-1][1] if self.answers else None
        if last is None or parameters < last:
            self.answers.append((self.tokens, parameters))


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
    right_at: float  # tokens after which the answer is right and stays so; inf where it never is
    ended_at: float  # tokens after which the strategy ends by itself; inf where it does not
    verdict: str  # right, wrong (smaller than the right one), miss (larger, or none)
    answer: int | None  # parameters
    num_trials: int
    by_reason: dict[str, int]


def score(replay: Replay, right: int, *, confirmed: bool = False) -> Score:
    """Judge a replay by its answers, or by those alone that were confirmed on fresh seeds."""
    answers = replay.confirmed if confirmed else replay.answers
    final = answers[-1][1] if answers else None
    right_at = math.inf
    for tokens, answer in reversed(answers):
        if answer != right:
            break
        right_at = tokens
    verdict = "right" if final == right else "wrong" if final is not None and final < right else "miss"
    ended_at = replay.tokens if replay.ended else math.inf
    return Score(replay.seed, right_at, ended_at, verdict, final, replay.num_trials, dict(replay.by_reason))


Contender = Callable[[Replay], None]


def play(contender: Contender, recording: Recording, space: spaces.Space, seed: int, max_tokens: float) -> Replay:
    replay = Replay(recording, space, seed, max_tokens)
    try:
        contender(replay)
        replay.ended = True
    except Spent:
        pass
    return replay
