"""One job of a sweep, in a process of its own.

A process that ends gives all its memory back, and one that dies (out of memory, a crashing kernel)
takes no other job with it. The calling process never imports torch.
"""

import multiprocessing
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from marble_sweep.config import Config
from marble_sweep.runs.status import count_failures, record_failure
from marble_sweep.sweeps import child
from marble_sweep.training.signals import stop_requests

EXIT_SIGNALS = {-number: number.name for number in signal.Signals}
# What every job would import anew: torch's compiler, which the first optimizer asks for, takes a second, and the
# command line, which a child of `python -m marble_sweep` imports as its main module, a tenth.
PRELOADED = [child.__name__, "marble_sweep.run", "marble_sweep.hydra_app.main", "torch._dynamo"]
POLL_SECONDS = 0.02


def train_job(config: Config, sweep_dir: Path, number: int, threads: int | None) -> Path | None:
    """Train one job below sweep_dir; returns its run directory, which says how it ended, whatever happened.

    `threads` limits its CPU threads; None leaves them to the config. Where so many jobs have failed
    that the config wants no further one, nothing is done and there is no directory. Raises
    KeyboardInterrupt if the user asked to stop; the job has then saved its state.
    """
    if config.sweep.max_failures is not None and count_failures(sweep_dir) >= config.sweep.max_failures:
        return None
    # A fork of a server that has imported torch starts in milliseconds. Elsewhere forking such a process is unsafe.
    # Forced, because in a worker of joblib the method is one that only joblib knows.
    multiprocessing.set_start_method("forkserver" if sys.platform == "linux" else "spawn", force=True)
    multiprocessing.set_forkserver_preload(PRELOADED)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=child.main, args=(config, sweep_dir, number, threads, theirs))
    with stop_requests() as should_stop:
        # The fork server, and so every child, is deaf to Ctrl-C from its first moment on.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
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
    """The run directory that the child told of, if it got that far."""
    try:
        return connection.recv() if connection.poll() else None
    except EOFError:
        return None
