"""Work that needs torch, done for a process that never imports it: in a process of its own, as the jobs are."""

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from marble_sweep.sweeps.jobs import EXIT_SIGNALS, ended, start

Item = TypeVar("Item")


def iterate_elsewhere(work: Callable[..., Iterator[Item]], *arguments: Any) -> Iterator[Item]:
    """What the generator function `work` yields; it and its arguments are pickled.

    Raises what it raises, and RuntimeError where its process dies. Once nobody iterates any more the process ends.
    """
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=send_all, args=(work, arguments, theirs))
    start(process)
    theirs.close()  # so that reading from a process that is gone ends
    try:
        while True:
            name, content = ours.recv()
            if name == "error":
                raise content
            if name == "end":
                return
            yield content
    except EOFError:
        code = ended(process) or 0
        died = EXIT_SIGNALS.get(code, f"exit code {code}")
        raise RuntimeError(f"{work.__name__}: its process ended with {died}") from None
    finally:
        ours.close()  # the next message that the process sends ends it
        ended(process)


def send_all(work: Callable[..., Iterator[Any]], arguments: tuple[Any, ...], parent: Connection) -> None:
    """In the process: send what `work` yields, and how it ended."""
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more
        try:
            for item in work(*arguments):
                parent.send(("item", item))
            parent.send(("end", None))
        except BrokenPipeError:
            raise
        except Exception as error:
            parent.send(("error", error))
