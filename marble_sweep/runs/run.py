"""What a run directory holds, read cheaply: a finished run's, a running one's, or what a crash left of it."""

import csv
import functools
import json
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

# The C loader, where PyYAML was built with it, reads a thousand configs in two seconds instead of twenty.
YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Run:
    """One run directory. Small files are read at once, metrics.csv only where asked and as little as needed."""

    path: Path
    config: dict[str, Any]  # dotted key: value
    metadata: dict[str, Any]
    evals: list[dict[str, float]]  # the rows of evals.csv

    @classmethod
    def read(cls, path: Path) -> "Run":
        """Read the run in `path`; files that are missing or half written count as far as they go."""
        return cls(path, _read_config(path / "config.yaml"), _read_json(path / "metadata.json"), _read_evals(path))

    @property
    def status(self) -> str:
        """As metadata.json has it; `started` before there is one."""
        return str(self.metadata.get("status", "started"))

    @property
    def name(self) -> str:
        """The model's, as 4L128D, or the directory's where the run says nothing."""
        return str(self.metadata.get("name") or self.config.get("model.name") or self.path.name)

    @property
    def baselines(self) -> dict[str, float]:
        """Loss in nats per token of `unigram_fitted`, `unigram_oracle`, `bigram`; empty where unknown."""
        found: dict[str, Any] = self.metadata.get("baselines") or {}
        return {name: value for name, value in found.items() if name != "measured_on" and value is not None}

    @property
    def corpus(self) -> dict[str, Any]:
        return self.metadata.get("corpus") or {}

    @functools.cached_property
    def eval_at(self) -> dict[int, dict[str, float]]:
        """The evaluations by step."""
        return {int(row["step"]): row for row in self.evals}

    @functools.cached_property
    def steps(self) -> "StepFile":
        return StepFile(self.path / "metrics.csv")


class StepFile:
    """metrics.csv, in which a row is found by bisection instead of reading the rest."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @functools.cached_property
    def last_step(self) -> int:
        """The last whole row's step, 0 where there is none."""
        text, _, start, end = self._read()
        return _step(text, _line_start(text, start, end - 1)) if end > start else 0

    def row(self, step: int) -> dict[str, float]:
        """The row of `step`; empty where there is none."""
        text, columns, start, end = self._read()
        end = _end_of_step(text, start, end, step)
        if end <= start:
            return {}
        fields = text[_line_start(text, start, end - 1) : end].decode().strip().split(",")
        row = _numbers(columns, fields)
        return row if row.get("step") == step else {}

    def step_after_last(self, column: str, last_step: int) -> int | None:
        """The first step after the last, up to `last_step`, with `column` > 0.

        None where it still is at `last_step`, or where a value was never measured. Reads backwards, so a
        run that never stops costs one row.
        """
        text, columns, start, end = self._read()
        if column not in columns:
            return None
        place = columns.index(column)
        end = _end_of_step(text, start, end, last_step)
        stopped = None
        while end > start:
            begin = _line_start(text, start, end - 1)
            fields = text[begin : end - 1].split(b",", place + 1)
            value = float(fields[place] or math.nan)
            if math.isnan(value):
                return None
            if value > 0:
                break
            stopped, end = int(fields[0]), begin
        return stopped

    def _read(self) -> tuple[mmap.mmap | bytes, list[str], int, int]:
        """The bytes, of which only the pages looked at are read; the columns; where whole rows start and end."""
        try:
            with self.path.open("rb") as file:
                text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileNotFoundError, ValueError):  # an empty file cannot be mapped
            return b"", [], 0, 0
        start = text.find(b"\n") + 1
        return text, text[:start].decode().strip().split(","), start, text.rfind(b"\n") + 1


def _line_start(text: mmap.mmap | bytes, start: int, newline: int) -> int:
    """Where the line that ends with the newline at `newline` begins."""
    return max(start, text.rfind(b"\n", start, newline) + 1)


def _step(text: mmap.mmap | bytes, line_start: int) -> int:
    return int(text[line_start : text.find(b",", line_start)])


def _end_of_step(text: mmap.mmap | bytes, start: int, end: int, step: int) -> int:
    """Where the rows up to `step` end, among the rows in text[start:end], which are in the order of their steps."""
    low, high = start, end  # every row before low is wanted, none from high on
    while low < high:
        middle = _line_start(text, low, text.find(b"\n", (low + high) // 2, high))
        if _step(text, middle) <= step:
            low = text.find(b"\n", middle, high) + 1
        else:
            high = middle
    return low


def _read_evals(path: Path) -> list[dict[str, float]]:
    try:
        text = (path / "evals.csv").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    columns, *rows = list(csv.reader(text[: text.rfind("\n") + 1].splitlines())) or [[]]
    return [_numbers(columns, row) for row in rows]


def _numbers(columns: list[str], fields: list[str]) -> dict[str, float]:
    """A row's numbers by column; an empty field is NaN."""
    return {column: float(field or math.nan) for column, field in zip(columns, fields, strict=False)}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _read_config(path: Path) -> dict[str, Any]:
    """A config's values by dotted key; nothing where it is missing or no YAML mapping."""
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=YAML_LOADER)  # a safe loader either way
    except (FileNotFoundError, yaml.YAMLError):
        return {}
    return dict(flat(found, "")) if isinstance(found, dict) else {}


def flat(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """The values of a nested mapping with their dotted keys."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
