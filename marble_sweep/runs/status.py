"""The statuses of runs, and what the run directories of a sweep say of its jobs. Damaged ones are skipped."""

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
    """How far a run has come, as metadata.json has it; the first and the last are never written there."""

    STARTED = "started"  # metadata.json is not written yet
    RUNNING = "running"
    INTERRUPTED = "interrupted"  # with its state saved
    FAILED = "failed"
    FINISHED = "finished"  # at its last step
    DIVERGED = "diverged"
    CERTIFIED = "certified"  # this and the next two only with certify.stop
    PRUNED = "pruned"
    TOO_SLOW = "too_slow"
    DAMAGED = "damaged"  # a file does not hold what it should


# Nothing is left to train, and all rows are written.
DONE = (RunStatus.FINISHED, RunStatus.DIVERGED, RunStatus.CERTIFIED, RunStatus.PRUNED)
BY_EVALUATION = (RunStatus.CERTIFIED, RunStatus.PRUNED)  # its evaluations alone decide that it ends there
ENDED = (*DONE, RunStatus.FAILED, RunStatus.TOO_SLOW)
STOPPED = (RunStatus.DIVERGED, RunStatus.FAILED, RunStatus.DAMAGED)  # will reach no further step
UNFINISHED = (RunStatus.STARTED, RunStatus.RUNNING, RunStatus.INTERRUPTED)  # may reach further steps


def run_directories(sweep_dir: Path) -> Iterator[Path]:
    """The run directories directly below sweep_dir, by number."""
    directories = [path.parent for path in sweep_dir.glob(f"*/{layout.CONFIG}")]
    return iter(sorted(directories, key=lambda path: (len(path.name), path.name)))


def find_run(config: "Config", sweep_dir: Path) -> Path | None:
    """The run below sweep_dir with exactly this config, or None."""
    from marble_sweep.config import dump  # late: Hydra, which a comparison of runs does without

    text = dump(config)
    return next((path for path in run_directories(sweep_dir) if config_text(path) == text), None)


def config_text(directory: Path) -> str | None:
    """A run's config.yaml; None where it cannot be read."""
    return _text(directory / layout.CONFIG)


def _text(path: Path) -> str | None:
    """A file's text; None where it is missing, is not a regular file, or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except (OSError, UnicodeDecodeError):
        return None


def read_metadata(directory: Path) -> dict[str, Any]:
    """A run's metadata.json; empty where it is missing or damaged."""
    try:
        metadata = json.loads(_text(directory / layout.METADATA) or "")
    except (ValueError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def is_done(directory: Path, config: "Config") -> bool:
    """Whether nothing is left to do for a run: its status says so, and its verdict and plots are written."""
    results = [layout.VERDICT] if config.certify.stop else [layout.VERDICT, layout.LAST_PLOT]
    return read_metadata(directory).get("status") in DONE and all((directory / name).is_file() for name in results)


def changed_at(directory: Path) -> int:
    """When a run's metadata was last written, in ns since the epoch; 0 where it is missing."""
    try:
        return (directory / layout.METADATA).stat().st_mtime_ns
    except OSError:
        return 0


def mark_start(sweep_dir: Path) -> None:
    """Record when the sweep was started, and print which runs in it are too damaged to be reused."""
    write_text(sweep_dir / layout.STARTED, "")
    for path in run_directories(sweep_dir):
        if config_text(path) is None:
            print(f"marble_sweep: {path / layout.CONFIG} cannot be read: this run is not reused", file=sys.stderr)


def count_failures(sweep_dir: Path) -> int:
    """The number of jobs that failed since the sweep was last started; earlier failures are run again."""
    mark = sweep_dir / layout.STARTED
    started = mark.stat().st_mtime_ns if mark.exists() else 0
    failed = [path for path in run_directories(sweep_dir) if read_metadata(path).get("status") == RunStatus.FAILED]
    return sum(changed_at(path) >= started for path in failed)


def latest(sweep_dir: Path, configs: set[str] | None) -> list[Path]:
    """For each config the run that was written to last; only for `configs` where their texts are given."""
    runs: dict[str, Path] = {}
    for path in run_directories(sweep_dir):
        text = config_text(path)
        if text is None or (configs is not None and text not in configs):
            continue
        if text not in runs or changed_at(path) > changed_at(runs[text]):
            runs[text] = path
    return list(runs.values())


def record_failure(directory: Path, reason: str, field: str | None = None) -> None:
    """Say in a run's metadata that it failed, and why; what else is there stays. `field` is the setting to blame."""
    failure = {"status": RunStatus.FAILED, "reason": reason} | ({} if field is None else {"field": field})
    write_json(directory / layout.METADATA, read_metadata(directory) | failure)
