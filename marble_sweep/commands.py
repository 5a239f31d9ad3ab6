"""Commands for pasting: quoted for the shell outside, and for Hydra's grammar inside.

The two differ. `resume=a=b` is one word to the shell, and an error to Hydra, which wants `resume="a=b"`.
"""

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

PROGRAM = "python -m marble_sweep"
CONFIG_NAME = "config"  # of the file in conf/ that the program starts from
# A path, or a name, of letters that Hydra reads as they are; of other characters some have a meaning in its grammar.
PLAIN = re.compile(r"[A-Za-z0-9_.+-]*/[A-Za-z0-9_/.+-]*|[A-Za-z_][A-Za-z0-9_-]*")
NOT_TEXT = ("null", "true", "false", "inf", "nan")  # in any case: Hydra reads no string there


def literal(text: str) -> str:
    r"""The string that OmegaConf reads as `text`: `${` begins an interpolation, `\${` does not."""
    return re.sub(r"(\\*)\$\{", lambda match: rf"{match[1] * 2}\${{", text)


def override(key: str, value: object) -> str:
    """The override `key=value` from which Hydra reads this very value, as text."""
    text = literal(str(value))
    if not PLAIN.fullmatch(text) or text.lower() in NOT_TEXT:
        text = quoted(text)
    return f"{key}={text}"


def quoted(text: str) -> str:
    """Text between Hydra's double quotes: a backslash is doubled only where a quote follows."""
    escaped = re.sub(r'(\\*)("|\Z)', lambda match: match[1] * 2 + match[2].replace('"', r"\""), text)
    return f'"{escaped}"'


def shell_command(arguments: Iterable[str]) -> str:
    """The command line of the program with these arguments, for a POSIX shell."""
    return shlex.join([*PROGRAM.split(), *arguments])


def resume_command(directory: Path) -> str:
    """The command that continues a run, from any folder."""
    return shell_command([override("resume", directory.absolute())])
