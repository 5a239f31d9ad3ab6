"""YAML from a file that anyone may have written: no text makes the reader hang, crash or run out of stack."""

from typing import Any

import yaml

from marble_sweep.checks import CheckError

# The C loader, where PyYAML was built with it, reads a thousand configs in half a second instead of ten.
YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_DEPTH = 50  # of a config; the C loader crashes the whole process at some ten thousand


def parse_yaml(text: str) -> Any:
    """What a YAML text holds. Raises CheckError, for the caller to name the file, where no config is like that."""
    try:
        _refuse_depth(text)
        return yaml.load(text, Loader=YAML_LOADER)  # a safe loader either way
    except (yaml.YAMLError, ValueError) as error:  # a date that does not exist is a ValueError
        raise CheckError(f"must be YAML ({' '.join(str(error).split())})") from None


def _refuse_depth(text: str) -> None:
    """Raise CheckError for deep nesting, and for aliases, which can multiply or hold themselves."""
    depth = 0
    for event in yaml.parse(text, Loader=YAML_LOADER):
        if isinstance(event, yaml.AliasEvent):
            raise CheckError("it has an alias")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise CheckError("it is nested too deeply")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
