"""One HTML page that compares runs. It is one file and opens offline."""

import base64
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs

from marble_sweep.report.curves import shorten
from marble_sweep.report.headline import OBJECTIVES, UNITS, headline, labels
from marble_sweep.report.pairs import compare_pairs
from marble_sweep.report.rows import group_rows, repeats, sort_rows
from marble_sweep.report.search import can_be_drawn, read_search
from marble_sweep.report.summary import Comparison, Row
from marble_sweep.report.table import Table, cell, default_columns, with_short_paths
from marble_sweep.runs.files import write_text
from marble_sweep.runs.run import Run
from marble_sweep.terminal import printable

CURVES = {  # titles by column of metrics.csv
    "loss": "Training loss (nats per token)",
    "dead_moving": "Dead tokens moving in a step (share)",
    "dead_early": "Early: jumps of many cells",
    "dead_midlife": "Midlife: local but vigorous",
    "dead_late": "Late: to a neighbouring cell",
    "dead_frozen": "Frozen: no motion in a step",
    "h_autocorr": "Mean hidden state: cosine with one step before",
    "h_autocorr_lag": "Mean hidden state: cosine with many steps before",
    "h_spread": "Hidden states' spread around their mean (1 − cosine)",
}
SECTIONS = (  # title, what to look for, curves
    ("Loss", "Held-out loss is dotted where it was measured.", ["val_loss", "loss"]),
    ("Dead tokens", "They move at first, then slow down: the freeze.", ["dead_moving"]),
    (
        "Regimes of the dead tokens on the bfloat16 lattice",
        "Shares of the dead tokens; in each step the four add up to 1.",
        ["dead_early", "dead_midlife", "dead_late", "dead_frozen"],
    ),
    (
        "Hidden state",
        "Spread rises once a model leaves the unigram plateau; a cosine below 1 means that the mean still turns.",
        ["h_spread", "h_autocorr", "h_autocorr_lag"],
    ),
)
TITLES = {"val_loss": "Held-out loss (nats per token)"} | CURVES
MAX_POINTS = 150  # of one curve
ALL_POINTS = 20_000  # of one column over all runs: more are slow to draw, and make the page large
OFF_SCALE = 1.2  # a diverging loss is drawn up to this many times the first loss, or unigram's if that is higher


def write_page(comparison: Comparison, path: Path) -> None:
    """Write the page, whole or not at all. Raises OSError where it cannot be written."""
    groups = group_rows(comparison.rows, repeats(comparison))
    groups = with_short_paths(sort_rows(groups, comparison.objective))
    data = page_data(comparison, groups)
    columns = default_columns(comparison, groups)
    columns.insert(columns.index("val_loss") + 1, "perplexity")
    environment = Environment(
        loader=PackageLoader("marble_sweep.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    (search, damages), search_image = read_search(comparison.runs), None
    if search is not None and can_be_drawn(search):
        from marble_sweep.report.frontier import frontier_image  # late: Matplotlib, which no other page needs

        search_image = frontier_image(search)
    page = environment.get_template("page.html.j2").render(
        headline=headline(comparison, groups) if search is None else list(map(printable, search["summary_lines"])),
        search_image=search_image,
        is_frontier=search is not None and search.get("question") == "frontier",
        ranked=not comparison.stopping,
        notes=list(map(printable, comparison.notes)),
        damages=damages + comparison.damages,
        columns=list(map(printable, columns)),
        rows=[
            [(cell(group, column), sort_value(group.get(column))) for column in columns if column in group]
            for group in groups
        ],
        pairs=None if comparison.stopping or len(groups) < 2 else page_table(compare_pairs(comparison, groups)),
        data=data,
        sections=SECTIONS,
        titles=TITLES,
        plotly=get_plotlyjs(),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)


def page_table(table: Table) -> dict[str, Any]:
    """A table as the page shows it."""
    rows = [[cell(row, column) for column in table.columns] for row in table.rows]
    return {"columns": table.columns, "rows": rows, "notes": list(map(printable, table.notes))}


def sort_value(value: Any) -> str:
    """The value by which the page sorts a cell; empty where unknown."""
    if value is None:
        return ""
    return str(float(value)) if isinstance(value, bool | int | float) else printable(str(value))


def page_data(comparison: Comparison, groups: Sequence[Row]) -> dict[str, Any]:
    """The data that the page's script draws."""
    objective = comparison.objective
    baselines = {}
    if comparison.comparable and objective != "bits_per_byte":
        known = [row for row in comparison.rows if row["unigram_loss"] is not None]
        baselines = {name: known[0][f"{name}_loss"] for name in ("unigram", "bigram")} if known else {}
    num_points = max(2, min(MAX_POINTS, ALL_POINTS // len(comparison.runs)))
    group_of = {path: index for index, group in enumerate(groups) for path in group["runs"]}
    return {
        "objective": f"{OBJECTIVES[objective]} ({UNITS[objective]})".capitalize(),
        "step": comparison.step,
        "baselines": baselines,
        "parameters": list(map(printable, comparison.varied)),
        "groups": [
            {
                "label": label,
                "parameters": [finite(group[column]) for column in comparison.varied],
                "n_params": group["n_params"],
                "value": finite(group[objective]),
                "spread": group[f"{objective}_sd"],
                "freeze": group["freeze_median"],
            }
            for label, group in zip(labels(comparison, groups), groups, strict=True)
        ],
        "runs": [
            {"group": group_of[row["run"]]} | run_curves(run, num_points)
            for run, row in zip(comparison.runs, comparison.rows, strict=True)
        ],
    }


def finite(value: Any) -> Any:
    """A value as JSON allows it: a browser rejects the data as a whole where they hold an infinity."""
    if isinstance(value, str):
        return printable(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run_curves(run: Run, num_points: int) -> dict[str, Any]:
    """A run's curves: `first` and `last` step and, by column, packed values; `evals` as steps and losses."""
    evals = run.evals[:: max(1, len(run.evals) // num_points)]
    held_out = {
        "steps": [int(row["step"]) for row in evals],
        "losses": [round(row["val_loss"], 5) if np.isfinite(row["val_loss"]) else None for row in evals],
    }
    steps = run.steps.table(["step", *CURVES])
    if not len(steps):
        return {"evals": held_out, "steps": None, "curves": {}}
    scale = OFF_SCALE * max(np.nan_to_num(steps["loss"].iloc[0]), run.baselines.get("unigram_fitted", 0.0))
    steps["loss"] = steps["loss"].where(steps["loss"] <= scale)
    columns = [column for column in CURVES if column in steps]
    with np.errstate(over="ignore", invalid="ignore"):  # values of any size may stand in a file
        short = shorten(steps[["step", *columns]].to_numpy(dtype=np.float64).T, num_points)
        packed = {column: pack(values) for column, values in zip(["step", *columns], short, strict=True)}
    return {"evals": held_out, "steps": packed.pop("step"), "curves": packed}


def pack(values: NDArray[np.float64]) -> dict[str, Any]:
    """(num_points,) values as 16-bit steps between `low` and `high`; the largest stands for NaN."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    scaled = (values - low) / (high - low) if high > low else np.where(np.isfinite(values), 0.0, np.nan)
    codes = np.where(np.isfinite(scaled), np.round(np.nan_to_num(scaled) * 65534), 65535).astype("<u2")
    return {"low": low, "high": high, "codes": base64.b64encode(codes.tobytes()).decode()}
