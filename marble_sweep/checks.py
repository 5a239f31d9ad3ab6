"""The one form of every complaint about a setting: the field, its value and what is allowed.

A field says what it may hold where it is declared: `bounded` for numbers, its type for everything else.
"""

import math
import re
import types
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

MISSING: Any = "???"  # a value that must be given, as Hydra and OmegaConf write it
SHOWN = 400  # characters of a value that a complaint repeats: more than most paths have


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise ValueError in the one form every complaint about a setting takes."""
    if not condition:
        raise ValueError(f"{name} = {shown(value)}: must be {allowed}")


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

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"in {'(' if self.open_low else '['}{self.low:,}, {self.high:,}{')' if self.open_high else ']'}"
        return "finite" if self.low == -math.inf else f"finite and {'>' if self.open_low else '>='} {self.low:,}"


FINITE = Interval()
POSITIVE = Interval(0, open_low=True)
NOT_NEGATIVE = Interval(0)
UNIT = Interval(0, 1)
BELOW_ONE = Interval(0, 1, open_high=True)


def bounded(default: Any, interval: Interval) -> Any:
    """A field that holds a number, or numbers, of an interval."""
    return field(default=default, metadata={"interval": interval})


@dataclass
class Checked:
    """A dataclass whose fields are checked when it is made: their types, the bounds of numbers, the text of strings."""

    GROUP: ClassVar[str] = ""  # the config group, which complaints begin with

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for each in fields(self):
            name = f"{self.GROUP}.{each.name}" if self.GROUP else each.name
            value = getattr(self, each.name)
            if type(value) is not type(each.default) or value != each.default:  # a mandatory field has no value yet
                check(name, value, hints[each.name], each.metadata.get("interval", FINITE))


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
        for part in value:
            check(name, part, get_args(kind)[0], interval)
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
    return next(each for each in get_args(kind) if each is not type(None))


def allowed_values(kind: Any, interval: Interval) -> str:
    """What a field of this type and these bounds may hold, in words."""
    if get_origin(kind) is types.UnionType:
        return f"null or {allowed_values(required_kind(kind), interval)}"
    if get_origin(kind) is tuple:
        return f"{len(get_args(kind))} numbers in brackets"
    if get_origin(kind) is list:
        return "a list in brackets"
    words = {int: f"a whole number {interval}", float: str(interval), str: "text", bool: "true or false"}
    return words.get(kind, f"a {kind.__name__}")


def is_plain_text(text: str) -> bool:
    """Whether YAML in UTF-8 gives it back: no control characters but tab and newline, no halves of a character."""
    return re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", text) is None
