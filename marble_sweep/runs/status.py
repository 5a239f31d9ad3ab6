"""What the run directories below a sweep say of its jobs. One that is damaged is passed over, never an error."""

import enum
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marble_sweep.runs import layout
from marble_sweep.runs.files import write_json, write_text

if TYPE_CHECKING:
    from marble_sweep.config import Config


class RunStatus(enum.StrEnum):
    """How far a run has come; metadata.json has these words, all but the first and the last."""

    STARTED = "started"  # there is no metadata yet
    RUNNING = "running"
    INTERRUPTED = "interrupted"  # with its state saved
    FAILED = "failed"
    FINISHED = "finished"  # at its last step
    DIVERGED = "diverged"
    CERTIFIED = "certified"  # these three as certify.stop has it
    PRUNED = "pruned"
    TOO_SLOW = "too_slow"
    DAMAGED = "damaged"  # some file does not hold what it should


# Nothing is left to train, and all rows are written.
DONE = (RunStatus.FINISHED, RunStatus.DIVERGED, RunStatus.CERTIFIED, RunStatus.PRUNED)
ENDED = (*DONE, RunStatus.FAILED, RunStatus.TOO_SLOW)
STOPPED = (RunStatus.DIVERGED, RunStatus.FAILED, RunStatus.DAMAGED)  # these will get no further
UNFINISHED = (RunStatus.STARTED, RunStatus.RUNNING, RunStatus.INTERRUPTED)  # these will, if they are let


def run_directories(sweep_dir: Path) -> Iterator[Path]:
    """Every run directory directly below sweep_dir, in the order of their numbers."""
    found = [path.parent for path in sweep_dir.glob(f"*/{layout.CONFIG}")]
    return iter(sorted(found, key=lambda path: (len(path.name), path.name)))


def find_run(config: "Config", sweep_dir: Path) -> Path | None:
    """The run of this very config, if there is one below sweep_dir."""
    from marble_sweep.config import dump  # late: Hydra, which a comparison of runs does without

    text = dump(config)
    return next((path for path in run_directories(sweep_dir) if config_text(path) == text), None)


def config_text(directory: Path) -> str | None:
    """A run's config.yaml; None where it cannot be read."""
    return _text(directory / layout.CONFIG)


def _text(path: Path) -> str | None:
    """A file's text; None where there is none, as in a folder, a pipe or bytes that are not UTF-8."""
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except (OSError, UnicodeDecodeError):
        return None


def read_metadata(directory: Path) -> dict[str, Any]:
    """A run's metadata.json; empty where it is not written yet, or damaged."""
    try:
        metadata = json.loads(_text(directory / layout.METADATA) or "")
    except (ValueError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def is_done(directory: Path, config: "Config") -> bool:
    """Whether nothing is left to do for a run: it says so, and its verdict and plots are there."""
    results = [layout.VERDICT] if config.certify.stop else [layout.VERDICT, layout.LAST_PLOT]
    return read_metadata(directory).get("status") in DONE and all((directory / name).is_file() for name in results)


def changed_at(directory: Path) -> int:
    """When a run's metadata was last written, in ns; 0 where there is none."""
    try:
        return (directory / layout.METADATA).stat().st_mtime_ns
    except OSError:
        return 0


def mark_start(sweep_dir: Path) -> None:
    """Note when the sweep was started, and say which runs in it are too damaged to be reused."""
    write_text(sweep_dir / layout.STARTED, "")
    for path in run_directories(sweep_dir):
        if config_text(path) is None:
            print(f"marble_sweep: {path / layout.CONFIG} cannot be read: this run is not reused", file=sys.stderr)


def count_failures(sweep_dir: Path) -> int:
    """Jobs that failed since the sweep was last started: a job that is to run again does not count."""
    mark = sweep_dir / layout.STARTED
    started = mark.stat().st_mtime_ns if mark.exists() else 0
    failed = [path for path in run_directories(sweep_dir) if read_metadata(path).get("status") == RunStatus.FAILED]
    return sum(changed_at(path) >= started for path in failed)


def latest(sweep_dir: Path, configs: set[str] | None) -> list[Path]:
    """Of each config the run that was at work last, for all configs or those whose text is given."""
    runs: dict[str, Path] = {}
    for path in run_directories(sweep_dir):
        text = config_text(path)
        if text is None or (configs is not None and text not in configs):
            continue
        if text not in runs or changed_at(path) > changed_at(runs[text]):
            runs[text] = path
    return list(runs.values())


def record_failure(directory: Path, reason: str) -> None:
    """Say in a run's metadata that it failed, and why; what else is there stays."""
    write_json(directory / layout.METADATA, read_metadata(directory) | {"status": RunStatus.FAILED, "reason": reason})
