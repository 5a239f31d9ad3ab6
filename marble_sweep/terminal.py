"""What reaches a terminal: text that others wrote made harmless, and an output that can show every text."""

import codecs
import contextlib
import io
import re
import sys
from collections.abc import Iterator

# Control characters, escape sequences with them; marks that change the direction of the text around them; what a
# terminal or a reader takes for the end of a line; and half characters, which no output can write.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
PLAIN = {"─": "-", "–": "-", "−": "-", "…": "...", "±": "+-", "×": "x"}  # our own signs, for an output without them


def printable(text: str, keep: str = "") -> str:
    r"""The text with every character that could do more than show itself as an escape, like \x1b; `keep` stays."""
    return UNSAFE.sub(lambda match: match[0] if match[0] in keep else escaped(match[0]), text)


def escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def use_replacements() -> None:
    """Let standard output and error replace what their encoding does not have, where they would raise."""
    codecs.register_error("marble_sweep.replace", _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="marble_sweep.replace")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(PLAIN.get(character) or escaped(character) for character in text), error.end


@contextlib.contextmanager
def warning_on_error(what: str) -> Iterator[None]:
    """Go on without what is only there to be looked at, where it cannot be made."""
    try:
        yield
    except Exception as error:
        print(f"marble_sweep: {what} could not be written: {type(error).__name__}: {error}", file=sys.stderr)
