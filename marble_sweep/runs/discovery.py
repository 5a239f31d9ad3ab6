"""Where run directories are: below the paths a user gives, or in the newest sweep."""

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from marble_sweep.checks import CheckError
from marble_sweep.runs import layout


def find_runs(paths: Sequence[Path], setting: str = "PATH") -> list[Path]:
    """The run directories at or below each of `paths`, each once; job 10 comes after job 9.

    Raises ValueError for a path that is not there or holds no run; `setting` is what it was given as.
    """
    runs: dict[Path, Path] = {}  # by resolved path, as the user gave it
    for path in paths:
        if not path.is_dir():
            raise CheckError(f"{setting} = {path}: must be a run directory or a folder of them")
        below = sorted(_below(path), key=_natural)
        if not below:
            files = "config.yaml, metadata.json and metrics.csv"
            raise CheckError(f"{setting} = {path}: must hold runs (folders with {files})")
        for run in below:
            runs.setdefault(run.resolve(), run)
    return list(runs.values())


def newest(root: Path = Path()) -> Path:
    """The sweep under `root`/multirun whose newest run started last, else the newest run under `root`/outputs.

    Raises ValueError where there is neither.
    """
    for folder in (layout.MULTIRUN, layout.OUTPUTS):
        runs = list(_below(root / folder)) if (root / folder).is_dir() else []
        if runs:
            latest = max(runs, key=lambda run: (_started(run), _natural(run)))
            return latest.parent if folder == layout.MULTIRUN else latest
    raise CheckError("PATH: must be given: there is no run under multirun/ or outputs/")


def _is_run(names: Collection[str]) -> bool:
    """Whether a folder with these entries is a run's. A folder of Hydra configs has a config.yaml too, but no log."""
    begun = layout.CONFIG in names and (layout.LOG in names or layout.METRICS in names)
    return begun or layout.METADATA in names


def _below(path: Path) -> Iterator[Path]:
    """The runs at or below a folder. A folder that cannot be read counts as a run, which is then shown as damaged."""
    folders = [path]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                is_folder = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        except OSError:
            yield folder
            continue
        if _is_run(is_folder):
            yield folder
            continue
        folders += [folder / name for name in is_folder if is_folder[name] and not name.startswith(".")]


def _started(run: Path) -> float:
    """When the config was written, which happens once; seconds since the epoch."""
    for name in (layout.CONFIG, layout.METADATA):
        with contextlib.suppress(OSError):
            return (run / name).stat().st_mtime
    return 0.0


def _natural(path: Path) -> list[tuple[int, str]]:
    """A sort key that orders whole numbers by value: job 10 after job 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in path.parts]
