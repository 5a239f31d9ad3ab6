"""Columns under the names that earlier versions wrote, and what they are called now."""

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")

RENAMED = {
    "off_unigram": "non_unigram_top1",  # a column of evals.csv and a check of the verdict
    "words": "summary_lines",  # of search.json
    "looks": "evaluation_steps",
    "standard_errors_each_look": "standard_errors_each_evaluation",
}


def current_name(name: str) -> str:
    """What a column is called now."""
    return RENAMED.get(name, name)


def with_current_names(values: Mapping[str, Value]) -> dict[str, Value]:
    """The values of a row under the current names of their columns."""
    return {current_name(name): value for name, value in values.items()}
