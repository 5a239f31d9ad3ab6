"""Removing the tensors of a run, which are most of its bytes. All tables stay, so a comparison misses nothing."""

import shutil
from pathlib import Path

from marble_sweep.checks import CheckError
from marble_sweep.runs import layout
from marble_sweep.runs.files import write_json
from marble_sweep.runs.status import read_metadata

TENSORS = (layout.SNAPSHOTS, layout.MODEL, layout.STATE)
REMOVED = "tensors_removed"  # the key of metadata.json that says by which setting


def remove_tensors(directory: Path, setting: str) -> None:
    """Remove a run's checkpoints, model, state and record. The metadata says so first: a kill leaves no riddle."""
    there = [directory / name for name in (*TENSORS, layout.RECORD) if (directory / name).exists()]
    if not there:
        return
    metadata = read_metadata(directory)
    if metadata.get(REMOVED) != setting:
        write_json(directory / layout.METADATA, metadata | {REMOVED: setting})
    for path in there:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def require_kept(path: Path) -> None:
    """Raise CheckError where a run's file of tensors is gone because a setting asked for that."""
    if not path.exists() and (setting := read_metadata(path.parent).get(REMOVED)) is not None:
        raise CheckError(f"{path}: must still be there; {setting} has removed the tensors of this run")
