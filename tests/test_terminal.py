"""Texts that others wrote, on their way to a terminal."""

import io
import sys

import pytest

from marble_sweep.terminal import printable, use_replacements


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("4L128D – ü 日本 👍", "4L128D – ü 日本 👍"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x9b2J", r"\x9b2J"),  # one character that begins an escape sequence as well
        ("a\nb\tc\rd\0\x7f", r"a\nb\tc\rd\x00\x7f"),
        ("exe.\u202etxt\u2066\u200f", r"exe.\u202etxt\u2066\u200f"),
        ("one\u2028two\u2029", r"one\u2028two\u2029"),
        ("caf\udce9", r"caf\udce9"),
    ],
)
def test_what_could_do_more_than_show_itself_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_what_is_to_stay_stays() -> None:
    assert printable("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", r"--- 1 +- 2 \xfc\u65e5 \udcff"), ("utf-8", r"─── 1 ± 2 ü日 \udcff")]
)
def test_an_output_without_a_character_shows_another(
    monkeypatch: pytest.MonkeyPatch, encoding: str, shown: str
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    use_replacements()
    print("─── 1 ± 2 ü日 \udcff", flush=True)
    assert written.getvalue().decode(encoding) == f"{shown}\n"
