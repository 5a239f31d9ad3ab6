"""The lifecycle of a directory that holds a record: reading it, and keeping what was learnt."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from marble_sweep.census.vocabulary import read_tokenizer, token_text
from marble_sweep.checks import CheckError
from marble_sweep.lifecycle.analyse import analyse
from marble_sweep.lifecycle.recorded import Recorded
from marble_sweep.lifecycle.result import Lifecycle
from marble_sweep.runs import layout
from marble_sweep.runs.files import atomic_write, lock_directory, require_ordinary, write_json
from marble_sweep.runs.removed import require_kept
from marble_sweep.runs.run import Run
from marble_sweep.runs.status import read_metadata

SUMMARY = "lifecycle"  # the key of metadata.json
NO_RECORDER = "none"


def open_record(directory: Path) -> Recorded:
    """The record in a run directory. Raises CheckError where there is none, or where it is damaged."""
    if not (directory / layout.RECORD).is_dir():
        require_not_removed(directory)
        raise CheckError(f"{directory}: must have a record, as a run with recorder=dead, tracers or full has")
    from marble_sweep.record.reader import Record  # late: it imports Zarr

    return Record.open(directory)


def require_not_removed(directory: Path) -> None:
    """Raise CheckError where a run had a record, and a setting has removed it."""
    if Run.read(directory).config.get("recorder.name", NO_RECORDER) != NO_RECORDER:
        require_kept(directory / layout.RECORD)


def analyse_run(directory: Path, record: Recorded, *, quiet_window: int | None = None, show: bool = False) -> Lifecycle:
    """The lifecycle of a run's record, with the texts and the learning rates that the run has."""
    life = analyse(
        record, texts=texts_of(directory), lr=learning_rates(directory), quiet_window=quiet_window, show=show
    )
    return replace(life, summary=life.summary | {"tied": read_metadata(directory).get("tied")})


def texts_of(directory: Path) -> Callable[[Sequence[int]], list[str]] | None:
    """The texts of tokens by id; None where the run has no tokenizer."""
    if not (directory / layout.TOKENIZER).exists():
        return None
    tokenizer = read_tokenizer(directory)
    return lambda ids: [token_text(tokenizer, token) for token in ids]


def learning_rates(directory: Path) -> "pd.Series[float]":
    """The learning rate by training step; empty where metrics.csv does not have it."""
    table = Run.read(directory).steps.table(["step", "lr"])
    return table["lr"].set_axis(table["step"].astype("int64")) if "lr" in table else pd.Series(dtype=float)


def save(directory: Path, life: Lifecycle) -> None:
    """Write lifecycle.parquet and, where there is a metadata.json, the summary and the epochs into it.

    Raises CheckError where a process is training the run, OSError where a file cannot be written.
    """
    require_ordinary(directory, files=[layout.METADATA, layout.LIFECYCLE])
    lock = lock_directory(directory, "RUN_DIR")
    try:
        with atomic_write(directory / layout.LIFECYCLE) as temporary:
            life.tokens.to_parquet(temporary, engine="pyarrow", index=False)
        if metadata := read_metadata(directory):
            learnt = life.summary | {"epochs": life.epochs.to_dict("records")}
            write_json(directory / layout.METADATA, metadata | {SUMMARY: learnt})
    finally:
        lock.release()
