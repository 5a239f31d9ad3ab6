"""Rows as text: a table for the terminal, Markdown, CSV or JSON."""

import csv
import io
import json
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from marble_sweep.metrics.margin import Outcome
from marble_sweep.report.search import COST_COLUMNS
from marble_sweep.report.summary import Comparison, Row
from marble_sweep.runs.run import LIFECYCLE_NUMBERS
from marble_sweep.terminal import printable

FORMATS = ("table", "markdown", "csv", "json")
FORMULA = tuple("=+-@\t\r")  # a text that begins with one is run by spreadsheets, not shown
UNKNOWN, UNDECIDED = "–", "undecided"
DECIMALS = {  # formats of nats, shares and errors; anything else has six significant digits
    "val_loss": ".4f",
    "val_loss_se": ".4f",
    "val_loss_sd": ".4f",
    "val_margin": "+.4f",
    "val_margin_se": ".4f",
    "oracle_margin": "+.4f",
    "oracle_margin_se": ".4f",
    "bigram_margin": "+.4f",
    "bigram_margin_se": ".4f",
    **{f"{name}_margin_{part}": ".1f" for name in ("val", "oracle", "bigram") for part in ("df", "se_factor")},
    "unigram_loss": ".4f",
    "oracle_loss": ".4f",
    "bigram_loss": ".4f",
    "final_loss": ".4f",
    "perplexity": ",.1f",
    "bits_per_byte": ".4f",
    "dead_moving": ".1%",
    "accuracy": ".1%",
    "steps_per_minute": ",.1f",
    "freeze_step": ",.0f",
    **dict.fromkeys(LIFECYCLE_NUMBERS, ",.0f"),
    "n_params": ",.0f",
    "non_embedding": ",.0f",
    "flops_per_token": ",.0f",
    "seconds_per_step": ".3g",
    "difference": "+.4f",  # of pairs
    "df": ".1f",
    "p": ".2g",
    "p_corrected": ".2g",
    "sd_low": ".4f",  # of noise
    "sd_high": ".4f",
    "least_difference": ".4f",
    "seeds_needed": ",.0f",
    "seeds_needed_high": ",.0f",
}


class Table(NamedTuple):
    """A table below that of the runs."""

    columns: Sequence[str]  # that people see; the rows may have more
    rows: list[Row]
    notes: list[str]  # sentences on what was computed, and on what could not be


def default_columns(comparison: Comparison, rows: Sequence[Row], grouped_by: Sequence[str] = ()) -> list[str]:
    """The default columns: which run, what differs, and the results.

    For rows grouped by columns that the user named, those come in place of the run and what differs.
    """
    single = "n" not in rows[0] or (comparison.stopping and not grouped_by)
    seeds = ["seed"] if single and len({row["seed"] for row in rows}) > 1 else []
    repeats = ["n"] if grouped_by or any(row.get("n", 1) > 1 for row in rows) else []
    names = [] if comparison.varied else ["name"]  # the parameters that vary say what the name does
    bits = [] if comparison.comparable else ["bits_per_byte"]
    step = ["step"] if comparison.stopping else []
    certified = [column for name in comparison.thresholds for column in (f"{name}_margin", f"beats_{name}")]
    results = [*step, "val_loss", "val_margin", "beats_unigram", *certified, "beats_bigram", *bits]
    results += ["final_loss", "dead_moving"]
    sizes = ["n_params", *(column for column in COST_COLUMNS if column in rows[0])]
    columns = [*(grouped_by or ["run", *names, *comparison.varied, *seeds]), *repeats, *sizes, *results]
    recorded = [name for name in ("freeze_median", "freeze_last", "n_stragglers") if has_value(rows, name)]
    return list(dict.fromkeys([*columns, "freeze_step", *recorded, "steps_per_minute", "status"]))


def has_value(rows: Sequence[Row], column: str) -> bool:
    """Whether any row has a value there."""
    return any(row.get(column) is not None for row in rows)


def cell(row: Row, column: str) -> str:
    """One value for people, with its standard error or its spread over seeds where it has one."""
    value = row.get(column)
    if value is None:
        return UNDECIDED if _is_undecided(row, column) else UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return printable(", ".join(map(str, value)))
    if isinstance(value, str):
        more = row.get("n", 1) - 1 if column == "run" else 0
        return printable(" ".join(value.split())) + (f" +{more}" if more else "")
    form = DECIMALS.get(column, ".6g")
    error = row.get(f"{column}_se" if column.endswith(("_margin", "difference")) else f"{column}_sd")
    return f"{value:{form}}" + (f" ± {error:{form.lstrip('+')}}" if error is not None else "")


def _is_undecided(row: Row, column: str) -> bool:
    """Whether a column of `beats_…` is empty because neither yes nor no is shown."""
    return column.startswith("beats_") and row.get(f"{column.removeprefix('beats_')}_outcome") == Outcome.UNDECIDED


def legend(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """What ± and other signs in the table stand for."""
    notes = []
    if any(row.get("n", 1) > 1 for row in rows):
        notes.append("A row with n > 1 is a group: mean ± standard deviation over its runs; yes where every run does.")
    if any(len(set(row["seeds"])) < row["n"] for row in rows if "seeds" in row and None not in row["seeds"]):
        notes.append("Some group holds a seed more than once; such runs are copies of each other, not repeats.")
    if "val_margin" in columns:
        notes.append(
            "val_margin is the best unigram loss − held-out loss, ± its standard error over documents or blocks; "
            "at a run's last evaluation it counts all held-out windows of its part, val_loss always the same ones."
        )
    return notes


def render(rows: Sequence[Row], columns: Sequence[str], form: str) -> str:
    """The rows in one of FORMATS; CSV and JSON have bare values."""
    if form == "json":
        bare = [{column: _finite(row.get(column)) for column in columns} for row in rows]
        return json.dumps(bare, indent=2, allow_nan=False)
    if form == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([map(_defused, columns), *([_bare(row.get(column)) for column in columns] for row in rows)])
        return text.getvalue().rstrip("\n")
    rows = with_short_paths(rows)
    cells = [[cell(row, column) for column in columns] for row in rows]
    right = [not any(isinstance(row.get(column), str | list) for row in rows) for column in columns]
    return _markdown(columns, cells, right) if form == "markdown" else _table(columns, cells, right)


def render_table(table: Table, form: str) -> str:
    """A table in one of FORMATS; CSV and JSON have all its columns. Empty, for people, where it has no rows."""
    if form in ("csv", "json"):
        return render(table.rows, list(table.rows[0]) if table.rows else table.columns, form)
    return render(table.rows, table.columns, form) if table.rows else ""


def with_short_paths(rows: Sequence[Row]) -> list[Row]:
    """The rows with `run`, if they have it, relative to the folder that all runs share."""
    if len(rows) < 2 or "run" not in rows[0]:
        return list(rows)
    paths = [os.path.abspath(row["run"]) for row in rows]  # the user may have given some as relative paths
    shared = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [row | {"run": os.path.relpath(path, shared)} for row, path in zip(rows, paths, strict=True)]


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _bare(value: Any) -> Any:
    """A value for CSV; texts are made safe for spreadsheets and terminals."""
    if isinstance(value, list):
        return _defused(" ".join(map(str, value)))
    return _defused(value) if isinstance(value, str) else value


def _defused(text: str) -> str:
    """A text with an apostrophe before it where a spreadsheet would run it as a formula."""
    return printable(f"'{text}" if text.startswith(FORMULA) and not _is_number(text) else text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _table(columns: Sequence[str], cells: list[list[str]], right: list[bool]) -> str:
    """Aligned columns; a long heading is broken at its underscores."""
    heads = [_broken(printable(column)) for column in columns]
    depth = max(map(len, heads))
    heads = [[""] * (depth - len(head)) + head for head in heads]
    lines = [[head[i] for head in heads] for i in range(depth)] + cells
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    text = [
        "  ".join(
            part.rjust(w) if r else part.ljust(w) for part, w, r in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    ]
    text.insert(depth, "  ".join("─" * width for width in widths))
    return "\n".join(text)


def _broken(column: str) -> list[str]:
    """A long heading over several lines, with its underscores, so that the column's name can be read off."""
    if len(column) <= 9:
        return [column]
    *parts, last = column.split("_")
    return [*(f"{part}_" for part in parts), last]


def _markdown(columns: Sequence[str], cells: list[list[str]], right: list[bool]) -> str:
    def line(parts: Sequence[str]) -> str:
        return "| " + " | ".join(map(markdown_text, parts)) + " |"

    return "\n".join([line(columns), line(["--:" if r else "---" for r in right]), *map(line, cells)])


def markdown_text(text: str) -> str:
    """A text escaped so that Markdown shows it as it is: no cell, code, link, emphasis, formula or HTML."""
    return re.sub(r"([\\`*|$\[\]<>&])", r"\\\1", printable(text))
