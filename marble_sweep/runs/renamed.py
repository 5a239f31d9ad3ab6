"""Names that earlier versions wrote into run directories, and what they are called now."""

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")

RENAMED = {
    "off_unigram": "non_unigram_top1",  # a column of evals.csv and a check of the verdict
}


def current_name(name: str) -> str:
    """What a column, check or setting is called now."""
    return RENAMED.get(name, name)


def with_current_names(values: Mapping[str, Value]) -> dict[str, Value]:
    """The same values under the names of now."""
    return {current_name(name): value for name, value in values.items()}
