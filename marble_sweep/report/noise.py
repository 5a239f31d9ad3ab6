"""The noise floor of each setting: how far its seeds spread, and what that allows to tell apart."""

from collections.abc import Sequence

from marble_sweep.report.headline import labels
from marble_sweep.report.rows import group_rows
from marble_sweep.report.summary import Comparison, Row
from marble_sweep.report.table import Table
from marble_sweep.uncertainty.seeds import (
    CONFIDENCE,
    MOST_SEEDS,
    POWER,
    deviation_interval,
    least_difference,
    seeds_needed,
)

COLUMNS = ("setting", "n", "val_loss", "sd_low", "sd_high", "val_loss_se", "least_difference")
NEEDED = ("seeds_needed", "seeds_needed_high")


def noise_floor(comparison: Comparison, groups: Sequence[Row], difference: float | None = None) -> Table:
    """A row for each of the grouped rows with two or more seeds: the spread of its held-out loss, in nats per token.

    With a `difference` that is wished for it also has the seeds a side to see it, by the spread and by the upper end of
    the spread's interval; None where no number of seeds in reach suffices. Copies of a run count once.
    """
    rows = []
    measured = {row["run"]: row for row in comparison.rows if row["val_loss"] is not None}
    for label, group in zip(labels(comparison, groups), groups, strict=True):
        runs = [measured[run] for run in group.get("runs", []) if run in measured]
        distinct = {(run["seed"], run["val_loss"]): run for run in runs}
        seeds = group_rows(list(distinct.values()), [])  # one row, as damaged runs are in groups of their own
        if not seeds or (deviation := seeds[0]["val_loss_sd"]) is None:
            continue
        num_seeds = seeds[0]["n"]
        low, high = deviation_interval(deviation, num_seeds)
        row: Row = {"setting": label, "n": num_seeds, "val_loss": seeds[0]["val_loss"], "val_loss_sd": deviation}
        row |= {"sd_low": low, "sd_high": high, "val_loss_se": seeds[0]["val_loss_se"]}
        row["least_difference"] = least_difference(deviation, num_seeds)
        if difference is not None:
            row |= {name: seeds_needed(difference, sd) for name, sd in zip(NEEDED, (deviation, high), strict=True)}
        rows.append(row)
    if not rows:
        return Table(COLUMNS, [], ["No noise to tell: no setting has two seeds or more with an evaluation."])
    return Table(COLUMNS + (NEEDED if difference is not None else ()), rows, _explain(difference))


def _explain(difference: float | None) -> list[str]:
    notes = [
        f"Noise of the held-out loss: mean ± standard deviation over n seeds, sd_low to sd_high its {CONFIDENCE:.0%} "
        "interval.",
        "val_loss_se is the error of other text. Settings on the same windows share most of it; --pairs tests what is "
        "left.",
        f"Two settings of n seeds each differ beyond the noise of seeds from least_difference on, at {CONFIDENCE:.0%}.",
    ]
    if difference is not None:
        notes.append(
            f"seeds_needed a side show a difference of {difference:g} at {CONFIDENCE:.0%} with a power of {POWER:.0%}; "
            f"seeds_needed_high if the spread is sd_high. – stands for more than {MOST_SEEDS:,}."
        )
    return notes
