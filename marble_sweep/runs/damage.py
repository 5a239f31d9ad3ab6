"""Reading the files of a run directory: a damaged file never stops the reading of the others."""

import json
import os
import reprlib
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, BinaryIO, NamedTuple

from marble_sweep.safe_yaml import parse_yaml

MAX_BYTES = 1 << 24  # of a file that is read whole
TEXT, WHOLE, NUMBER = "text", "a whole number", "a finite number"
OR_NULL = " or null"  # after one of these
Kinds = Mapping[str, "str | Kinds"]  # by key: one of these, or the kinds of a nested mapping's values


class Damage(NamedTuple):
    """A file that does not hold what it should."""

    file: str
    reason: str


class DamageError(Exception):
    """A file does not hold what it should; the message says why."""


def open_file(path: Path) -> BinaryIO:
    """Open a regular file. Raises FileNotFoundError where it is missing, DamageError where it cannot be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # does not wait for a pipe's writer
    except FileNotFoundError:
        if path.is_symlink():
            raise DamageError("is a symbolic link to nothing") from None
        raise
    except OSError as error:
        raise DamageError(f"cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamageError("must be a file; it is a folder or a device")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path) -> bytes:
    """All of a small file. Raises as `open_file`, and DamageError where it is large or cannot be read."""
    with open_file(path) as file:
        try:
            content = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise DamageError(f"cannot be read ({error.strerror})") from None
    if len(content) > MAX_BYTES:
        raise DamageError(f"must be at most {MAX_BYTES >> 20} MiB")
    return content


def read_text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamageError(f"must be UTF-8; byte {error.start} is not ({error.reason})") from None


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises as `read_text`, and DamageError where it holds none."""
    try:
        content = json.loads(read_text(path), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # not JSON, a number of too many digits, nested too deeply
        raise DamageError(f"must be JSON ({error})") from None
    if not isinstance(content, dict):
        raise DamageError(f"must hold a mapping, not {reprlib.repr(content)}")
    return content


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping by dotted key, each value as one cell. Raises as `read_text`, and DamageError for other YAML."""
    text = read_text(path)
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise DamageError(str(error)) from None
    if not isinstance(content, dict):
        raise DamageError(f"must hold a mapping, not {reprlib.repr(content)}")
    return {key: _as_cell(value) for key, value in flat(content, "")}


def _as_cell(value: Any) -> Any:
    """A config value that can be compared, sorted and printed: a date becomes text."""
    if isinstance(value, list):
        return [_as_cell(item) for item in value]
    if isinstance(value, int) and abs(value) >= 1 << 63:
        return reprlib.repr(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def flat(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """The values of a nested mapping with their dotted keys."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def keep_sound(values: Mapping[str, Any], kinds: Kinds, prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    """The values of the right kind, those of keys that `kinds` does not name, and what is wrong with the others."""
    kept, reasons = {}, []
    for key, value in values.items():
        kind = kinds.get(key)
        if isinstance(kind, Mapping):
            inner, complaints = keep_sound(value, kind, f"{prefix}{key}.") if isinstance(value, dict) else ({}, [])
            kept[key] = inner
            reasons += complaints
            if not isinstance(value, dict | NoneType):
                reasons.append(f"{prefix}{key} = {reprlib.repr(value)}: must be a mapping")
        elif kind is None or is_kind(value, kind):
            kept[key] = value
        else:
            reasons.append(f"{prefix}{key} = {reprlib.repr(value)}: must be {kind}")
    return kept, reasons


def is_kind(value: Any, kind: str) -> bool:
    if value is None:
        return kind.endswith(OR_NULL)
    if kind.startswith(TEXT):
        return isinstance(value, str)
    if isinstance(value, bool):
        return False
    if kind.startswith(WHOLE):
        return isinstance(value, int) and 0 <= value < 1 << 63
    return isinstance(value, int | float) and abs(value) < 1e100
