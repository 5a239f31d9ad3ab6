"""Every error a user can mend is one line and an exit code."""

import contextlib
import difflib
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError

from marble_sweep import config as schema
from marble_sweep.commands import override
from marble_sweep.passwords import mask

WANTS_TRACEBACK = "HYDRA_FULL_ERROR" in os.environ
EXIT_FAILED = 1  # some job of a sweep
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


@contextlib.contextmanager
def exiting_on_errors() -> Iterator[None]:
    """Turn what a user can mend into one line and an exit code; anything else is a bug, with its traceback."""
    try:
        yield
    except (ValueError, OSError, HydraException, OmegaConfBaseException, YAMLError) as error:
        if WANTS_TRACEBACK:
            raise
        print(f"marble_sweep: {mask(one_line(error, sys.argv[1:]))}", file=sys.stderr)
        raise SystemExit(EXIT_ERROR) from None


def one_line(error: Exception, words: Sequence[str] = ()) -> str:
    """Say in a line what is wrong: Hydra's and OmegaConf's own errors take several. `words` are the command line's."""
    if isinstance(error, schema.UnknownKeyError):
        return f"{error}{hint(error.key, words)}"
    text = f"{error}\n{error.__cause__ or ''}" if isinstance(error, HydraException) else str(error)
    lines = [line.strip() for line in text.splitlines()]
    told_by_key = ("object_type", "reference_type", "value:", "full_key:", "Error merging override")
    message = " ".join(line for line in lines if line and not line.startswith(told_by_key))
    if isinstance(error, OverrideParseException):
        return unreadable(error.override, lines[:-1])
    if word := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.*)'(?:\n| requires --multirun)", text):
        key, _, value = word[1].partition("=")
        one = f"one value: for several --multirun is missing, and as text it is written {as_text(key, value)}"
        return f"{key} = {value}: must be {one}"
    if key := re.search(r"Could not override '([^']+)'", text):
        return f"{key[1]}: no such key{hint(key[1], words)}"
    if option := re.search(r"Could not find '(.+)/(.+)'\s+Available options in .*:\n((?:\t.*\n?)+)", text):
        return f"{option[1]} = {option[2]}: must be one of {', '.join(option[3].split())}"
    if twice := re.search(r"An item is already at '([^']+)'|Multiple values for ([^ ]+)\.", text):
        return f"{twice[1] or twice[2]}: it has a value already; leave the + out to change it"
    named = re.search(r"^\s*full_key: (\S+)", text, re.MULTILINE)
    if isinstance(error, InterpolationResolutionError) or isinstance(error.__cause__, GrammarParseError):
        return f"{named[1] if named else 'config'}: {message}; where ${{ is meant as text, write \\${{"
    if named:
        return f"{named[1]}: {message}"
    return message


def unreadable(word: str, reasons: Sequence[str]) -> str:
    """What is wrong with an override that Hydra's grammar has no reading for; `reasons` are its lines on it."""
    key, _, value = word.partition("=")
    try:
        OverridesParser.create().parse_override(override(key, value) if value else word)
    except HydraException:
        return f"{word}: must be KEY=VALUE, with a key that --help lists"
    known = [line for line in reasons if not line.startswith(("LexerNoViableAlt", "Error ", "^"))]
    why = f" ({known[0]})" if known else ""
    return f"{key} = {value}: must be quoted for Hydra where it is text, as in {as_text(key, value)}{why}"


def as_text(key: str, value: str) -> str:
    """How a shell's user sets a key to this very text."""
    return shlex.quote(override(key, value))


def hint(key: str, words: Sequence[str] = ()) -> str:
    """Where an unknown key is known, or else the known one most like it."""
    owners: dict[str, list[str]] = {}
    for path in paths(OmegaConf.structured(schema.Config), None):
        owners[path] = []
    for group, options in schema.SCHEMAS.items():
        owners[group] = []
        for option, base in options.items():
            for path in paths(OmegaConf.structured(base), group):
                owners.setdefault(path, []).append(f"{group}={option}")
    if key in owners:
        swept = swept_options(key.partition(".")[0], words)
        lacking = [option for option in swept if option not in owners[key]]
        if swept and not lacking:
            given = next((word for word in words if word.startswith(f"{key}=")), f"{key}=VALUE")
            return f" in the option that this sweep starts from; {shlex.quote(f'++{given}')} sets it in those swept"
        where = f"in {' and '.join(lacking)} of this sweep" if lacking else "here"
        return f" {where}; it belongs to {' and '.join(owners[key])}"
    close = difflib.get_close_matches(key, owners, n=1, cutoff=0.4)
    return f"; the nearest known one is {close[0]}" if close else "; --help lists those there are"


def swept_options(group: str, words: Sequence[str]) -> list[str]:
    """The options, as `group=option`, that a command line sweeps over; empty where it does not sweep the group."""
    for word in words:
        if word.startswith(f"{group}="):
            sweep = OverridesParser.create().parse_override(word)
            if isinstance(globbed := sweep.value(), Glob):
                return [f"{group}={option}" for option in globbed.filter(list(schema.SCHEMAS[group]))]
            if sweep.is_choice_sweep():
                return [f"{group}={option}" for option in sweep.sweep_string_iterator()]
    return []


def paths(node: DictConfig, prefix: str | None) -> list[str]:
    """Every key below a node, in full, and the node's own."""
    found = [prefix] if prefix else []
    for key in map(str, node):
        path = f"{prefix}.{key}" if prefix else key
        child = node._get_node(key)
        found += paths(child, path) if isinstance(child, DictConfig) and not child._is_missing() else [path]
    return found
