"""The files that this process opens, as Python itself reports them: a count of work that is the same on any machine."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator

_listeners: list[Callable[[str], None]] = []


def _tell(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _listeners and isinstance(arguments[0], str | bytes | os.PathLike):
        for listener in _listeners:
            listener(os.fsdecode(arguments[0]))


sys.addaudithook(_tell)  # there is no way to take one off again


@contextlib.contextmanager
def opened_files() -> Iterator[list[str]]:
    """The paths opened inside, in order, as often as each was opened."""
    paths: list[str] = []
    note = paths.append
    _listeners.append(note)
    try:
        yield paths
    finally:
        _listeners.remove(note)


@contextlib.contextmanager
def interrupted_as_it_writes(name: str, version: int) -> Iterator[None]:
    """Ctrl-C while the given version of a file, counted from 1, is written; files are written beside their place."""
    written: set[str] = set()

    def listen(path: str) -> None:
        before = len(written)
        if os.path.basename(path).startswith(f".{name}.") and path.endswith(".tmp"):
            written.add(path)
        if before < len(written) == version:
            signal.raise_signal(signal.SIGINT)

    _listeners.append(listen)
    try:
        yield
    finally:
        _listeners.remove(listen)
    assert len(written) >= version, "it was never interrupted"
