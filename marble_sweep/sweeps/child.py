"""The process that trains one job: finds its directory, decides what is left to do, and does it."""

import contextlib
import itertools
import logging
import shutil
import signal
import sys
import threading
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from tqdm import tqdm

from marble_sweep.checks import CheckError
from marble_sweep.config import Config, dump
from marble_sweep.process import keep_freed_memory
from marble_sweep.runs import layout
from marble_sweep.runs.files import lock_directory, write_exclusive, write_json, write_text
from marble_sweep.runs.provenance import code_sha256
from marble_sweep.runs.status import (
    BY_EVALUATION,
    RunStatus,
    config_text,
    is_done,
    read_metadata,
    record_failure,
    run_directories,
)
from marble_sweep.training.signals import stop_this_process

log = logging.getLogger(__name__)


def main(config: Config, sweep_dir: Path, number: int, threads: int | None, parent: Connection) -> None:
    """Train job `number` of the sweep, or continue it, or find that it is done."""
    from marble_sweep.run import run

    keep_freed_memory()
    # A bar's usual lock is a semaphore of the system, which a process that is stopped too early would leave behind.
    tqdm.set_lock(threading.RLock())
    # Ctrl-C at a terminal reaches every process of the group: only the parent's word counts here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[console])
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    try:
        directory, done = assign_run_dir(config, sweep_dir, number)
    except OSError as error:  # as of a full disk
        parent.send(error)
        return
    with contextlib.suppress(BrokenPipeError):  # a parent that is gone: the next thread notices
        parent.send(directory)
    threading.Thread(target=stop_with_parent, args=(parent,), daemon=True).start()
    if done:
        return
    try:
        # A run whose parent was killed still saves its state; one that another process trains ends in its own time.
        lock_directory(directory, "run directory", wait=True).release()
        if not is_done(directory, config):
            run(config, directory, resume=True, show=False, shared=sweep_dir / layout.PRODUCTS)
    except Exception as error:
        # Whatever it was belongs to this job alone: the sweep goes on.
        log.info("%s", error, exc_info=True)
        reason = f"{type(error).__name__}: {error}"
        try:
            record_failure(directory, reason, error.field if isinstance(error, CheckError) else None)
        except OSError as unwritten:  # a full disk, of which the reason may well speak too
            log.warning("job %d failed: %s; nor can its metadata.json say so: %s", number, reason, unwritten)


def stop_with_parent(parent: Connection) -> None:
    """End this process as SIGTERM would, state saved, when the parent closes its end or dies."""
    with contextlib.suppress(EOFError, OSError):
        parent.recv()
    stop_this_process()


def assign_run_dir(config: Config, sweep_dir: Path, number: int) -> tuple[Path, bool]:
    """The directory of this job, and whether the run in it is finished and can be reused.

    A run with the very same config, made of the same data by the same code, is continued or reused,
    whatever its number. Else the job gets the directory of its number, or, where another run lies
    there, the first free one; its config in it keeps every other job away. A run that ended early for another threshold
    of the same search is copied there first: it is continued, and what it was stays as it is.
    """
    text = dump(config)
    for directory in run_directories(sweep_dir):
        if config_text(directory) == text:
            changed = changes(directory, config)
            if not changed:
                return directory, is_done(directory, config)
            log.warning("job %d: the run in %s is not reused, its %s", number, directory, " and its ".join(changed))
    if (source := run_to_continue(config, sweep_dir)) is not None:
        return copy_run(source, text, sweep_dir, number), False
    for candidate in itertools.chain([number], itertools.count()):
        directory = sweep_dir / str(candidate)
        with contextlib.suppress(FileExistsError):  # where something else has the name
            directory.mkdir(parents=True, exist_ok=True)
            is_free = not (directory / layout.RECORD).exists()  # one without a run was imported
            if is_free and write_exclusive(directory / layout.CONFIG, text):
                break
    return directory, False


def texts_for_other_thresholds(config: Config) -> set[str]:
    """The texts of the configs that differ in their threshold alone, which is another one of the same search."""
    certify = config.certify
    others = [threshold for threshold in certify.thresholds or () if threshold != certify.threshold]
    return {dump(replace(config, certify=replace(certify, threshold=threshold))) for threshold in others}


def run_to_continue(config: Config, sweep_dir: Path) -> Path | None:
    """The run that an evaluation ended, and that differs from this one in its threshold alone; the longest one."""
    texts = texts_for_other_thresholds(config)
    steps = {
        directory: step
        for directory in (run_directories(sweep_dir) if texts else ())
        if config_text(directory) in texts
        and (step := step_to_continue(directory)) is not None
        and not changes(directory, config)
    }
    return max(steps, key=lambda directory: steps[directory], default=None)


def step_to_continue(directory: Path) -> int | None:
    """The step at which an evaluation ended a run that can go on from its saved state; None where there is none."""
    metadata = read_metadata(directory)
    has_state = (directory / layout.STATE).exists()  # search.keep may have removed it
    return int(metadata.get("step", 0)) if has_state and metadata.get("status") in BY_EVALUATION else None


def copy_run(source: Path, config: str, sweep_dir: Path, number: int) -> Path:
    """Copy a run that has ended, to be continued with the text of another config; returns the copy's directory.

    That appears whole or not at all, and has the first free number from `number` on.
    """
    staging = sweep_dir / layout.CONTINUING / str(number)
    shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
    unwanted = (layout.VERDICT, layout.LIFECYCLE, layout.LOCK, layout.SOFT_LOCK)
    shutil.copytree(source, staging, ignore=lambda _, names: [name for name in names if name in unwanted])
    write_text(staging / layout.CONFIG, config)
    origin = source.name if source.parent.resolve() == sweep_dir.resolve() else str(source)
    continued = {"status": RunStatus.INTERRUPTED, "continued_from": origin}
    write_json(staging / layout.METADATA, read_metadata(source) | continued)
    for candidate in itertools.count(number):
        directory = sweep_dir / str(candidate)
        try:
            staging.rename(directory)
        except OSError:
            if not directory.exists():
                raise
        else:
            break
    return directory


def changes(directory: Path, config: Config) -> list[str]:
    """How the code or the data of a run differ from today's; empty where they agree."""
    from marble_sweep.data.corpus import load_corpus

    metadata = read_metadata(directory)
    if not metadata and (directory / layout.METADATA).exists():
        return ["metadata.json is damaged"]
    if "corpus" not in metadata:
        return []  # it never began to train
    try:
        code, data = str(metadata["code_sha256"]), str(metadata["corpus"]["sha256"])
    except (KeyError, TypeError):
        return ["metadata.json is damaged"]
    pairs = {"code": (code, code_sha256())}
    try:
        pairs["data"] = (data, load_corpus(config.data).sha256)
    except (CheckError, OSError) as error:
        return [f"data cannot be read any more ({error})"]
    return [f"{what} was {then[:12]}, now {now[:12]}" for what, (then, now) in pairs.items() if then != now]
