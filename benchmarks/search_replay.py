"""Replay search strategies on recorded learning curves: how many tokens until the smallest model is found?

    python benchmarks/search_replay.py [--seeds 24] [--curves FILE] [--json FILE] [--markdown FILE]

The curves are those of record_curves.py. The space is num_layers = range(0,5), hidden_dim = range(2,65) and
lr = tag(log,interval(1e-3,1)); a full run is 400 steps of 16 x 128 tokens with 9 looks. Not all of that is recorded, so
a trial plays a recorded curve near it: the nearest width on the log scale, the nearest number of layers recorded for
that width, the nearest lr recorded for that size on the log scale. Its size stays the one that was drawn. A trial costs
its steps x 16 x 128 tokens.

The right answer is the smallest size that with at least one recorded lr certifies at some look on every recorded seed.
A strategy's answer at a moment is what it would report if it was stopped then. A seed of the replay sets the strategy's
random numbers and the order of the recorded training seeds: the first plays the search's seed, the others confirm.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from replay_contenders import contenders, layers_and_width, ours
from replay_recording import (
    ERRORS,
    HARDER,
    LAYERS,
    LONG,
    MAX_TRIALS,
    OVERRIDES,
    STEADY,
    TOKENS_PER_STEP,
    TOTAL_STEPS,
    UNENDING,
    WIDTH,
    Recording,
    Score,
    num_parameters,
    play,
    read_curves,
    score,
    stopped,
)
from replay_rules import RULES, climbs

from marble_sweep.hydra_app.sweep_syntax import parse
from marble_sweep.searches import space as spaces


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
        """Tokens until right."""
        return quantile(self.right_at, 0.5)

    def share(self, verdict: str) -> float:
        return sum(each.verdict == verdict for each in self.scores) / len(self.scores)


def quantile(ascending: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


def millions(tokens: float) -> str:
    return f"{tokens / 1e6:.1f} M" if math.isfinite(tokens) else "never"


def compete(
    recording: Recording,
    space: spaces.Space,
    right: int,
    num_seeds: int,
    max_tokens: float,
    names: Sequence[str] = (),
) -> list[Line]:
    """Every contender (or those named) with its best setting: most replays right, then fewest tokens at the median."""
    lines = []
    for name, settings in contenders().items():
        if names and name not in names:
            continue
        candidates, confirmed = [], []
        for setting, contender in settings.items():
            replays = [play(contender, recording, space, seed, max_tokens) for seed in range(num_seeds)]
            candidates.append(Line(name, setting, [score(each, right) for each in replays]))
            if any(each.confirmed for each in replays):
                scores = [score(each, right, confirmed=True) for each in replays]
                confirmed.append(Line(f"{name}, confirmed", setting, scores))
        best = min(candidates, key=lambda line: (-line.share("right"), line.median, line.ended_at))
        lines += [best, *confirmed]
    return lines


def table(lines: Sequence[Line], reference: float) -> list[list[str]]:
    """`reference`: this project's tokens until right, at the median."""
    rows = [["contender", "best setting", "right at: median", "90 %", "ends at: median", "wrong", "miss", "x ours"]]
    rows += [
        [
            line.contender,
            line.setting,
            millions(line.median),
            millions(quantile(line.right_at, 0.9)),
            millions(quantile(line.ended_at, 0.5)),
            f"{line.share('wrong'):.0%}",
            f"{line.share('miss'):.0%}",
            f"{line.median / reference:.2f}" if math.isfinite(line.median) else "",
        ]
        for line in lines
    ]
    return rows


def boundaries(
    harder: dict[float, Recording], space: spaces.Space, num_seeds: int, max_tokens: float
) -> list[list[str]]:
    """The strategies without random numbers, each with its best setting, where a higher threshold has to be beaten."""
    rows: list[list[str]] = []
    for nats, recording in harder.items():
        if (right := right_size(recording, space)) is None:
            continue
        lines = compete(recording, space, right.num_parameters, num_seeds, max_tokens, STEADY)
        head, *body = table(lines, lines[0].median)
        rows = rows or [["nats", "right", *head]]
        rows += [[f"{nats:g}", str(right), *row] for row in body]
    return rows


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


def stop_rules(
    recording: Recording, space: spaces.Space, right: int, num_seeds: int, max_tokens: float
) -> list[list[str]]:
    """What each rule for giving up does to all recorded curves, and to this project's search.

    A rule that compares is given all other curves of the size and seed that never certify.
    """
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
        replays = [play(contender, recording, space, seed, max_tokens) for seed in range(num_seeds)]
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
    for reason in ("probe", "confirm", "refute"):
        tokens = statistics.fmean(each.by_reason.get(reason, 0) for each in line.scores)
        rows.append([reason, millions(tokens), f"{tokens / total:.0%}"])
    return rows


def evidence(recording: Recording, up_to: int) -> list[list[str]]:
    """On how many recorded seeds each lr certifies, for the sizes up to some number of parameters."""
    rates = sorted({lr for lrs in recording.rates.values() for lr in lrs})
    rows = [["size", "parameters", *(f"lr {lr:g}" for lr in rates), ""]]
    for size in sorted(recording.rates, key=lambda size: num_parameters(*size)):
        if num_parameters(*size) <= up_to:
            found = recording.certifying(size)
            note = "certifies" if recording.is_good(size) else "on some seeds only" if recording.is_lucky(size) else ""
            name, parameters = f"{size[0]}L{size[1]}D", f"{num_parameters(*size):,}"
            rows.append([name, parameters, *(found.get(lr, "") for lr in rates), note])
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, its columns padded so that it reads as plain text as well."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def make_space() -> spaces.Space:
    dimensions, _ = parse(OVERRIDES, OverridesParser.create())
    return spaces.build(dimensions, lambda params: num_parameters(int(params[LAYERS]), int(params[WIDTH])))


def right_size(recording: Recording, space: spaces.Space) -> spaces.Size | None:
    """The smallest size that is played by a recorded one that certifies on every seed."""
    shapes = ((size, recording.snap(*layers_and_width(size))) for size in space.sizes)
    return next((size for size, shape in shapes if recording.is_good(shape)), None)


def report(
    recording: Recording,
    num_seeds: int,
    max_tokens: float,
    *,
    long: bool = False,
    harder: dict[float, Recording] | None = None,
) -> tuple[str, list[Line]]:
    """The report as Markdown, and the lines of its tables. Raises ValueError where no size certifies.

    `harder` has the same recording with some nats taken off every margin.
    """
    space = make_space()
    right = right_size(recording, space)
    if right is None:
        raise ValueError("no recorded size certifies with some lr on every recorded seed")
    parameters = right.num_parameters
    lines = compete(recording, space, parameters, num_seeds, max_tokens)
    parts = [
        INTRODUCTION.format(
            curves=len(recording.curves),
            settings=len(recording.cells),
            seeds=len(recording.seeds),
            errors=ERRORS,
            right=right,
            parameters=f"{parameters:,}",
        ),
        markdown(evidence(recording, 2 * parameters)),
        HEADING.format(replays=num_seeds, cap=millions(max_tokens)),
        markdown(table(lines, lines[0].median)),
        NOTES.format(trials=MAX_TRIALS),
    ]
    if long:
        more = compete(recording, space, parameters, num_seeds, LONG * TOTAL_STEPS * TOKENS_PER_STEP, UNENDING)
        parts += [f"With {LONG} full runs instead:", markdown(table(more, lines[0].median))]
        lines += [Line(f"{line.contender}, long", line.setting, line.scores) for line in more]
    if harder:
        rows = boundaries(harder, space, num_seeds, max_tokens)
        parts += ["## Where another size is right", BOUNDARY_NOTES, markdown(rows)]
    parts += [
        "## Where the tokens of this project's search go",
        markdown(spending(lines[0])),
        "## Is wider never worse at the same depth?",
        markdown(implication(recording)),
        "## Rules for giving up a run",
        RULE_NOTES,
        markdown(stop_rules(recording, space, parameters, num_seeds, max_tokens)),
    ]
    return "\n\n".join(parts) + "\n", lines


INTRODUCTION = """# Search strategies replayed on recorded learning curves

Made by `python benchmarks/search_replay.py --long --markdown docs/search_replay.md` from {curves} recorded runs:
{settings} settings of layers, width and lr, on up to {seeds} seeds each.

The space: `model.num_layers=range(0,5)`, `model.hidden_dim=range(2,65)`,
`optimizer.lr=tag(log,interval(1e-3,1))`. A full run is 400 steps of 16 x 128 tokens with 9 looks. Not every setting is
recorded, so a trial plays the nearest recorded width (log scale), the nearest number of layers recorded for it, and the
nearest lr recorded for that size (log scale); its size stays the one that was drawn. A trial costs its steps x 16 x 128
tokens; one that diverges is taken to end at its next look. The recorded standard errors take held-out windows for
independent, so the replays certify by the rules of that time, and more easily than a search does now
([truth.md](truth.md)).

## The right answer

{right}, {parameters} parameters: the smallest size that with at least one recorded lr certifies ({errors:.2f} standard
errors above the threshold at one of the looks) on every recorded seed. Number of seeds on which each lr certifies, of
those recorded:"""
HEADING = """## Tokens until the answer is right

{replays} replays of each contender, of at most {cap} tokens each."""
NOTES = """*Right at*: tokens until the answer is the right one and stays so. *Ends at*: tokens until the contender ends
by itself. *Wrong*: its last answer is smaller than the right one, a lucky seed. *Miss*: larger, or none.

Where a choice favours one side it favours the rivals: of several settings the best one in hindsight is shown; the
scans try lrs from the middle of the interval outwards and go on to the next size once one certifies; random and short
runs draw no size outside the space; the kept ones of the short runs are trained on, not anew, and smallest first; TPE
waits for each trial, where the published sweeper has two under way. A rival needs one certified run for an answer,
*confirmed* four seeds. ASHA stops after {trials} trials. The strategies without random numbers (this project's, the
scans) differ between replays only by which recorded seed plays which, and settings with one recorded seed play it in
every role. An answer that was confirmed cannot be wrong here, for its seeds are those by which right is defined. The
right answer stands near the lower end of the space, which favours the ascending scan."""


BOUNDARY_NOTES = """The same curves with some nats per token taken off every margin; the strategies without random
numbers, each with its best setting in hindsight. Widths above 4 are recorded on one seed, and 5 plays 6."""
RULE_NOTES = """*False stops*: recorded curves that certify later than the rule would give them up. *False refutations*:
climbs over recipes (from each lr recorded for all sizes, on each seed) that refute a size which certifies on that seed
with a recorded lr. *Saved*: share of the tokens of all recorded curves that never certify. A fastest fall is that with
each doubling of the steps. The rules that begin with *or* extend `certify.is_hopeless`; [truth.md](truth.md) tries that
on other corpora. A rule that compares is given all other curves of the size and seed that never certify; in the replays
of this project's search, only the trials that have failed so far."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=24, help="replays of each contender")
    parser.add_argument("--curves", type=Path, default=Path(__file__).with_name("curves.csv.gz"))
    parser.add_argument("--max-tokens", type=float, default=40e6, help="after which a replay is a miss")
    parser.add_argument("--long", action="store_true", help="also longer replays and higher thresholds: minutes")
    parser.add_argument("--harder", type=float, default=0.0, help="nats per token taken off every margin")
    parser.add_argument("--json", type=Path, help="write every replay's score")
    parser.add_argument("--markdown", type=Path, help="write the report")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    recording = Recording(read_curves(arguments.curves, arguments.harder))
    nats = [arguments.harder + more for more in HARDER] if arguments.long else []
    harder = {each: Recording(read_curves(arguments.curves, each)) for each in nats}
    text, lines = report(recording, arguments.seeds, arguments.max_tokens, long=arguments.long, harder=harder)
    print(text, end="")
    if arguments.markdown:
        arguments.markdown.write_text(text, encoding="utf-8")
    if arguments.json:
        rows: list[dict[str, Any]] = [
            {"contender": line.contender, "setting": line.setting, **vars(each)}
            for line in lines
            for each in line.scores
        ]
        arguments.json.write_text(json.dumps(rows, indent=1).replace("Infinity", "null"), encoding="utf-8")


if __name__ == "__main__":
    main()
