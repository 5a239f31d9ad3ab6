"""The replays of search_replay.py, and the rows of its tables."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from replay_contenders import ours
from replay_recording import CORPORA, Contender, Recording, Replay, Score, play, score, stopped
from replay_rules import RULES, climbs

from marble_sweep.runs.files import atomic_write
from marble_sweep.searches import space as spaces
from marble_sweep.searches.pass_rate import PassRate, Standard


@dataclass(frozen=True)
class Boundary:
    """What a search is asked: some nats below the unigram of a recorded corpus."""

    corpus: str
    nats: float
    recording: Recording
    space: spaces.Space
    right: spaces.Size

    @property
    def has_packages(self) -> bool:
        """Whether published packages are replayed here too."""
        return self.nats in CORPORA[self.corpus].packages_at


@dataclass(frozen=True)
class Line:
    """A contender's row of the table, over all seeds."""

    contender: str
    setting: str
    scores: list[Score]

    @property
    def right_at(self) -> list[float]:
        return sorted(each.right_at for each in self.scores)

    @property
    def ended_at(self) -> list[float]:
        return sorted(each.ended_at for each in self.scores)

    @property
    def median(self) -> float:
        """Tokens until the right size is proved."""
        return quantile(self.right_at, 0.5)

    def share(self, verdict: str) -> float:
        return sum(each.verdict == verdict for each in self.scores) / len(self.scores)

    @property
    def rank(self) -> tuple[float, float, list[float]]:
        """Of several settings the best is the one that is right most often, then soonest."""
        return -self.share("right"), self.median, self.ended_at


@dataclass
class Replays:
    """Every replay is played once; with a file, not again by a later call."""

    path: Path | None = None
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.exists():
            self.scores = json.loads(self.path.read_text(encoding="utf-8"))

    def score(
        self,
        boundary: Boundary,
        standard: Standard,
        name: tuple[str, str],
        contender: Contender,
        seed: int,
        max_tokens: float,
    ) -> Score:
        shown = "pass rate" if isinstance(standard, PassRate) else f"{standard} seeds"
        key = f"{boundary.corpus}, {boundary.nats:g} | {shown}, {max_tokens:g} | {name[0]} | {name[1]} | {seed}"
        if key not in self.scores:
            right = boundary.right.num_parameters
            replay = Replay(boundary.recording, boundary.space, seed, max_tokens, standard, right)
            self.scores[key] = asdict(score(play(contender, replay), right))
        return Score(**self.scores[key])

    def save(self) -> None:
        if self.path is not None:
            with atomic_write(self.path) as temporary:
                temporary.write_text(json.dumps(self.scores, indent=0), encoding="utf-8")

    def lines(
        self,
        boundary: Boundary,
        standard: Standard,
        contenders: dict[str, dict[str, Contender]],
        num_seeds: int,
        max_tokens: float,
    ) -> dict[str, list[Line]]:
        """Every contender with a line for each of its settings, the best one first."""
        lines: dict[str, list[Line]] = {name: [] for name in contenders}
        for name, settings in contenders.items():
            for setting, contender in settings.items():
                asked = boundary, standard, (name, setting), contender
                scores = [self.score(*asked, seed, max_tokens) for seed in range(num_seeds)]
                lines[name].append(Line(name, setting, scores))
                self.save()
            lines[name].sort(key=lambda line: line.rank)
        return lines


def quantile(ascending: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


def millions(tokens: float) -> str:
    return f"{tokens / 1e6:.1f} M" if math.isfinite(tokens) else "never"


OURS = "ours"
HEADS = ["contender", "best setting", "right at: median", "90 %", "ends at: median", "wrong", "miss", "x ours"]


def table(lines: dict[str, list[Line]], reference: float) -> list[list[str]]:
    """`reference`: this project's tokens until right, at the median."""
    best = [settings[0] for settings in lines.values()]
    return [HEADS] + [
        [
            line.contender,
            line.setting,
            millions(line.median),
            millions(quantile(line.right_at, 0.9)),
            millions(quantile(line.ended_at, 0.5)),
            f"{line.share('wrong'):.0%}",
            f"{line.share('miss'):.0%}",
            f"{line.median / reference:.2f}" if math.isfinite(line.median + reference) else "",
        ]
        for line in best
    ]


def tables(lines: Sequence[tuple[Boundary, dict[str, list[Line]]]]) -> list[list[str]]:
    """The tables of several boundaries, below each other."""
    rows = [["corpus", "nats", "right", *HEADS]]
    for boundary, contenders in lines:
        _, *body = table(contenders, contenders[OURS][0].median)
        rows += [[boundary.corpus, f"{boundary.nats:g}", str(boundary.right), *row] for row in body]
    return rows


def lead(lines: Sequence[tuple[Boundary, dict[str, list[Line]]]]) -> list[list[str]]:
    """How many times the tokens of this project's search the rivals take until right.

    Over the boundaries where that is right in the median. First the best setting of the best rival at each boundary,
    then every rival with the setting that is best for all.
    """
    per_boundary = []
    fixed: dict[tuple[str, str], list[float]] = {}
    for _, contenders in lines:
        mine = contenders[OURS][0].median
        if not math.isfinite(mine):
            continue
        rivals = [line for name, settings in contenders.items() if not name.startswith(OURS) for line in settings]
        per_boundary.append(min(line.median for line in rivals) / mine)
        for line in rivals:
            fixed.setdefault((line.contender, line.setting), []).append(line.median / mine)
    rows = [["rival", "setting", "boundaries", "never right", "geometric mean", "least"]]
    rows.append(["the best at each boundary", "the best at each", *ratios(per_boundary)])
    by_name: dict[str, list[tuple[int, float, str]]] = {}
    for (name, setting), values in fixed.items():
        finite = [value for value in values if math.isfinite(value)]
        mean = statistics.geometric_mean(finite) if finite else math.inf
        by_name.setdefault(name, []).append((len(values) - len(finite), mean, setting))
    for name, settings in by_name.items():
        setting = min(settings)[2]
        rows.append([name, setting, *ratios(fixed[name, setting])])
    return rows


def ratios(values: Sequence[float]) -> list[str]:
    """Number, how many are infinite, geometric mean and least of the others."""
    finite = [value for value in values if math.isfinite(value)]
    mean = f"{statistics.geometric_mean(finite):.2f}" if finite else ""
    least = f"{min(finite):.2f}" if finite else ""
    return [str(len(values)), str(len(values) - len(finite)), mean, least]


def honesty(lines: Sequence[tuple[Boundary, dict[str, list[Line]]]]) -> list[list[str]]:
    """What this project's search said that the whole recording contradicts, over all boundaries."""
    scores = [each for _, contenders in lines for each in contenders[OURS][0].scores]
    wrong, miss = (sum(each.verdict == verdict for each in scores) for verdict in ("wrong", "miss"))
    excluded, overturned = sum(each.excluded for each in scores), sum(each.overturned for each in scores)
    share = f"{overturned / excluded:.1%}" if excluded else ""
    return [
        ["replays", "wrong", "miss", "sizes ruled out", "overturned", "share"],
        [
            str(len(scores)),
            f"{wrong / len(scores):.1%}",
            f"{miss / len(scores):.1%}",
            *map(str, (excluded, overturned)),
            share,
        ],
    ]


def implication(recording: Recording) -> list[list[str]]:
    """Where a wider model of the same depth did worse: with its best lr and at its best look, on the same seed."""
    pairs = worse = broken = 0
    examples = []
    shapes = sorted(recording.rates)
    for narrow in shapes:
        for wide in (each for each in shapes if each[0] == narrow[0] and each[1] > narrow[1]):
            common = sorted(set(recording.rates[narrow]) & set(recording.rates[wide]))
            best = [
                {
                    seed: max(max(recording.cells[(*size, lr)][seed].above) for lr in common)
                    for seed in recording.seeds
                    if all(seed in recording.cells[(*size, lr)] for lr in common)
                }
                for size in (narrow, wide)
            ]
            for seed in sorted(set(best[0]) & set(best[1])):
                pairs += 1
                if best[1][seed] < best[0][seed]:
                    worse += 1
                    here, there = f"{wide[1]}D {best[1][seed]:+.3f}", f"{narrow[1]}D {best[0][seed]:+.3f}"
                    examples.append(f"{narrow[0]}L: {here} < {there} (seed {seed})")
                broken += best[1][seed] < 0 <= best[0][seed]
    return [
        ["pairs of sizes on a seed", "wider is worse", "wider fails, narrower certifies", "examples"],
        [str(pairs), str(worse), str(broken), "; ".join(examples[:6])],
    ]


def stop_rules(boundary: Boundary, num_seeds: int, max_tokens: float) -> list[list[str]]:
    """What each rule for giving up does to all recorded curves, and to this project's search.

    A rule that compares is given all other curves of the size and seed that never certify.
    """
    recording, space, right = boundary.recording, boundary.space, boundary.right.num_parameters
    heads = ["rule", "false stops", "false refutations", "saved", "ours: right at", "ends at", "right"]
    rows = [heads]
    failing = [each for each in recording.curves if not each.certifies]
    whole = sum(each.full_steps for each in failing)
    for name, rule in RULES.items():
        false, spent = 0, 0
        for curve in recording.curves:
            failed = [
                dict(zip(each.steps, each.margins, strict=True))
                for each in failing
                if each.key[:2] == curve.key[:2] and each.seed == curve.seed and each is not curve
            ]
            outcome, _, steps = stopped(curve, rule, failed)
            false += curve.certifies and outcome != "certified"
            spent += 0 if curve.certifies else steps
        contender = partial(ours, rule=rule)
        replays = [play(contender, Replay(recording, space, seed, max_tokens)) for seed in range(num_seeds)]
        line = Line(name, "", [score(each, right) for each in replays])
        rows.append(
            [
                name,
                f"{false} of {len(recording.curves) - len(failing)}",
                "{} of {}".format(*climbs(recording, space, rule)),
                f"{1 - spent / whole:.0%}" if whole else "",
                millions(line.median),
                millions(quantile(line.ended_at, 0.5)),
                f"{line.share('right'):.0%}",
            ]
        )
    return rows


def spending(line: Line) -> list[list[str]]:
    """What the tokens of this project's search go to, as means over the replays."""
    total = statistics.fmean(sum(each.by_reason.values()) for each in line.scores)
    rows = [["reason", "tokens", "share"]]
    for reason in ("probe", "confirm", "refute", "exclude"):
        tokens = statistics.fmean(each.by_reason.get(reason, 0) for each in line.scores)
        rows.append([reason, millions(tokens), f"{tokens / total:.0%}"])
    return rows


def evidence(recording: Recording, up_to: int) -> list[list[str]]:
    """On how many recorded seeds each lr certifies, for the sizes up to some number of parameters."""
    rates = sorted({lr for lrs in recording.rates.values() for lr in lrs})
    rows = [["size", "parameters", *(f"lr {lr:g}" for lr in rates), ""]]
    for size in sorted(recording.rates, key=lambda size: recording.parameters(*size)):
        if (parameters := recording.parameters(*size)) <= up_to:
            found = recording.certifying(size)
            note = "certifies" if recording.is_good(size) else "on some seeds only" if recording.is_lucky(size) else ""
            rows.append([f"{size[0]}L{size[1]}D", f"{parameters:,}", *(found.get(lr, "") for lr in rates), note])
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, its columns padded so that it reads as plain text as well."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
