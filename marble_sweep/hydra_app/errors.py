"""Every error a user can mend is one line and an exit code."""

import contextlib
import difflib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError

from marble_sweep import config as schema
from marble_sweep.checks import FINITE, Checked, allowed_values, shown
from marble_sweep.commands import override
from marble_sweep.hydra_app import private
from marble_sweep.passwords import mask
from marble_sweep.renamed_keys import RENAMED_KEYS

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
    message = " ".join(private.message_lines(text))
    if nameless := private.nameless_override(text):
        return unreadable(nameless, [])
    if isinstance(error, OverrideParseException):
        return unreadable(error.override, [line.strip() for line in text.splitlines()][:-1])
    if word := private.swept_override(text):
        key, _, value = word.partition("=")
        one = f"one value: for several --multirun is missing, and as text it is written {as_text(key, value)}"
        return f"{key} = {value}: must be {one}"
    if unknown := private.unknown_key(text):
        return f"{unknown}: no such key{hint(unknown, words)}"
    if option := private.unknown_option(text):
        group, name, options = option
        return f"{group} = {name or repr('')}: must be one of {', '.join(options)}"
    if doubled := private.doubled_key(text):
        return f"{doubled}: it has a value already; leave the + out to change it"
    if forced := private.forced_option(text):
        return f"++{forced}: must be {forced}: an option is chosen without the ++"
    named = private.full_key(text)
    if isinstance(error, InterpolationResolutionError) or isinstance(error.__cause__, GrammarParseError):
        return f"{named or 'config'}: {message}; where ${{ is meant as text, write \\${{"
    if named:
        return wrong_value(named, text) or f"{named}: {message}"
    return message


def wrong_value(key: str, text: str) -> str | None:
    """What a key may hold, where it was given what its type cannot: OmegaConf names the type alone."""
    if deleted := private.deleted_key(text):
        return f"~{deleted}: must be left out: a setting cannot be deleted, only changed, as in {deleted}=VALUE"
    key, index, _ = key.partition("[")  # of a number in brackets; the key holds them all
    allowed = allowed_in(key, private.object_type(text))
    value = None if index else private.unfit_value(text)
    value = private.overriding_value(key, text) if value is None else value
    return f"{key} = {shown(value) or repr('')}: must be {allowed}" if value is not None and allowed else None


def allowed_in(key: str, option: str | None) -> str | None:
    """What a key of the schema may hold; where options differ, in the one whose schema has this name."""
    group, _, name = key.rpartition(".")
    hints = get_type_hints(schema.Config)
    owners: list[Any] = list(schema.SCHEMAS.get(group, {"": hints.get(group)}).values()) if group else [schema.Config]
    owners.sort(key=lambda owner: getattr(owner, "__name__", None) != option)
    for owner in owners:
        for each in fields(owner) if isinstance(owner, type) else ():
            kind = get_type_hints(owner)[each.name]
            if each.name == name and isinstance(kind, type) and issubclass(kind, Checked):
                return f"set by its keys, as in {key}.KEY=VALUE"
            if each.name == name:
                return allowed_values(kind, each.metadata.get("interval", FINITE))
    return None


def unreadable(word: str, reasons: Sequence[str]) -> str:
    """What is wrong with an override that Hydra's grammar has no reading for; `reasons` are its lines on it."""
    key, _, value = word.partition("=")
    if not key:
        return f"{word}: must be KEY=VALUE, with a key that --help lists"
    try:
        OverridesParser.create().parse_override(override(key, value) if value else word)
    except HydraException:
        return f"{word}: must be KEY=VALUE, with a key that --help lists"
    known = private.grammar_reason(reasons)
    why = f" ({known})" if known else ""
    return f"{key} = {value}: must be quoted for Hydra where it is text, as in {as_text(key, value)}{why}"


def as_text(key: str, value: str) -> str:
    """How a shell's user sets a key to this very text."""
    return shlex.quote(override(key, value))


def hint(key: str, words: Sequence[str] = ()) -> str:
    """What an unknown key is called now, where it is known, or else the known one most like it."""
    if key in RENAMED_KEYS:
        return f"; it is now {RENAMED_KEYS[key]}"
    owners: dict[str, list[str]] = {}
    for path in paths(schema.Config, None):
        owners[path] = []
    for group, options in schema.SCHEMAS.items():
        owners[group] = []
        for option, base in options.items():
            for path in paths(base, group):
                owners.setdefault(path, []).append(f"{group}={option}")
    if key in owners:
        swept = swept_options(key.partition(".")[0], words)
        lacking = [option for option in swept if option not in owners[key]]
        if swept and not lacking:
            given = next((word for word in words if word.startswith(f"{key}=")), f"{key}=VALUE")
            return f" in the option that this sweep starts from; {shlex.quote(f'++{given}')} sets it in those swept"
        where = f"in {' and '.join(lacking)} of this sweep" if lacking else "here"
        return f" {where}; it belongs to {' and '.join(owners[key])}"
    others = [each for each in owners if not key.startswith(f"{each}.")]  # its own group is known to whoever typed it
    close = difflib.get_close_matches(key, others, n=1, cutoff=0.4)
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


def paths(schema_class: Any, prefix: str | None) -> list[str]:
    """Every key of a schema, in full, and the prefix's own."""
    return nested_keys(OmegaConf.to_container(OmegaConf.structured(schema_class)), prefix)


def nested_keys(node: Any, prefix: str | None) -> list[str]:
    keys = [prefix] if prefix else []
    for key, value in node.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        keys += nested_keys(value, path) if isinstance(value, dict) else [path]
    return keys
