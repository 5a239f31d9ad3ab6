"""The one form of every complaint about a setting: the field, its value and what is allowed.

Only what is raised here, a `CheckError`, is shown to users as one line: any other ValueError is a bug's, and keeps its
traceback. A field says what it may hold where it is declared: `bounded` for numbers, its type for everything else.
"""

import dataclasses
import math
import re
import types
from dataclasses import dataclass, fields
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

MISSING: Any = "???"  # a value that must be given, as Hydra and OmegaConf write it
SHOWN = 400  # characters of a value that a complaint repeats: more than most paths have


class CheckError(ValueError):
    """What a user can mend, in one line. `field` is the setting that it is about, where it is about one."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


def wrong_value(name: str, value: object, allowed: str) -> CheckError:
    """The one form that every complaint about a setting takes."""
    return CheckError(f"{name} = {shown(value)}: must be {allowed}", name)


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise CheckError where setting `name` has a value that it cannot have."""
    if not condition:
        raise wrong_value(name, value, allowed)


def shown(value: object) -> str:
    """A value as one short line: line breaks and other characters that a terminal obeys are escaped."""
    text = str(value)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


@dataclass(frozen=True)
class Interval:
    """The finite numbers from `low` to `high`."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False  # low itself is not in it
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and -math.inf < value < math.inf

    def described(self, noun: str) -> str:
        """As "a whole number in [0, 10]", where `noun` is "whole number"."""
        if self.high < math.inf:
            left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
            return f"a {noun} in {left}{self.low:,}, {self.high:,}{right}"
        return f"a finite {noun}" + ("" if self.low == -math.inf else f" {'>' if self.open_low else '>='} {self.low:,}")


FINITE = Interval()
POSITIVE = Interval(0, open_low=True)
NOT_NEGATIVE = Interval(0)
UNIT = Interval(0, 1)
BELOW_ONE = Interval(0, 1, open_high=True)


def bounded(default: Any, interval: Interval) -> Any:
    """A field that holds a number, or numbers, of an interval."""
    return dataclasses.field(default=default, metadata={"interval": interval})


@dataclass
class Checked:
    """A dataclass whose fields are checked when it is made: their types, the bounds of numbers, the text of strings."""

    GROUP: ClassVar[str] = ""  # the config group, which complaints begin with

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            name = f"{self.GROUP}.{field.name}" if self.GROUP else field.name
            value, default = getattr(self, field.name), field.default
            if type(value) is not type(default) or value != default:  # a mandatory field has no value yet
                check(name, value, hints[field.name], field.metadata.get("interval", FINITE))


def check(name: str, value: Any, kind: Any, interval: Interval) -> None:
    """Require that a value is of a field's type and within its bounds."""
    allowed = allowed_values(kind, interval)
    if get_origin(kind) is types.UnionType:
        kind = required_kind(kind)
        if value is None:
            return
    origin = get_origin(kind)
    if origin is tuple:
        require(isinstance(value, list | tuple) and len(value) == len(get_args(kind)), name, value, allowed)
    if origin is list:
        require(isinstance(value, list), name, value, allowed)
    if origin is not None:
        for item in value:
            check(name, item, get_args(kind)[0], interval)
    elif kind is int:
        is_int = isinstance(value, int) and not isinstance(value, bool)
        require(is_int and value in interval, name, value, allowed)
    elif kind is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        require(is_number and value in interval, name, value, allowed)
    elif kind is str:
        require(isinstance(value, str), name, value, allowed)
        require(value != MISSING, name, value, "given")
        require(is_plain_text(value), name, value, "UTF-8 text without control characters")
    else:
        require(isinstance(value, kind), name, value, allowed)


def required_kind(kind: Any) -> Any:
    """The type of what an optional field holds when it is not null."""
    return next(member for member in get_args(kind) if member is not type(None))


def allowed_values(kind: Any, interval: Interval) -> str:
    """What a field of this type and these bounds may hold, as complaints say it."""
    if get_origin(kind) is types.UnionType:
        return f"null or {allowed_values(required_kind(kind), interval)}"
    if get_origin(kind) is tuple:
        return f"{len(get_args(kind))} numbers in brackets"
    if get_origin(kind) is list:
        item = get_args(kind)[0]
        return "a list in brackets" + ("" if item is str else f", every item {allowed_values(item, interval)}")
    if kind in (int, float):
        return interval.described("whole number" if kind is int else "number")
    return {str: "text", bool: "true or false"}.get(kind, f"a {kind.__name__}")


def is_plain_text(text: str) -> bool:
    """Whether YAML in UTF-8 gives it back: no control characters but tab and newline, no halves of a character."""
    return re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", text) is None
