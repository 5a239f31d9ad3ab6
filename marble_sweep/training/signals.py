"""Stopping on request: the step under way is finished and the state saved."""

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, wait
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

URGENT = (signal.SIGINT, signal.SIGTERM)
# Once more changes nothing: a terminal that hangs up may say so twice. Slurm sends the second with --signal=USR1.
# Not every platform has them.
PATIENT = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1") if hasattr(signal, name))
STOPPING = (*URGENT, *PATIENT)
POLL_SECONDS = 0.1


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether a signal has asked to stop; a second SIGINT or SIGTERM acts at once.

    SIGHUP and SIGUSR1 ask so where nobody else handles or ignores them, as nohup does. Outside the
    main thread, where Python takes no signals, nothing ever asks.
    """
    requested = threading.Event()

    def request(number: int, frame: FrameType | None) -> None:
        requested.set()
        leave_lost_terminal()
        for urgent in URGENT:
            signal.signal(urgent, previous[urgent])

    with handling(request, [*URGENT, *filter(unclaimed, PATIENT)]) as previous:
        yield requested.is_set


def await_all(futures: Collection[Future[Any]]) -> None:
    """Wait for threads, in the main one: it takes signals only between two looks."""
    while wait(futures, POLL_SECONDS).not_done:
        pass


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """Raise KeyboardInterrupt, as Ctrl-C does, for the other signals that ask to stop too."""
    with handling(interrupt, [number for number in STOPPING if unclaimed(number) and number != signal.SIGINT]):
        yield


def interrupt(number: int, frame: FrameType | None) -> None:
    """Act as Ctrl-C does; a hang-up but once."""
    if number in PATIENT:
        signal.signal(number, signal.SIG_IGN)
    leave_lost_terminal()
    raise KeyboardInterrupt


def leave_lost_terminal() -> None:
    """Let what is still said go nowhere where the terminal it is for has hung up: to write there is an error."""
    if sys.platform == "win32":
        return
    import termios

    for stream in (1, 2):
        try:
            termios.tcgetattr(stream)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                with open(os.devnull, "w") as nowhere:
                    os.dup2(nowhere.fileno(), stream)


def unclaimed(number: int) -> bool:
    """Whether a signal would end the program, or interrupt it as above."""
    return signal.getsignal(number) in (signal.SIG_DFL, interrupt)


@contextlib.contextmanager
def handling(handler: Callable[[int, FrameType | None], None], numbers: list[int]) -> Iterator[dict[int, Any]]:
    """Handle signals in this way for a while; gives their handlers before, none of them outside the main thread."""
    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        previous |= {number: signal.signal(number, handler) for number in numbers}
    try:
        yield previous
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextlib.contextmanager
def unheard_by_children() -> Iterator[None]:
    """What is started meanwhile never hears a request to stop that is sent to the whole group of processes."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # later it would unblock two of them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop_this_process() -> None:
    """Send this process, which hears nothing else, one SIGTERM, whether or not one has been waiting."""
    os.kill(os.getpid(), signal.SIGTERM)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
