"""Stopping on request: the step under way is finished and the state saved."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether SIGINT or SIGTERM has come; a second signal acts at once.

    Outside the main thread, where Python takes no signals, it never has.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return

    def request(number: int, frame: FrameType | None) -> None:
        requested.set()
        for each, handler in previous.items():
            signal.signal(each, handler)

    previous = {each: signal.signal(each, request) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requested.is_set
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
