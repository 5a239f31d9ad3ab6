"""Rows of a comparison: filtered, grouped over seeds, sorted.

Plain Python, not pandas: for a thousand rows all of it takes less time than importing pandas.
"""

import difflib
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from marble_sweep.checks import CheckError
from marble_sweep.metrics.margin import Outcome
from marble_sweep.report.summary import Comparison, Row
from marble_sweep.runs.run import LIFECYCLE_NUMBERS
from marble_sweep.runs.status import RunStatus

# Columns whose standard deviation over a group is shown beside the mean, as COLUMN_sd.
WITH_SPREAD = (
    "val_loss",
    "val_margin",
    "oracle_margin",
    "bigram_margin",
    "perplexity",
    "bits_per_byte",
    "accuracy",
    "final_loss",
    "dead_moving",
    "freeze_step",
    *LIFECYCLE_NUMBERS,
    "steps_per_minute",
)
WORST_FIRST = (Outcome.BELOW, None, Outcome.UNDECIDED)  # what a group that differs shows: not more than its worst run
# A mean over the runs that froze would hide the others.
ALL_OR_NONE = ("freeze_step", "freeze_median", "freeze_last", "half_freeze_step")
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
CONDITION = re.compile(r"\s*([\w.]+)\s*(<=|>=|==|!=|=|<|>)\s*(.+?)\s*")
CONSTANTS = {"true": True, "false": False, "none": None, "null": None}


def require_column(option: str, column: str, rows: Sequence[Row]) -> None:
    """Raise ValueError where no row has this column, naming the nearest one."""
    known = list(rows[0]) if rows else []
    if rows and column not in known:
        nearest = difflib.get_close_matches(column, known, n=1, cutoff=0.0)[0]
        raise CheckError(f"{option} = {column}: must be a column; the nearest is {nearest} (all: {', '.join(known)})")


def parse_filter(expression: str) -> list[tuple[str, str, Any]]:
    """`n_params<1e6 and status==finished` as conditions (column, operator, value); nothing in it is run as code.

    Raises ValueError for anything else.
    """
    conditions = []
    for part in re.split(r"\s+and\s+", expression.strip()):
        match = CONDITION.fullmatch(part)
        if not match:
            raise CheckError(f"--filter = {expression}: must be like 'n_params<1e6 and status==finished'")
        conditions.append((match[1], match[2], _value(match[3])))
    return conditions


def matches(row: Row, conditions: Iterable[tuple[str, str, Any]]) -> bool:
    """Whether a row meets all conditions. An unknown value meets only `==none`, and `!=` any other value."""
    for column, symbol, wanted in conditions:
        value = row[column]
        if symbol in ("=", "==", "!="):
            met = OPERATORS[symbol](value, wanted)
        elif value is None:
            met = False
        else:
            try:
                met = OPERATORS[symbol](value, wanted)
            except TypeError:
                raise CheckError(f"--filter = {column}{symbol}{wanted}: must compare like with like") from None
        if not met:
            return False
    return True


def _value(text: str) -> Any:
    """A condition's right side: a number, true, false, none, or text, quoted or not."""
    if text[0] in "'\"" and len(text) > 1 and text[-1] == text[0]:
        return text[1:-1]
    if text.lower() in CONSTANTS:
        return CONSTANTS[text.lower()]
    try:
        return float(text)
    except ValueError:
        return text


def repeats(comparison: Comparison) -> list[str]:
    """The columns that are equal in runs that differ only in their seed.

    Where runs may stop early there are no such repeats: a mean over runs that end at different steps says nothing.
    """
    return ["name", *comparison.varied, "corpus_sha256", *(["run"] if comparison.stopping else [])]


def group_rows(rows: Sequence[Row], by: Sequence[str]) -> list[Row]:
    """One row for all rows that are equal in the columns `by`: means, with the standard deviation as COLUMN_sd.

    `n` counts the runs. A standard error is the mean of the runs' own: they share the held-out windows.
    Damaged runs are never grouped with others, so that they change no mean.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["status"] == RunStatus.DAMAGED, *(row[column] for column in by)), []).append(row)
    return [_merge(group) for group in groups.values()]


def _merge(group: list[Row]) -> Row:
    first, n = group[0], len(group)
    merged: Row = {"run": first["run"], "n": n}
    for column in first:
        if column in ("run", "status", "damage"):
            continue
        values = [row[column] for row in group]
        known = [value for value in values if value is not None]
        if not known or (column in ALL_OR_NONE and len(known) < n):
            merged[column] = None
        elif all(value == values[0] for value in values):
            merged[column] = values[0]
        elif column.endswith("_outcome"):
            merged[column] = next((outcome for outcome in WORST_FIRST if outcome in values), None)
        elif isinstance(known[0], bool):
            merged[column] = False if False in known else None  # yes needs all runs; one no decides
        elif column in WITH_SPREAD or column.endswith("_se"):
            merged[column] = _mean(known)
        else:
            merged[column] = None  # a parameter or a text that differs within the group
        if column in WITH_SPREAD:
            merged[f"{column}_sd"] = None if merged[column] is None else _standard_deviation(known)
    counts = Counter(row["status"] for row in group)
    merged["status"] = first["status"] if len(counts) == 1 else ", ".join(f"{k} {name}" for name, k in counts.items())
    merged["runs"] = [row["run"] for row in group]
    merged["seeds"] = [row["seed"] for row in group]
    merged["damage"] = "; ".join(row["damage"] for row in group if row["damage"]) or None
    return merged


def _mean(values: Sequence[float]) -> float | None:
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(np.mean(values))
    return None if math.isnan(mean) else mean  # the mean of inf and -inf is NaN


def _standard_deviation(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        deviation = float(np.std(values, ddof=1))
    return deviation if math.isfinite(deviation) else None


def sort_rows(rows: Sequence[Row], column: str, *, descending: bool = False) -> list[Row]:
    """Rows sorted by one column; rows without a value come last either way."""
    known = [row for row in rows if row[column] is not None]
    known.sort(key=lambda row: _sort_key(row[column]), reverse=descending)
    return known + [row for row in rows if row[column] is None]


def _sort_key(value: Any) -> tuple[Any, ...]:
    """Numbers, then texts, then lists: a column may hold all three."""
    if isinstance(value, list):
        return 2, [_sort_key(item) for item in value]
    if value is None or isinstance(value, str):
        return 1, value or ""
    return 0, value
