"""Columns under the names that earlier versions wrote, what they are called now, and those that are new."""

from collections.abc import Mapping
from typing import Any, TypeVar

Value = TypeVar("Value")

RENAMED = {
    "off_unigram": "non_unigram_top1",  # a column of evals.csv and a check of the verdict
    "words": "summary_lines",  # of search.json
    "looks": "evaluation_steps",
    "standard_errors_each_look": "standard_errors_each_evaluation",
}
# What columns of evals.csv begin with that are of all windows of the held-out part, not of the evaluated ones alone.
OF_ALL_WINDOWS = "all_"
NUM_ALL_WINDOWS = "all_windows"  # how many those are
MARGINS = tuple(f"{name}_margin" for name in ("unigram", "oracle", "bigram", "tempered", "trigram", "fourgram"))
ON_ALL_WINDOWS = ("val_loss", *MARGINS, "context_gain")
PARTS = ("", "_se", "_df", "_se_factor", "_clusters", "_by_document")  # of a mean: its value, and what that is worth
# Columns of evals.csv that files of earlier versions lack. They are the last ones.
ADDED_COLUMNS = (
    *(f"{name}_margin{part}" for name in ("tempered", "trigram", "fourgram") for part in PARTS),
    NUM_ALL_WINDOWS,
    *(f"{OF_ALL_WINDOWS}{name}{part}" for name in ON_ALL_WINDOWS for part in PARTS),
)

# Settings that a config.yaml lacks where they hold their defaults, and these: every run has them.
ADDED_SETTINGS: dict[str, Any] = {
    "model.tied": True,
    "model.embedding_std": None,
    "optimizer.grad_clip": None,
    "recorder.name": "none",
}


def current_name(name: str) -> str:
    """What a column is called now."""
    return RENAMED.get(name, name)


def with_current_names(values: Mapping[str, Value]) -> dict[str, Value]:
    """The values of a row under the current names of their columns."""
    return {current_name(name): value for name, value in values.items()}


def with_added_columns(row: Mapping[str, Value], missing: Value) -> dict[str, Value]:
    """A row of evals.csv under current names, with `missing` in the columns that an earlier version did not measure."""
    return with_current_names(row) | {column: row.get(column, missing) for column in ADDED_COLUMNS}
