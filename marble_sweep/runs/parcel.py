"""A run directory on its way between machines: one file that holds all of its files. It arrives whole or not at all."""

import contextlib
import itertools
import re
import shutil
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from marble_sweep.checks import CheckError
from marble_sweep.runs import layout
from marble_sweep.runs.files import sync, sync_folder
from marble_sweep.runs.status import config_text, run_directories

ARRIVING, REPLACED = ".arriving-", ".replaced-"  # begin the names of folders, below those of the workers
# The files of a record, as Zarr names them: of the group, of an array, and of a chunk of it.
RECORD_FILE = re.compile(rf"{layout.RECORD}/(zarr\.json|[A-Za-z_]+/(zarr\.json|c(/[0-9]+)+))")


def is_of_a_run(name: str) -> bool:
    """Whether a file, by its path in a run directory, belongs to the run."""
    return name in layout.FILES or RECORD_FILE.fullmatch(name) is not None


def pack(directory: Path, parcel: BinaryIO) -> None:
    """Write a run directory into an open file, as a tar archive below the directory's name. Plots stay behind."""
    record = sorted(path for path in (directory / layout.RECORD).rglob("*") if path.is_file())
    names = [*layout.FILES, *(path.relative_to(directory).as_posix() for path in record)]
    with tarfile.open(fileobj=parcel, mode="w") as archive:
        for name in filter(is_of_a_run, names):
            with contextlib.suppress(FileNotFoundError):
                archive.add(directory / name, f"{directory.name}/{name}", recursive=False)


def unpack(parcel: BinaryIO, sweep_dir: Path) -> Path:
    """Make a run directory from a parcel; returns it.

    It replaces the run with the same config. Without one it gets the name it had, or the first free number where
    another run has that. Raises CheckError for what is no parcel.
    """
    with _arriving(sweep_dir) as folder:
        name = _extract(parcel, folder)
        text = config_text(folder)
        if text is None:
            raise CheckError("a run directory that is sent: must have a readable config.yaml")
        target = next((path for path in run_directories(sweep_dir) if config_text(path) == text), None)
        if target is not None:
            replaced = folder.with_name(f"{REPLACED}{target.name}")
            shutil.rmtree(replaced, ignore_errors=True)
            target.rename(replaced)
            folder.rename(target)
            shutil.rmtree(replaced)
        else:
            target = next(path for path in _candidates(sweep_dir, name) if not path.exists())
            folder.rename(target)
    sync_folder(sweep_dir)
    return target


def recover(sweep_dir: Path) -> None:
    """Undo what a kill in the midst of an arrival left behind; only while nothing arrives."""
    for path in (sweep_dir / layout.WORKERS).glob(f"{REPLACED}*"):
        target = sweep_dir / path.name.removeprefix(REPLACED)
        if not target.exists():
            path.rename(target)
    for path in (sweep_dir / layout.WORKERS).glob(".*"):
        if path.name.startswith((ARRIVING, REPLACED)):
            shutil.rmtree(path)


@contextlib.contextmanager
def _arriving(sweep_dir: Path) -> Iterator[Path]:
    """A new folder that no reader of runs looks into; removed unless it is renamed meanwhile."""
    folder = sweep_dir / layout.WORKERS / f"{ARRIVING}{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _extract(parcel: BinaryIO, folder: Path) -> str:
    """Write the parcel's files into a folder; returns the name of the directory that they came from.

    It comes from another machine: nothing but files with a run's names is taken.
    """
    names = set()
    try:
        with tarfile.open(fileobj=parcel, mode="r") as archive:
            for member in archive:
                directory, _, name = member.name.partition("/")
                content = archive.extractfile(member) if member.isreg() and is_of_a_run(name) else None
                if content is None or not directory.isdecimal():
                    raise CheckError(f"a run directory that is sent: must not hold {member.name!r}")
                names.add(directory)
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with (folder / name).open("xb") as file:
                    shutil.copyfileobj(content, file)
                    file.flush()
                    sync(file.fileno())
    except (tarfile.TarError, EOFError) as error:
        raise CheckError(f"a run directory that is sent: must be whole: {error}") from None
    if len(names) != 1:
        raise CheckError("a run directory that is sent: must be one directory")
    return names.pop()


def _candidates(sweep_dir: Path, name: str) -> Iterator[Path]:
    return (sweep_dir / candidate for candidate in itertools.chain([name], map(str, itertools.count())))
