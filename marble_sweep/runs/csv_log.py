"""Rows of numbers, streamed to a CSV file that can be continued after a kill."""

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from marble_sweep.runs.files import atomic_write


def format_value(value: float) -> str:
    """Nine significant digits, which a float32 survives; whole numbers without a point; NaN empty."""
    if math.isnan(value):
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else f"{value:.9g}"


class Recorder:
    """One CSV file with a `step` column. Rows reach the file at once and the disk at `sync`."""

    def __init__(self, path: Path, columns: Sequence[str], last_step: int = 0) -> None:
        """Start the file, or continue it after `last_step`: later rows, or half a row, are dropped."""
        kept: list[list[str]] = []
        if last_step > 0:
            with path.open(newline="", encoding="utf-8") as file:
                rows = csv.reader(file)
                found = next(rows, [])
                if found != [*columns]:
                    raise ValueError(
                        f"{path}: must begin with the columns {','.join(columns)}; it has {','.join(found)}"
                    )
                place = columns.index("step")
                kept = [row for row in rows if len(row) == len(columns) and int(row[place]) <= last_step]
        with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *kept])
        self.columns = columns
        self.file = path.open("a", newline="", encoding="utf-8")
        self.writer = csv.writer(self.file, lineterminator="\n")

    def write(self, rows: Sequence[Mapping[str, float]]) -> None:
        self.writer.writerows([format_value(row[column]) for column in self.columns] for row in rows)
        self.file.flush()

    def sync(self) -> None:
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()
