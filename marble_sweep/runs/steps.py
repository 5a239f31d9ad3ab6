"""The two CSV files of a run: metrics.csv, checked whole but parsed only where needed, and evals.csv."""

import functools
import io
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from marble_sweep.runs.damage import DamageError, open_file, read_bytes
from marble_sweep.runs.renamed import current_name, with_added_columns

if TYPE_CHECKING:
    import pandas as pd

PART_BYTES = 1 << 17  # fits a core's cache
TAIL_BYTES = 1 << 13  # holds several rows
MAX_DIGITS = 15  # of a step
NAMES = b"abcdefghijklmnopqrstuvwxyz0123456789_,"
COMMA, NEWLINE, ZERO = b",\n0"
SIGNS = b",\n.-+einf"  # what stands between digits in rows of numbers
KINDS = np.zeros(256, dtype=np.uint8)  # of characters; 0: stands in no number
KINDS[list(SIGNS)] = [1, 1, 2, 3, 3, 4, 5, 6, 7]  # 1: comma or newline, 2: point, 3: plus or minus, then e, i, n, f
SEPARATOR = 1
DIRECTLY, DIGITS, EITHER = (0,), (1,), (0, 1)  # without digits between them, with digits, either way
FOLLOWS: dict[int, dict[int, tuple[int, ...]]] = {  # by kind: the kinds that may follow it, and how
    1: {1: EITHER, 2: DIGITS, 3: DIRECTLY, 4: DIGITS, 5: DIRECTLY},
    2: {1: EITHER, 4: EITHER},
    3: {1: DIGITS, 2: DIGITS, 4: DIGITS, 5: DIRECTLY},
    4: {1: DIGITS, 3: DIRECTLY},
    5: {6: DIRECTLY},
    6: {7: DIRECTLY},
    7: {1: DIRECTLY},
}
ALLOWED = bytes(  # pairs: 16 * kind + 2 * following kind + whether there are digits between
    16 * kind + 2 * follower + gap
    for kind, followers in FOLLOWS.items()
    for follower, gaps in followers.items()
    for gap in gaps
)
AFTER_EXPONENT = (b"\4\3\2", b"\4\3\4")  # as in e-1.5 and e-1e: allowed as pairs, but not in a row of three


class Part(NamedTuple):
    """Some whole rows of a file."""

    offset: int
    num_bytes: int
    first_step: int


class Survey(NamedTuple):
    """The layout of a file, all of whose rows were checked."""

    columns: list[str]
    parts: list[Part]
    num_rows: int
    damage: str | None  # what is wrong; a damaged file has no parts


class StepFile:
    """metrics.csv: row k must be that of step k, so any row can be read without parsing the others.

    A damaged file counts as empty. Half a last row does not count: the run may be writing it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[int, dict[str, float]] = {}
        self._stops: dict[tuple[str, int], int | None] = {}

    @property
    def damage(self) -> str | None:
        """What is wrong with the file; None where nothing is."""
        return self._survey.damage

    @property
    def num_rows(self) -> int:
        return self._survey.num_rows

    @functools.cached_property
    def last_step(self) -> int:
        """The last whole row's step, read from the end of the file alone; 0 where there is none."""
        return last_step(self.path)

    def row(self, step: int) -> dict[str, float]:
        """The row of `step`; empty where there is none."""
        if step not in self._rows:
            self._rows[step] = self._read_row(step)
        return self._rows[step]

    def step_after_last(self, column: str, last_step: int) -> int | None:
        """The step after the last one, up to `last_step`, at which `column` is > 0.

        None where it is > 0 at `last_step`, or where a value was not measured.
        """
        if (column, last_step) not in self._stops:
            self._stops[column, last_step] = self._find_stop(column, last_step)
        return self._stops[column, last_step]

    def table(self, columns: Collection[str] | None = None) -> "pd.DataFrame":
        """All rows, with all columns or those of `columns` that the file has; empty where the file is damaged."""
        import pandas as pd  # late: the table in a terminal needs no pandas

        known = [column for column in self._survey.columns if columns is None or column in columns]
        parts = [b"\n", *map(self._read, self._survey.parts)]
        if self.damage or len(parts) == 1:
            return pd.DataFrame(columns=known, dtype=np.float64)
        header = ",".join(self._survey.columns).encode("ascii")
        return pd.read_csv(io.BytesIO(header + b"".join(parts)), usecols=known, dtype=np.float64)[known]

    def text_without(self, columns: Collection[str], num_rows: int) -> bytes:
        """The first `num_rows` rows as written, without `columns`, each after a newline; quicker than `table`."""
        names = self._survey.columns
        text = np.frombuffer(b"\n" + b"".join(map(self._read, self._survey.parts))[:-1], np.uint8)
        begins = np.flatnonzero((text == COMMA) | (text == NEWLINE))
        num_rows = min(num_rows, len(begins) // len(names))  # fewer where the file was cut since it was checked
        begins = np.append(begins, len(text))[: num_rows * len(names) + 1]
        kept = np.tile([name not in columns for name in names], num_rows)
        return text[: begins[-1]][np.repeat(kept, np.diff(begins))].tobytes()

    @functools.cached_property
    def _survey(self) -> Survey:
        try:
            with open_file(self.path) as file:
                return survey(file)
        except FileNotFoundError:
            return Survey([], [], 0, None)
        except DamageError as error:
            return Survey([], [], 0, str(error))
        except OSError as error:
            return Survey([], [], 0, f"cannot be read ({error.strerror})")

    def _read_row(self, step: int) -> dict[str, float]:
        part = next((part for part in reversed(self._survey.parts) if part.first_step <= step), None)
        if part is None or not 1 <= step <= self.num_rows:
            return {}
        text = self._read(part)
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == NEWLINE)
        index = step - part.first_step
        if index >= len(ends):
            return {}
        line = text[ends[index - 1] + 1 if index else 0 : ends[index]]
        return numbers(self._survey.columns, line)

    def _find_stop(self, column: str, last_step: int) -> int | None:
        if column not in self._survey.columns or not self.row(last_step):
            return None
        if self.row(last_step)[column] > 0:  # the usual case costs one row
            return None
        position = self._survey.columns.index(column)
        for part in reversed(self._survey.parts):
            if part.first_step > last_step:
                continue
            num_rows = last_step - part.first_step + 1
            for index, value in not_zero(self._read(part), len(self._survey.columns), position, num_rows):
                if math.isnan(value):
                    return None
                if value > 0:
                    return part.first_step + index + 1
        return 1

    def _read(self, part: Part) -> bytes:
        try:
            with open_file(self.path) as file:
                file.seek(part.offset)
                text = file.read(part.num_bytes)
        except (OSError, DamageError):
            return b""
        return text if len(text) == part.num_bytes else b""  # removed or cut since it was checked


def survey(file: BinaryIO) -> Survey:
    """Check all rows. Raises DamageError that names the first wrong line."""
    header = file.readline(PART_BYTES)
    if not header.endswith(b"\n"):
        check_half_header(header)
        return Survey([], [], 0, None)
    columns = column_names(header, "loss")
    parts, num_rows, offset = [], 0, len(header)
    while chunk := file.read(PART_BYTES):
        text = chunk[: chunk.rfind(b"\n") + 1]
        if text:
            parts.append(Part(offset, len(text), num_rows + 1))
            num_rows += check_rows(text, len(columns), num_rows + 1)
            offset += len(text)
            file.seek(offset)
        elif len(chunk) == PART_BYTES:
            raise DamageError(f"line {num_rows + 2}: must be a row of {len(columns)} numbers")
        else:  # half a row
            check_characters(chunk, num_rows + 2)
    return Survey(columns, parts, num_rows, None)


def check_half_header(header: bytes) -> None:
    """Raise DamageError for an unfinished first line that cannot become a header."""
    if header.translate(None, NAMES):
        raise DamageError("line 1: must be the names of the columns")


def column_names(header: bytes, required: str) -> list[str]:
    """The current names of the columns in a first line.

    Raises DamageError where `step` is not the first or `required` is not among them.
    """
    columns = [current_name(name) for name in header.decode("ascii", errors="replace").strip().split(",")]
    if columns[0] != "step" or required not in columns or len(set(columns)) < len(columns):
        raise DamageError(f"line 1: must be the names of the columns, step first and {required} among them")
    return columns


def check_characters(text: bytes, first_line: int) -> None:
    """Raise DamageError, naming the line, for a character that stands in no number."""
    if wrong := text.translate(None, b"0123456789" + SIGNS)[:1]:
        line = first_line + text.count(b"\n", 0, text.index(wrong))
        raise DamageError(f"line {line}: must be numbers; it holds {wrong!r}")


def find_separators(text: bytes, first_line: int) -> NDArray[np.int64]:
    """The positions of the commas and line ends in a text of whole rows.

    Raises DamageError, naming the line, where a field is neither empty nor a number.
    """
    bytes_ = np.frombuffer(text, np.uint8)
    positions = np.flatnonzero(bytes_ - np.uint8(ZERO) > 9)  # what is below 0 wraps around
    kinds = KINDS.take(bytes_.take(positions))
    pairs = kinds * np.uint8(2)
    pairs[1:] += kinds[:-1] * np.uint8(16)
    pairs[1:] += positions[1:] - positions[:-1] > 1
    pairs[:1] += np.uint8(16 * SEPARATOR) + (positions[:1] > 0)  # a text begins as after a separator
    sequence = kinds.tobytes()
    if pairs.tobytes().translate(None, ALLOWED) or any(three in sequence for three in AFTER_EXPONENT):
        check_characters(text, first_line)
        for line, row in enumerate(text.split(b"\n"), start=first_line):
            for field in row.split(b","):
                if not _is_number(field):
                    raise DamageError(f"line {line}: must be numbers; it holds {field!r}")
    return positions.compress(kinds == SEPARATOR)


def _is_number(field: bytes) -> bool:
    try:
        float(field or math.nan)
    except ValueError:
        return False
    return True


def check_rows(text: bytes, num_columns: int, first_step: int) -> int:
    """The number of rows in a text of whole rows. Raises DamageError where a row is not that of the next step."""
    bytes_ = np.frombuffer(text, np.uint8)
    separators = find_separators(text, first_step + 1)
    is_end = bytes_[separators] == NEWLINE
    if not (is_end[num_columns - 1 :: num_columns].all() and is_end.sum() * num_columns == len(separators)):
        counts = np.diff(np.flatnonzero(is_end), prepend=-1)
        at = int(np.flatnonzero(counts != num_columns)[0])
        raise DamageError(f"line {first_step + at + 1}: must have {num_columns} fields; it has {counts[at]}")
    field_ends = separators.reshape(-1, num_columns)
    begins = np.concatenate([[0], field_ends[:-1, -1] + 1])
    steps = whole_numbers(bytes_, begins, field_ends[:, 0])
    if len(wrong := np.flatnonzero(steps != first_step + np.arange(len(steps)))):
        at = int(wrong[0])
        field = text[begins[at] : field_ends[at, 0]].decode("ascii") or "empty"
        raise DamageError(f"line {first_step + at + 1}: must be step {first_step + at}; it is {field}")
    return len(steps)


def whole_numbers(bytes_: NDArray[np.uint8], begins: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """The whole numbers in the fields (num_rows,); -1 for a field that is not one."""
    lengths = ends - begins
    values = np.zeros(len(begins), dtype=np.int64)
    is_number = (lengths > 0) & (lengths <= MAX_DIGITS)
    for offset in range(min(MAX_DIGITS, int(lengths.max()))):
        inside = lengths > offset
        digits = bytes_[np.where(inside, begins + offset, 0)].astype(np.int64) - ZERO
        is_number &= ~inside | ((digits >= 0) & (digits <= 9))
        values = np.where(inside, values * 10 + digits, values)
    return np.where(is_number, values, -1)


def not_zero(text: bytes, num_columns: int, position: int, num_rows: int) -> Iterator[tuple[int, float]]:
    """The indices and values, last row first, of those of the first `num_rows` rows whose column is not a plain 0.

    `position` is the column's, >= 1.
    """
    bytes_ = np.frombuffer(text, np.uint8)
    commas = np.flatnonzero(bytes_ == COMMA).reshape(-1, num_columns - 1)
    begins = commas[:, position - 1] + 1
    ends = commas[:, position] if position < num_columns - 1 else np.flatnonzero(bytes_ == NEWLINE)
    zeros = (bytes_[begins] == ZERO) & (ends - begins == 1)
    for index in np.flatnonzero(~zeros[:num_rows])[::-1].tolist():
        yield index, float(text[begins[index] : ends[index]] or math.nan)


def numbers(columns: list[str], line: bytes) -> dict[str, float]:
    """A row's numbers by column; an empty field is NaN. Raises ValueError for a field that is not a number."""
    return {column: float(field or math.nan) for column, field in zip(columns, line.strip().split(b","), strict=True)}


def last_step(path: Path) -> int:
    """The step of the last whole row, read from the end of the file alone; 0 where there is none."""
    try:
        with open_file(path) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).split(b"\n")
        digits = lines[-2].partition(b",")[0]
    except (OSError, DamageError, IndexError):
        return 0
    return int(digits) if digits.isdigit() and len(digits) <= MAX_DIGITS else 0


def read_evals(path: Path) -> list[dict[str, float]]:
    """The rows of evals.csv. Raises FileNotFoundError, or DamageError that names the first wrong line."""
    text = read_bytes(path)
    header, newline, body = text.partition(b"\n")
    if not newline:
        check_half_header(header)
        return []
    columns = column_names(header, "val_loss")
    body = body[: body.rfind(b"\n") + 1]
    find_separators(body, 2)
    rows: list[dict[str, float]] = []
    for number, line in enumerate(body.split(b"\n")[:-1], start=2):
        try:
            row = numbers(columns, line)
        except ValueError:
            raise DamageError(f"line {number}: must be {len(columns)} numbers") from None
        step = row["step"]
        if not (step.is_integer() and 0 <= step < 10**MAX_DIGITS and (not rows or step > rows[-1]["step"])):
            raise DamageError(f"line {number}: must be of a later step than the line before; its step is {step:g}")
        rows.append(with_added_columns(row, math.nan))
    return rows
