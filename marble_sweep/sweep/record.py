"""What the run directories below a sweep say of its jobs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from marble_sweep.files import write_json

ENDED = ("finished", "diverged", "failed")


def run_directories(sweep_dir: Path) -> Iterator[Path]:
    """Every run directory directly below sweep_dir, in the order of their numbers."""
    found = [path.parent for path in sweep_dir.glob("*/config.yaml")]
    return iter(sorted(found, key=lambda path: (len(path.name), path.name)))


def read_metadata(directory: Path) -> dict[str, Any]:
    """A run's metadata.json; empty where it is not written yet."""
    try:
        metadata: dict[str, Any] = json.loads((directory / "metadata.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return metadata


def count(sweep_dir: Path, status: str) -> int:
    return sum(read_metadata(path).get("status") == status for path in run_directories(sweep_dir))


def record_failure(directory: Path, reason: str) -> None:
    """Say in a run's metadata that it failed, and why; what else is there stays."""
    write_json(directory / "metadata.json", read_metadata(directory) | {"status": "failed", "reason": reason})
