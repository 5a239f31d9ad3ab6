"""What the run directories below a sweep say of its jobs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from marble_sweep.config import Config, dump
from marble_sweep.runs.files import write_json

DONE = ("finished", "diverged", "certified", "pruned")  # nothing is left to do
ENDED = (*DONE, "failed", "too_slow")
STARTED = ".started"


def run_directories(sweep_dir: Path) -> Iterator[Path]:
    """Every run directory directly below sweep_dir, in the order of their numbers."""
    found = [path.parent for path in sweep_dir.glob("*/config.yaml")]
    return iter(sorted(found, key=lambda path: (len(path.name), path.name)))


def find_run(config: Config, sweep_dir: Path) -> Path | None:
    """The run of this very config, if there is one below sweep_dir."""
    text = dump(config)
    found = (path for path in run_directories(sweep_dir) if (path / "config.yaml").read_text(encoding="utf-8") == text)
    return next(found, None)


def read_metadata(directory: Path) -> dict[str, Any]:
    """A run's metadata.json; empty where it is not written yet."""
    try:
        metadata: dict[str, Any] = json.loads((directory / "metadata.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # not there yet, or damaged
        return {}
    return metadata


def changed_at(directory: Path) -> int:
    """When a run's metadata was last written, in ns; 0 where there is none."""
    try:
        return (directory / "metadata.json").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def mark_start(sweep_dir: Path) -> None:
    (sweep_dir / STARTED).touch()


def count_failures(sweep_dir: Path) -> int:
    """Jobs that failed since the sweep was last started: a job that is to run again does not count."""
    started = (sweep_dir / STARTED).stat().st_mtime_ns
    failed = [path for path in run_directories(sweep_dir) if read_metadata(path).get("status") == "failed"]
    return sum(changed_at(path) >= started for path in failed)


def latest(sweep_dir: Path, configs: set[str] | None) -> list[Path]:
    """Of each config the run that was at work last, for all configs or those whose text is given."""
    runs: dict[str, Path] = {}
    for path in run_directories(sweep_dir):
        text = (path / "config.yaml").read_text(encoding="utf-8")
        if (configs is None or text in configs) and (text not in runs or changed_at(path) > changed_at(runs[text])):
            runs[text] = path
    return list(runs.values())


def record_failure(directory: Path, reason: str) -> None:
    """Say in a run's metadata that it failed, and why; what else is there stays."""
    write_json(directory / "metadata.json", read_metadata(directory) | {"status": "failed", "reason": reason})
