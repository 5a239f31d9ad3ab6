"""Every error a user can mend is one line and an exit code."""

import contextlib
import difflib
import os
import re
import sys
from collections.abc import Iterator

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from marble_sweep import config as schema
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
        print(f"marble_sweep: {mask(one_line(error))}", file=sys.stderr)
        raise SystemExit(EXIT_ERROR) from None


def one_line(error: Exception) -> str:
    """Say in a line what is wrong: Hydra's and OmegaConf's own errors take several."""
    if isinstance(error, schema.UnknownKeyError):
        return f"{error}{hint(error.key)}"
    text = f"{error}\n{error.__cause__ or ''}" if isinstance(error, HydraException) else str(error)
    if key := re.search(r"Could not override '([^']+)'", text):
        return f"{key[1]}: no such key{hint(key[1])}"
    if option := re.search(r"Could not find '(.+)/(.+)'\s+Available options in .*:\n((?:\t.*\n?)+)", text):
        return f"{option[1]} = {option[2]}: must be one of {', '.join(option[3].split())}"
    if twice := re.search(r"An item is already at '([^']+)'|Multiple values for ([^ ]+)\.", text):
        return f"{twice[1] or twice[2]}: it has a value already; leave the + out to change it"
    lines = [line.strip() for line in text.splitlines()]
    told_by_key = ("object_type", "reference_type", "value:", "full_key:", "Error merging override")
    message = " ".join(line for line in lines if line and not line.startswith(told_by_key))
    if named := re.search(r"^\s*full_key: (\S+)", text, re.MULTILINE):
        return f"{named[1]}: {message}"
    return message


def hint(key: str) -> str:
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
        return f" here; it belongs to {' and '.join(owners[key])}"
    close = difflib.get_close_matches(key, owners, n=1, cutoff=0.4)
    return f"; the nearest known one is {close[0]}" if close else "; --help lists those there are"


def paths(node: DictConfig, prefix: str | None) -> list[str]:
    """Every key below a node, in full, and the node's own."""
    found = [prefix] if prefix else []
    for key in map(str, node):
        path = f"{prefix}.{key}" if prefix else key
        child = node._get_node(key)
        found += paths(child, path) if isinstance(child, DictConfig) and not child._is_missing() else [path]
    return found
