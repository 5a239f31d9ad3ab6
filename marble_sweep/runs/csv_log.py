"""Rows of numbers, streamed to a CSV file that can be continued after a kill."""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

from marble_sweep.checks import CheckError
from marble_sweep.runs.files import atomic_write, naming, open_append, sync
from marble_sweep.runs.renamed import current_name


def format_value(value: float) -> str:
    """Nine significant digits, which keep a float32 exactly; whole numbers without a point; NaN as an empty field."""
    if math.isnan(value):
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else f"{value:.9g}"


class CsvLog:
    """A CSV file with a `step` column. Rows reach the file at once and the disk at `sync`."""

    def __init__(
        self,
        path: Path,
        columns: Sequence[str],
        last_step: int = 0,
        *,
        steps: Sequence[int] | None = None,
        sha256: str | None = None,
        later_columns: Collection[str] = (),
    ) -> None:
        """Start the file, or continue it after `last_step`: later rows and half a row are dropped.

        A file of an earlier version keeps its own header, so that its hash stays that of the saved state. It may do
        without any of `later_columns`, which are then not written.
        Raises ValueError where the kept rows are not those of `steps`, or have another hash.
        """
        self.path = path
        self.columns = columns
        kept = (",".join(columns) + "\n").encode()
        if last_step > 0:
            header, *lines = path.read_bytes().split(b"\n")
            self._require_header(header, later_columns)
            rows = self._rows(lines, last_step)
            if steps is not None:
                self._require_steps([step for step, _ in rows], steps)
            kept = header + b"\n" + b"".join(row for _, row in rows)
        self.hash = hashlib.sha256(kept)
        if sha256 is not None and self.hash.hexdigest() != sha256:
            raise CheckError(f"{path}: must be as it was when the state was saved: a row up to that step has changed")
        with atomic_write(path) as temporary:
            temporary.write_bytes(kept)
        self._file: BinaryIO | None = None

    @property
    def file(self) -> BinaryIO:
        if self._file is None:
            self._file = open_append(self.path)
        return self._file

    def _require_header(self, header: bytes, later_columns: Collection[str]) -> None:
        text = header.decode(errors="replace")
        names = [current_name(name) for name in text.split(",")]
        present = [column for column in self.columns if column in names or column not in later_columns]
        if names != present:
            wanted = ",".join(self.columns)
            raise CheckError(f"{self.path}: must begin with the columns {wanted}; it has {text[:200]!r}")
        self.columns = present

    def _rows(self, lines: Sequence[bytes], last_step: int) -> list[tuple[int, bytes]]:
        """The whole rows up to `last_step` with their steps, until the first that cannot be read."""
        position = self.columns.index("step")
        rows: list[tuple[int, bytes]] = []
        for line in lines[:-1]:  # the last one has no newline
            fields = line.split(b",")
            try:
                step, numbers = int(fields[position]), [float(field or "nan") for field in fields]
            except (ValueError, IndexError):
                break
            if len(numbers) != len(self.columns) or step > last_step:
                break
            rows.append((step, line + b"\n"))
        return rows

    def _require_steps(self, steps: Sequence[int], expected: Sequence[int]) -> None:
        if [*steps] == [*expected]:
            return
        missing = next((want for step, want in zip_longest(steps, expected) if step != want), None)
        problem = f"it has {len(steps)}" if missing is None else f"that of step {missing} is not"
        raise CheckError(f"{self.path}: must hold the {len(expected)} rows that the state counts on: {problem}")

    def write(self, rows: Sequence[Mapping[str, float]]) -> None:
        lines = [",".join(format_value(row[column]) for column in self.columns) + "\n" for row in rows]
        text = "".join(lines).encode()
        self.hash.update(text)
        with naming(self.path):
            while text:  # a disk that fills up takes a part
                text = text[self.file.write(text) :]

    def sync(self) -> None:
        with naming(self.path):
            sync(self.file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
