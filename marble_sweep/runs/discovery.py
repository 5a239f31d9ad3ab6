"""Where run directories are: below the paths a user gives, or in the newest sweep."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The run directories at or below each of `paths`, each once; job 10 comes after job 9.

    Raises ValueError for a path that is not there or holds no run.
    """
    found: dict[Path, Path] = {}  # resolved: as given
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"PATH = {path}: must be a run directory or a folder of them")
        below = sorted(_below(path), key=_natural)
        if not below:
            raise ValueError(f"PATH = {path}: must hold runs (folders with config.yaml, metadata.json and metrics.csv)")
        for each in below:
            found.setdefault(each.resolve(), each)
    return list(found.values())


def newest(root: Path = Path()) -> Path:
    """The sweep under `root`/multirun that started a run last, else the last run under `root`/outputs.

    Raises ValueError where there is neither.
    """
    for folder in ("multirun", "outputs"):
        runs = list(_below(root / folder)) if (root / folder).is_dir() else []
        if runs:
            latest = max(runs, key=lambda run: (_started(run), _natural(run)))
            return latest.parent if folder == "multirun" else latest
    raise ValueError("PATH: must be given: there is no run under multirun/ or outputs/")


def _is_run(path: Path) -> bool:
    """Whether a run was begun here; a folder of Hydra configs has a config.yaml too, but no log."""
    names = ("run.log", "metrics.csv")
    begun = (path / "config.yaml").is_file() and any((path / name).is_file() for name in names)
    return begun or (path / "metadata.json").is_file()


def _below(path: Path) -> Iterator[Path]:
    if _is_run(path):
        yield path
        return
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield from _below(Path(path, entry.name))


def _started(run: Path) -> float:
    """When its config was written, which happens once; seconds since the epoch."""
    config = run / "config.yaml"
    return (config if config.exists() else run / "metadata.json").stat().st_mtime


def _natural(path: Path) -> list[tuple[int, str]]:
    """A sort key in which whole numbers count as such."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in path.parts]
