"""One job of a sweep, in a process of its own.

A process that ends gives all its memory back, and one that dies (out of memory, a crashing kernel)
takes no other job with it. The calling process never imports torch.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from marble_sweep.config import Config
from marble_sweep.runs.status import count_failures, record_failure
from marble_sweep.sweeps import child
from marble_sweep.training.signals import stop_requests, unheard_by_children

EXIT_SIGNALS = {-number: number.name for number in signal.Signals}
# What every job would import anew: torch's compiler, which the first optimizer asks for, takes a second, and the
# command line, which a child of `python -m marble_sweep` imports as its main module, a tenth.
PRELOADED = [child.__name__, "marble_sweep.sweeps.preload", "marble_sweep.run", "marble_sweep.hydra_app.main"]
PRELOADED += ["torch._dynamo", "numpy.ctypeslib"]
POLL_SECONDS = 0.02
# A fork of a server that has imported torch starts in milliseconds. Elsewhere forking such a process is unsafe.
METHOD = "forkserver" if sys.platform == "linux" else "spawn"
MAX_SOCKET_PATH = 107  # bytes, on Linux
SOCKET_NAME = "/pymp-12345678/listener-12345678"  # what multiprocessing adds to the folder for temporary files


def train_job(config: Config, sweep_dir: Path, number: int, threads: int | None) -> Path | None:
    """Train one job below sweep_dir; returns its run directory, which says how it ended, whatever happened.

    `threads` limits its CPU threads; None leaves them to the config. Where sweep.max_failures
    jobs have failed, nothing is done and there is no directory. Raises
    KeyboardInterrupt if the user asked to stop; the job has then saved its state.
    """
    if config.sweep.max_failures is not None and count_failures(sweep_dir) >= config.sweep.max_failures:
        return None
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=child.main, args=(config, sweep_dir, number, threads, theirs))
    with stop_requests() as should_stop:
        start(process)
        theirs.close()  # so that reading from a child that is gone ends
        while process.is_alive() and not should_stop():
            process.join(POLL_SECONDS)
        directory = received(ours)
        ours.close()  # the child takes a closed connection as a request to stop
        process.join()
        if process.exitcode and not should_stop():
            died = EXIT_SIGNALS.get(process.exitcode, f"exit code {process.exitcode}")
            hint = ", as the system does when memory runs out" if died == "SIGKILL" else ""
            if directory is None:
                raise RuntimeError(f"job {number}: its process ended with {died}{hint} before it had a directory")
            record_failure(directory, f"its process ended with {died}{hint}")
        if should_stop():
            raise KeyboardInterrupt
    return directory


def received(connection: Connection) -> Path | None:
    """The run directory that the child reported, if it got that far. Raises what kept it from having one."""
    try:
        message = connection.recv() if connection.poll() else None
    except EOFError:
        return None
    if isinstance(message, OSError):
        raise message
    return message


def start(process: BaseProcess) -> None:
    """Start a child that hears no request to stop but its parent's, from its first moment on.

    Nor does the fork server it comes from, without which no child can be waited for.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    with unheard_by_children(), start_method(METHOD), short_temporary_folder():
        process.start()


@contextlib.contextmanager
def start_method(name: str) -> Iterator[None]:
    """Make `name` the default that a child is given: in a worker of joblib that is one which only joblib knows."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(name, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


@contextlib.contextmanager
def short_temporary_folder() -> Iterator[None]:
    """Temporary files go where the path of a socket fits, which in a long TMPDIR, as on clusters, it does not."""
    before = tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir() + SOCKET_NAME)) > MAX_SOCKET_PATH:
        usable = (folder for folder in ("/tmp", "/var/tmp", "/dev/shm") if os.access(folder, os.W_OK | os.X_OK))
        tempfile.tempdir = next(usable, before)
    try:
        yield
    finally:
        tempfile.tempdir = before
