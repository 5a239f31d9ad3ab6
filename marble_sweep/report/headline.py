"""A comparison in a few sentences."""

from collections import Counter
from collections.abc import Sequence

from marble_sweep.humanize import plain
from marble_sweep.metrics.margin import Outcome
from marble_sweep.report.summary import Comparison, Row, holds_nothing_out
from marble_sweep.runs.status import RunStatus
from marble_sweep.terminal import printable

UNITS = {"val_loss": "nats per token", "final_loss": "nats per token", "bits_per_byte": "bits per byte"}
OBJECTIVES = {"val_loss": "held-out loss", "final_loss": "last training loss", "bits_per_byte": "held-out loss"}
IN_NAME = ("num_layers", "hidden_dim")  # the parameters that a model's name gives


def labels(comparison: Comparison, groups: Sequence[Row]) -> list[str]:
    """A label for each group: the model's name and what else differs, with the directory where that is not unique.

    A group of runs of several names has the parameters alone that they share.
    """
    names = []
    for group in groups:
        in_name = [] if group["name"] is None else IN_NAME
        shown = [column for column in comparison.varied if column not in in_name and group[column] is not None]
        parts = [f"{column}={plain(group[column])}" for column in shown]
        names.append(", ".join(parts if group["name"] is None else [group["name"], *parts]))
    counts = Counter(names)
    return [
        printable(name if counts[name] == 1 else f"{name} ({group['run']})")
        for name, group in zip(names, groups, strict=True)
    ]


def headline(comparison: Comparison, groups: Sequence[Row]) -> list[str]:
    """Sentences on the best, on the smallest that beats unigram, and on what was compared."""
    if comparison.step is None and not comparison.stopping:  # nothing to judge by
        return [_what(comparison, groups)]
    column = comparison.objective
    names = dict(zip(map(id, groups), labels(comparison, groups), strict=True))
    sound = [group for group in groups if group["status"] != RunStatus.DAMAGED]
    measured = [group for group in sound if group[column] is not None]
    sentences = []
    if measured and not comparison.stopping:
        best = min(measured, key=lambda group: group[column])
        text = f"{'Best' if len(measured) > 1 else 'One configuration'}: {names[id(best)]}, "
        spread = best[f"{column}_sd"]
        text += f"{OBJECTIVES[column]} {best[column]:.3f}" + (f" ± {spread:.3f}" if spread is not None else "")
        in_words = f" (perplexity {best['perplexity']:,.1f})" if column == "val_loss" else ""
        sentences.append(f"{text} {UNITS[column]}{in_words}.")
    judged = [group for group in sound if group["unigram_outcome"] is not None]
    winners = [group for group in judged if group["beats_unigram"]]
    undecided = sum(group["unigram_outcome"] == Outcome.UNDECIDED for group in judged)
    if winners:
        smallest = min(winners, key=lambda group: (group["n_params"] or 0, group[column]))
        how_many = f"all {len(judged)}" if len(winners) == len(judged) else f"{len(winners)} of {len(judged)}"
        sentences.append(
            f"Smallest that beats unigram ({how_many} do): {names[id(smallest)]}, {_size(smallest)}, "
            f"by {smallest['val_margin']:.3f} ± {smallest['val_margin_se']:.3f} nats."
        )
    elif judged:
        closest = max(judged, key=lambda group: group["val_margin"])
        sentences.append(
            f"None of {len(judged)} is shown to beat unigram{f' ({undecided} undecided)' if undecided else ''}; "
            f"{names[id(closest)]} comes closest, "
            f"with a margin of {closest['val_margin']:+.3f} ± {closest['val_margin_se']:.3f} nats."
        )
    else:
        why = "Nothing was held out, so it" if all(map(holds_nothing_out, comparison.runs)) else "It"
        sentences.append(f"{why} is not known whether a run beats unigram.")
    return [*sentences, _what(comparison, groups)]


def _size(group: Row) -> str:
    return "of unknown size" if group["n_params"] is None else f"{group['n_params']:,} parameters"


def _what(comparison: Comparison, groups: Sequence[Row]) -> str:
    """How many runs were compared, at which step, and how many did not finish."""
    runs = len(comparison.runs)
    text = f"{runs:,} run{'s' if runs > 1 else ''}"
    if len(groups) < runs:
        text += f" of {len(groups):,} configuration{'s' if len(groups) > 1 else ''}, repeated over seeds"
    if comparison.step is not None:
        text += f", at step {comparison.step:,}"
    unfinished = Counter(row["status"] for row in comparison.rows if row["status"] != RunStatus.FINISHED)
    statuses = [f"{count} {printable(status)}" for status, count in unfinished.items()]
    return f"{text}; {', '.join(statuses)}." if statuses else f"{text}."
