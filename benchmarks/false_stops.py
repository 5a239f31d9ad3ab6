"""How often the rule that gives up a run is wrong, on recorded curves of several corpora, budgets and thresholds.

    python benchmarks/false_stops.py

A *false stop* is a run that certifies at one of its evaluations but would have been given up before. The curves are
those of record_stops.py and, of the default corpus, those of record_curves.py.
"""

import argparse
import csv
import gzip
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from record_stops import CORPORA, KEYS
from replay_recording import as_measured_now
from replay_tables import markdown
from scipy.stats import binomtest

from marble_sweep.early_stopping import is_hopeless, margin, outcome
from marble_sweep.metrics.margin import DECIDING_MARGINS, Outcome, errors_needed
from marble_sweep.search_config import CertifyConfig
from marble_sweep.training.schedule import evaluation_steps

HERE = Path(__file__).parent
OLDER_KEYS = ("num_layers", "hidden_dim", "lr", "seed")
TOKENS_PER_STEP = {"search": 16 * 128, "linear": 16 * 128, "wsd": 16 * 128, "long": 4 * 64}
SCHEDULES = {  # of each budget, the steps of the evaluations; a curve is also judged at some of those it has
    "search": [evaluation_steps(400, 9, "geometric")],
    "wsd": [evaluation_steps(400, 9, "geometric")],
    "long": [evaluation_steps(1600, 13, "geometric")],
    "linear": [evaluation_steps(400, number, "linear") for number in (20, 10, 5, 4)],
}
CALIBRATION = "pydocs"  # the constants were chosen on this corpus; the others test them
HARDER = (0.1, 0.2, 0.4, 0.7)  # nats per token taken off every margin, so that fewer runs certify
PLATEAU = 0.3  # nats above the unigram loss: there the first descent is over
FALLS = (("evaluation", "evaluation"), ("doubling", "doubling"), ("step", "doubling"))
SHARES = (0.04, 0.06, 0.08, 0.1, 0.12, 0.16)
Row = dict[str, float]
Rule = Callable[[CertifyConfig, Sequence[Row], Sequence[int]], bool]  # as is_hopeless


@dataclass(frozen=True)
class Curve:
    """One recorded run, in order of its steps."""

    corpus: str
    budget: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Run:
    """A curve as a search sees it: against one threshold, at some of its evaluations."""

    corpus: str
    budget: str
    certify: CertifyConfig
    steps: Sequence[int]  # of all evaluations; a run that diverged has rows for the first of them
    rows: Sequence[Row]
    certified: int | None  # the first row that certifies

    def stop(self, rule: Rule) -> int | None:
        """The row after which the rule gives the run up, before it certifies and before its last evaluation."""
        end = len(self.steps) - 1 if self.certified is None else self.certified
        rows = range(min(end, len(self.rows)))
        return next((at for at in rows if rule(self.certify, self.rows[: at + 1], self.steps)), None)

    @property
    def num_steps(self) -> int:
        """Those of a run that is not given up; one that diverged is taken to have done so at its next evaluation."""
        return self.steps[min(len(self.rows), len(self.steps) - 1)]


# ------------------------------------------------------------------------------------------------------- rules


def never(config: CertifyConfig, evals: Sequence[Row], steps: Sequence[int]) -> bool:
    return False


# How far it is from one step to a later one, in each unit that a fall of the loss may be counted by.
UNITS: dict[str, Callable[[float, float, Sequence[int]], float]] = {
    "evaluation": lambda first, last, steps: sum(first < step <= last for step in steps),
    "doubling": lambda first, last, steps: math.log2(last / first),
    "step": lambda first, last, steps: last - first,
}


def misses(
    rise_unit: str, unit: str, share: float, config: CertifyConfig, evals: Sequence[Row], steps: Sequence[int]
) -> bool:
    """Whether the loss misses the threshold even if it falls in each `rise_unit` as in those since the last evaluation
    but one, or by `share` of itself in each `unit`.
    """
    if len(evals) < 2:
        return False
    before, now = evals[-2]["step"], evals[-1]["step"]
    last = margin(config, evals[-1])[0]
    rise = last - margin(config, evals[-2])[0]
    far = UNITS[rise_unit]
    as_before = rise * far(now, steps[-1], steps) / far(before, now, steps)
    return not last + max(as_before, share * evals[-1]["val_loss"] * UNITS[unit](now, steps[-1], steps)) > 0


def without_context(
    gain: float, part: float, config: CertifyConfig, evals: Sequence[Row], steps: Sequence[int]
) -> bool:
    """So large a part of the steps is done, and exchanging contexts changes the loss by less than `gain`."""
    return evals[-1]["step"] >= part * steps[-1] and abs(evals[-1]["context_gain"]) < gain


def near_the_end_without_context(config: CertifyConfig, evals: Sequence[Row], steps: Sequence[int]) -> bool:
    """Three evaluations at most are left, and exchanging contexts changes the loss by less than 1e-6 nats."""
    return sum(step > evals[-1]["step"] for step in steps) <= 3 and abs(evals[-1]["context_gain"]) < 1e-6


def either(*rules: Rule) -> Rule:
    return lambda config, evals, steps: any(rule(config, evals, steps) for rule in rules)


EARLIER = either(partial(misses, "evaluation", "evaluation", 0.04), near_the_end_without_context)


# ------------------------------------------------------------------------------------------------- the recordings


def read_rows(path: Path, keys: Sequence[str]) -> dict[tuple[str, ...], list[Row]]:
    """The evaluations of each curve, by its key, in order of their step."""
    curves: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    with gzip.open(path, "rt", newline="") as file:
        for text in csv.DictReader(file):
            key = tuple(text.pop(name) for name in keys)
            curves[key].append({name: float(value) for name, value in text.items()})
    return {key: sorted(rows, key=lambda row: row["step"]) for key, rows in curves.items()}


def read_curves(stop_curves: Path, curves: Path) -> list[Curve]:
    """Those of both recordings."""
    read = [Curve(key[0], key[1], rows) for key, rows in read_rows(stop_curves, KEYS).items()]
    older = read_rows(curves, OLDER_KEYS).values()
    return read + [Curve("pydocs", "search", [as_measured_now(row) for row in rows]) for rows in older]


def make_run(curve: Curve, steps: Sequence[int], threshold: str = "unigram", nats: float = 0.0) -> Run:
    """A curve at those of its evaluations that are among `steps`; `nats` are taken off its margin."""
    certify = CertifyConfig(threshold=threshold)
    name = f"{DECIDING_MARGINS[threshold]}_margin"
    rows = [row | {name: row[name] - nats} for row in curve.rows if row["step"] in steps]
    errors = errors_needed(3.0, len(steps))
    certified = next((at for at, row in enumerate(rows) if outcome(certify, row, errors) == Outcome.CERTIFIED), None)
    return Run(curve.corpus, curve.budget, certify, steps, rows, certified)


def whole(curves: Iterable[Curve], threshold: str = "unigram", nats: float = 0.0) -> list[Run]:
    """The curves that were measured against a threshold, at all of their evaluations."""
    name = f"{DECIDING_MARGINS[threshold]}_margin"
    return [make_run(each, SCHEDULES[each.budget][0], threshold, nats) for each in curves if name in each.rows[0]]


# ----------------------------------------------------------------------------------------------------- the report


@dataclass(frozen=True)
class Tally:
    """What a rule does to runs."""

    certifying: int
    false_stops: int
    tokens: int  # of all runs that never certify
    saved: int  # of these

    @property
    def rate(self) -> str:
        """The rate of false stops per run that certifies, with its interval of Clopper and Pearson."""
        if not self.certifying:
            return "0 of 0"
        interval = binomtest(self.false_stops, self.certifying).proportion_ci(0.95, "exact")
        bounds = f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %"
        return f"{self.false_stops} of {self.certifying} ({bounds})"

    @property
    def share(self) -> str:
        return f"{self.saved / self.tokens:.0%}" if self.tokens else ""


def tally(runs: Sequence[Run], rule: Rule) -> Tally:
    certifying = false_stops = tokens = saved = 0
    for run in runs:
        stop = run.stop(rule)
        if run.certified is not None:
            certifying += 1
            false_stops += stop is not None
            continue
        cost = TOKENS_PER_STEP[run.budget]
        tokens += run.num_steps * cost
        saved += 0 if stop is None else (run.num_steps - int(run.rows[stop]["step"])) * cost
    return Tally(certifying, false_stops, tokens, saved)


def compare(groups: dict[str, list[Run]], head: str) -> list[list[str]]:
    """The earlier rule and the rule of now, by groups of runs."""
    rows = [[head, "runs", "false stops, earlier rule", "now", "saved, earlier rule", "now"]]
    for name, runs in groups.items():
        earlier, now = tally(runs, EARLIER), tally(runs, is_hopeless)
        rows.append([name, str(len(runs)), earlier.rate, now.rate, earlier.share, now.share])
    return rows


def by_corpus(curves: Sequence[Curve]) -> list[list[str]]:
    groups = {name: whole(each for each in curves if each.corpus == name) for name in CORPORA}
    return compare(groups | {"all": whole(curves)}, "corpus")


def by_schedule(curves: Sequence[Curve]) -> list[list[str]]:
    groups = {
        f"{budget}, {len(steps)} evaluations": [make_run(each, steps) for each in curves if each.budget == budget]
        for budget, schedules in SCHEDULES.items()
        for steps in schedules
    }
    return compare(groups, "budget")


def by_threshold(curves: Sequence[Curve]) -> list[list[str]]:
    groups = {f"unigram - {nats:g} nats": whole(curves, nats=nats) for nats in HARDER}
    return compare(groups | {name: whole(curves, name) for name in ("oracle", "bigram")}, "threshold")


def rules() -> dict[str, Rule]:
    named: dict[str, Rule] = {"earlier rule": EARLIER, "now": is_hopeless}
    for (rise_unit, unit), share in itertools.product(FALLS, SHARES):
        named[f"{share:.0%} by {unit}, last fall by {rise_unit}"] = partial(misses, rise_unit, unit, share)
    named["context gain < 1e-6, three evaluations left"] = near_the_end_without_context
    for part, gain in itertools.product((1 / 8, 1 / 4, 1 / 2), (1e-7, 1e-6, 1e-5, 1e-4)):
        named[f"context gain < {gain:.0e} after {part:g} of the steps"] = partial(without_context, gain, part)
    return named


def compare_rules(curves: Sequence[Curve]) -> list[list[str]]:
    """Each rule on the corpus that the constants were chosen on, and on the others; every schedule and threshold."""
    runs = [make_run(each, steps) for each in curves for steps in SCHEDULES[each.budget]]
    runs += [run for nats in HARDER for run in whole(curves, nats=nats)]
    runs += [run for name in ("oracle", "bigram") for run in whole(curves, name)]
    seen = [run for run in runs if run.corpus == CALIBRATION]
    unseen = [run for run in runs if run.corpus != CALIBRATION]
    rows = [["rule", f"false stops, {CALIBRATION}", "saved", "the others", "saved"]]
    for name, rule in rules().items():
        tallies = [tally(seen, rule), tally(unseen, rule)]
        cells = [(f"{each.false_stops} of {each.certifying}", each.share) for each in tallies]
        rows.append([name, *cells[0], *cells[1]])
    return rows


def fastest_falls(curves: Sequence[Curve]) -> list[list[str]]:
    """Of each curve with geometric spacing, the fastest fall of the loss once it is near the unigram loss.

    Late linear evaluations are so near each other that a fall by doubling would be noise.
    """
    rows = [["corpus", "curves", "median", "90 %", "99 %", "most", "above 4 %", "most, by doubling"]]
    for corpus in CORPORA:
        evaluation, doubling = [], []
        for curve in (each for each in curves if each.corpus == corpus and each.budget != "linear"):
            pairs = [pair for pair in itertools.pairwise(curve.rows) if pair[0]["tempered_margin"] > -PLATEAU]
            if not pairs:
                continue
            falls = [1 - now["val_loss"] / before["val_loss"] for before, now in pairs]
            lengths = [math.log2(now["step"] / before["step"]) for before, now in pairs]
            evaluation.append(max(falls))
            doubling.append(max(fall / length for fall, length in zip(falls, lengths, strict=True)))
        shown = [f"{100 * np.quantile(evaluation, at):.1f} %" for at in (0.5, 0.9, 0.99, 1)]
        above = f"{sum(fall > 0.04 for fall in evaluation)} of {len(evaluation)}"
        rows.append([corpus, str(len(evaluation)), *shown, above, f"{100 * max(doubling):.1f} %"])
    return rows


def report(curves: Sequence[Curve]) -> str:
    """All tables, as Markdown."""
    parts = [
        f"{len(curves)} recorded curves; against the unigram loss, at all of their evaluations:",
        markdown(by_corpus(curves)),
        "By budget and number of evaluations:",
        markdown(by_schedule(curves)),
        "Harder thresholds:",
        markdown(by_threshold(curves)),
        f"Fastest fall of the loss of each curve from one evaluation to the next (geometric spacing), once it is less "
        f"than {PLATEAU:g} nats above unigram:",
        markdown(fastest_falls(curves)),
        f"Rules, on all budgets and thresholds; chosen on {CALIBRATION}, tested on the other corpora:",
        markdown(compare_rules(curves)),
    ]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stop-curves", type=Path, default=HERE / "stop_curves.csv.gz")
    parser.add_argument("--curves", type=Path, default=HERE / "curves.csv.gz")
    arguments = parser.parse_args()
    print(report(read_curves(arguments.stop_curves, arguments.curves)))


if __name__ == "__main__":
    main()
