"""Jobs of a sweep, each in a process of its own; several at once where threads call for them.

A process that ends gives all its memory back, and one that dies (out of memory, a crashing kernel)
takes no other job with it. The calling process never imports torch.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from marble_sweep.config import Config
from marble_sweep.runs.status import count_failures, record_failure
from marble_sweep.sweeps import child
from marble_sweep.training.signals import await_all, stop_requests, unheard_by_children

EXIT_SIGNALS = {-number: number.name for number in signal.Signals}
# What every job would import anew: torch's compiler, which the first optimizer asks for, takes a second, and the
# command line, which a child of `python -m marble_sweep` imports as its main module, a tenth.
PRELOADED = [child.__name__, "marble_sweep.sweeps.preload", "marble_sweep.run", "marble_sweep.hydra_app.main"]
PRELOADED += ["torch._dynamo", "numpy.ctypeslib", "scipy.special"]
POLL_SECONDS = 0.02
# A fork of a server that has imported torch starts in milliseconds. Elsewhere forking such a process is unsafe.
METHOD = "forkserver" if sys.platform == "linux" else "spawn"
MAX_SOCKET_PATH = 107  # bytes, on Linux
SOCKET_NAME = "/pymp-12345678/listener-12345678"  # what multiprocessing adds to the folder for temporary files


# Held while processes are started and asked how they ended. The second takes an answer that is there only once, and the
# first asks all others as well; a start method and a mask of signals concern whoever starts a process meanwhile.
processes = threading.Lock()


def train_job(
    config: Config, sweep_dir: Path, number: int, threads: int | None, should_stop: Callable[[], bool]
) -> Path | None:
    """Train one job below sweep_dir; returns its run directory, which says how it ended, whatever happened.

    `threads` limits its CPU threads; None leaves them to the config. Where sweep.max_failures
    jobs have failed, nothing is done and there is no directory. Raises
    KeyboardInterrupt once `should_stop` says so; the job has then saved its state. Threads may call this.
    """
    if should_stop():
        raise KeyboardInterrupt
    if config.sweep.max_failures is not None and count_failures(sweep_dir) >= config.sweep.max_failures:
        return None
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=child.main, args=(config, sweep_dir, number, threads, theirs))
    start(process)
    theirs.close()  # so that reading from a child that is gone ends
    while not wait([process.sentinel], POLL_SECONDS) and not should_stop():
        pass
    directory = received(ours)
    ours.close()  # the child takes a closed connection as a request to stop
    exit_code = ended(process)
    if exit_code and not should_stop():
        died = EXIT_SIGNALS.get(exit_code, f"exit code {exit_code}")
        hint = ", as the system does when memory runs out" if died == "SIGKILL" else ""
        if directory is None:
            raise RuntimeError(f"job {number}: its process ended with {died}{hint} before it had a directory")
        record_failure(directory, f"its process ended with {died}{hint}")
    if should_stop():
        raise KeyboardInterrupt
    return directory


def train_jobs(
    configs: Sequence[Config], sweep_dir: Path, first_number: int, workers: int, threads: int | None
) -> list[Path | None]:
    """Train jobs below sweep_dir, so many at once; returns what train_job returns.

    Raises what train_job raises, once all jobs have ended.
    """
    with stop_requests() as should_stop, ThreadPoolExecutor(workers) as pool:
        futures = [
            pool.submit(train_job, config, sweep_dir, number, threads, should_stop)
            for number, config in enumerate(configs, first_number)
        ]
        await_all(futures)
    return [future.result() for future in futures]


def ended(process: BaseProcess) -> int | None:
    """Wait for a process to end; returns its exit code."""
    wait([process.sentinel])
    with processes:
        process.join()
        return process.exitcode


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
    with processes, unheard_by_children(), start_method(METHOD), short_temporary_folder():
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
