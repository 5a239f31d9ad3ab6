"""Replay search strategies on recorded learning curves: how many tokens until the smallest model is found and proved?

    python benchmarks/search_replay.py [--long] [--seeds 24] [--json FILE] [--markdown FILE]

The curves are those of record_curves.py (the default corpus) and record_markov.py (a Markov chain). The space is
num_layers = range(0,5), hidden_dim = range(2,65) and lr = tag(log,interval(1e-3,1)); a full run is 400 steps of
16 x 128 tokens with 9 looks. Not all of that is recorded, so a trial plays a recorded curve near it: the nearest width
on the log scale, the nearest number of layers recorded for that width, the nearest lr recorded for that size on the log
scale. Its size stays the one that was drawn. A trial costs its steps x 16 x 128 tokens.

The right answer is the smallest size that with at least one recorded lr certifies on the asked share of its recorded
seeds. A strategy's answer counts once the test of a search (searches/pass_rate.py) accepts it on fresh seeds, which the
strategy pays for; where the test does not, it goes on. A seed of the replay sets the strategy's random numbers, which
recorded seed plays the search's, and which ones the fresh seeds play.

`--long` adds other boundaries and published packages (replay_packages.py says how to install those that are optional).
With `--json` every replay is kept, and a later call with the same file plays only those that it lacks.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import optuna
import replay_packages
from hydra.core.override_parser.overrides_parser import OverridesParser
from replay_contenders import contenders, layers_and_width
from replay_recording import (
    CONFIRM_SEEDS,
    CORPORA,
    LAYERS,
    OVERRIDES,
    WIDTH,
    Recording,
    num_parameters,
    read_curves,
)
from replay_tables import (
    Boundary,
    Replays,
    evidence,
    honesty,
    implication,
    lead,
    markdown,
    millions,
    spending,
    stop_rules,
    table,
    tables,
)

from marble_sweep.hydra_app.sweep_syntax import parse
from marble_sweep.search_config import SearchConfig
from marble_sweep.searches import space as spaces
from marble_sweep.searches.pass_rate import Standard, standard_of

SCANS = ("ascending scan", "binary search", "ascending scan, early stop", "binary search, early stop")
STEADY = ("ours", "ours, neighbours first", *SCANS)
PACKAGE_TOKENS = 100e6  # where a package's replay ends
STANDARD = standard_of(SearchConfig())


def make_space(vocab_size: int = CORPORA["pydocs"].vocab_size) -> spaces.Space:
    dimensions, _ = parse(OVERRIDES, OverridesParser.create())
    return spaces.build(dimensions, lambda params: num_parameters(int(params[LAYERS]), int(params[WIDTH]), vocab_size))


def right_size(recording: Recording, space: spaces.Space) -> spaces.Size | None:
    """The smallest size that is played by a recorded one with the asked pass rate."""
    shapes = ((size, recording.snap(*layers_and_width(size))) for size in space.sizes)
    return next((size for size, shape in shapes if recording.is_good(shape)), None)


def make_boundary(corpus: str, path: Path, nats: float) -> Boundary | None:
    """None where no recorded size is right."""
    vocab_size = CORPORA[corpus].vocab_size
    recording, space = Recording(read_curves(path, nats), vocab_size), make_space(vocab_size)
    right = right_size(recording, space)
    return None if right is None else Boundary(corpus, nats, recording, space, right)


def make_boundaries(path: Path, *, long: bool) -> list[Boundary]:
    """The standard one first: the default corpus, nothing taken off."""
    asked = [("pydocs", path, 0.0)]
    if long:
        asked += [
            (corpus, path if corpus == "pydocs" else Path(__file__).with_name(recorded.file), nats)
            for corpus, recorded in CORPORA.items()
            for nats in recorded.nats
        ]
    made = (make_boundary(*each) for each in dict.fromkeys(asked))
    return [boundary for boundary in made if boundary is not None]


def simple_rivals(
    replays: Replays, boundaries: Sequence[Boundary], standard: Standard, seeds: int, tokens: float
) -> str:
    """The tables of one standard: all contenders at the first boundary, those without random numbers at all."""
    everyone = contenders()
    steady = {name: everyone[name] for name in STEADY}
    lines = [(each, replays.lines(each, standard, steady, seeds, tokens)) for each in boundaries]
    first, here = lines[0]
    here = here | replays.lines(
        first, standard, {name: everyone[name] for name in set(everyone) - set(STEADY)}, seeds, tokens
    )
    parts = [markdown(table({name: here[name] for name in everyone}, here["ours"][0].median))]
    if len(boundaries) > 1:
        parts += [BOUNDARY_NOTES, markdown(tables(lines)), LEAD_NOTES, markdown(lead(lines))]
    return "\n\n".join(
        [*parts, HONESTY_NOTES, markdown(honesty(lines)), SPENDING_NOTES, markdown(spending(here["ours"][0]))]
    )


def published(replays: Replays, boundaries: Sequence[Boundary], seeds: int, tokens: float) -> str:
    """The tables of the packages, proved by a pass rate."""
    found = {"ours": contenders()["ours"]} | replay_packages.packages()
    lines = []
    for boundary in boundaries:
        ours = replays.lines(boundary, STANDARD, {"ours": found["ours"]}, seeds, tokens)
        others = {name: settings for name, settings in found.items() if name != "ours"}
        lines.append((boundary, ours | replays.lines(boundary, STANDARD, others, seeds, PACKAGE_TOKENS)))
    absent = replay_packages.missing()
    note = f"Not installed, and so not in the table: {', '.join(absent)}." if absent else replay_packages.versions()
    return "\n\n".join([note, markdown(tables(lines))])


def report(replays: Replays, boundaries: Sequence[Boundary], seeds: int, tokens: float, package_seeds: int) -> str:
    """The report as Markdown; with the packages where `package_seeds` is not 0."""
    first = boundaries[0]
    parts = [INTRODUCTION]
    shown = {each.corpus: each for each in reversed(boundaries)}
    for boundary in reversed(shown.values()):
        right = boundary.right.num_parameters
        heading = RIGHT.format(**vars(boundary), parameters=f"{right:,}", curves=len(boundary.recording.curves))
        parts += [heading, markdown(evidence(boundary.recording, 2 * right))]
    shown_tokens = millions(tokens)
    for heading, standard in ((BY_RATE, STANDARD), (QUICK, CONFIRM_SEEDS)):
        parts += [
            heading.format(replays=seeds, cap=shown_tokens),
            simple_rivals(replays, boundaries, standard, seeds, tokens),
        ]
    if package_seeds:
        parts += [
            PUBLISHED.format(replays=package_seeds, cap=millions(PACKAGE_TOKENS)),
            published(replays, [each for each in boundaries if each.has_packages], package_seeds, tokens),
        ]
    parts += [
        "## Is wider never worse at the same depth?",
        markdown(implication(first.recording)),
        "## Rules for giving up a run",
        RULE_NOTES,
        markdown(stop_rules(first, seeds, tokens)),
    ]
    return "\n\n".join(parts) + "\n"


INTRODUCTION = """# Search strategies replayed on recorded learning curves

Made by `python benchmarks/search_replay.py --long --markdown docs/search_replay.md`. No replay trains anything: a trial
plays a recorded run, and is charged the tokens of its steps.

The space: `model.num_layers=range(0,5)`, `model.hidden_dim=range(2,65)`,
`optimizer.lr=tag(log,interval(1e-3,1))`. A full run is 400 steps of 16 x 128 tokens with 9 looks. Not every setting is
recorded, so a trial plays the nearest recorded width (log scale), the nearest number of layers recorded for it, and the
nearest lr recorded for that size (log scale); its size stays the one that was drawn. One that diverges is taken to end
at its next look. All certify by 3.62 standard errors: the recordings are older than the second decision at an
evaluation. Those of the default corpus take held-out windows for independent, and so certify more easily than a search
does now ([truth.md](truth.md)).

**One standard of proof for all.** An answer counts once it is proved: the recipe that certified trains on fresh seeds,
each until it certifies or is hopeless, and the search's own sequential test decides ([search.md](search.md)). The
tokens of these seeds are charged. Where the test rejects a recipe, the strategy goes on. A fresh seed plays one of the
recorded seeds of its recipe, drawn with replacement: so a recipe's pass rate is the share of its recorded seeds that
certify, and a test can err as it can in a search.

*Right at*: tokens until the proved answer is the right one and stays so. *Ends at*: tokens until the contender ends by
itself. *Wrong*: its last proved answer is smaller than the right one. *Miss*: larger, or none. Only this project's
search also tests the sizes below its answer before it ends; a size that a rival passes over is not ruled out by it, so
the two ends are not of the same work.

Where a choice favours one side it favours the rivals: of several settings the best one in hindsight is shown; the
scans try lrs from the middle of the interval outwards; and no rival tests a recipe anew that plays the same recorded
curves as one that was tested."""
RIGHT = """## The right answer: {corpus}

{right}, {parameters} parameters: the smallest size that beats unigram with at least one recorded lr on 80 % of its
recorded seeds. {curves} runs are recorded. Number of seeds on which each lr certifies, of those recorded:"""
BY_RATE = """## Proved by a pass rate

As a search does unless told otherwise: a pass rate above 80 %, at 95 % confidence over all that a search says.
{replays} replays of each contender, of at most {cap} tokens each."""
QUICK = """## Proved in the quick form

`search.confirm_seeds=3`: 3 of 3 fresh seeds, and a smaller size is refuted by its climb on the search's seed alone.
{replays} replays of each contender, of at most {cap} tokens each."""
BOUNDARY_NOTES = """Some nats per token are taken off every margin, so that other sizes are right. Only strategies
without random numbers, each with its best setting in hindsight. A binary search takes it that every size above one that
certifies does so too. The entropy rate of the chain, 1.8158 nats, is 3.58 below its unigram: there no size is right,
whatever the budget. Above it the right sizes are those of the recording, not of a closed form."""
LEAD_NOTES = """Median tokens until right over those of this project's search, at the boundaries where it is right in
the median. First the rival and the setting that are best at each boundary, then every rival with the setting that is
never right at the fewest boundaries, then best in the mean. The means leave out the boundaries where a rival is never
right:"""
HONESTY_NOTES = """What this project's search said, over all boundaries: wrong answers, and sizes ruled out that have a
recorded recipe with the asked pass rate:"""
SPENDING_NOTES = """Where its tokens go, at the first boundary:"""
PUBLISHED = """## Published packages

Proved by a pass rate; {replays} replays. `benchmarks/replay_packages.py` says how to install them. They are set up so:

- Optuna's TPE and GP: the parameters as value, and that the trial certifies as a constraint; TPE's pruners compare the
  parameters with a penalty, as they know no constraint. GP learns nothing from pruned trials, and is left unpruned.
- Optuna's NSGA-II: parameters and held-out loss as objectives, under the same constraint, with trials to their end.
- hydra-optuna-sweeper as published: TPE on the parameters with a penalty, trials to their end.
- Syne Tune by its schedulers' own calls: ASHA and BOHB on the parameters with a penalty, MOASHA on parameters and loss,
  from the first look (25 steps) to the last. MOASHA's replays end after 300 trials.
- SMAC3 by ask and tell: its multi-fidelity facade on the parameters with a penalty; a larger budget trains on.

Everything else is at its default. A trial that is watched at its looks ends where it certifies: its value is known.
None of them ends by itself or says when its answer is final. Here too the choice favours them: no size larger than the
right one is tested on fresh seeds, and a replay ends as soon as the right size is proved, or after {cap} tokens."""
RULE_NOTES = """*False stops*: recorded curves that certify later than the rule would give them up. *False refutations*:
climbs over recipes (from each lr recorded for all sizes, on each seed) that refute a size which certifies on that seed
with a recorded lr. *Saved*: share of the tokens of all recorded curves that never certify. A fastest fall is that with
each doubling of the steps. The rules that begin with *or* extend `certify.is_hopeless`; [truth.md](truth.md) tries that
on other corpora. A rule that compares is given all other curves of the size and seed that never certify; in the replays
of this project's search, which are in the quick form, only the trials that have failed so far."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=24, help="replays of each contender")
    parser.add_argument("--package-seeds", type=int, default=6, help="replays of each published package")
    parser.add_argument("--curves", type=Path, default=Path(__file__).with_name("curves.csv.gz"))
    parser.add_argument("--max-tokens", type=float, default=200e6, help="after which a replay is a miss")
    parser.add_argument("--long", action="store_true", help="also other boundaries and published packages: an hour")
    parser.add_argument("--json", type=Path, help="keep every replay's score")
    parser.add_argument("--markdown", type=Path, help="write the report")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("syne_tune").setLevel(logging.ERROR)
    boundaries = make_boundaries(arguments.curves, long=arguments.long)
    package_seeds = arguments.package_seeds if arguments.long else 0
    replays = Replays(arguments.json)
    text = report(replays, boundaries, arguments.seeds, arguments.max_tokens, package_seeds)
    print(text, end="")
    if arguments.markdown:
        arguments.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
