"""Files that are whole or not there: written beside their place, synced, then renamed into it."""

import contextlib
import errno
import json
import os
import re
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from marble_sweep.checks import CheckError, wrong_value
from marble_sweep.runs import layout

# What file systems answer that lack a call: FAT and network folders have no hard links, CIFS cannot sync a folder,
# some clusters mount without flock.
UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM, errno.EMLINK}
UNSUPPORTED |= {errno.EBADF, errno.EISDIR, errno.ENOTTY}
NO_FLOCK = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK}
# A temporary file of this program, named with a random number; earlier ones with that of the process.
TEMPORARY = re.compile(r"\..+\.(json|csv|yaml|safetensors|png|html)\.([0-9a-f]{32}|[0-9]+)\.tmp")


def temporary_path(path: Path) -> Path:
    """A name beside `path` that no other process has, on this machine or another that shares the folder."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make an OSError name `path` where it names no file: a full disk does not say where."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise OSError(f"{path}: {error}") from error
        if error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it takes its place, on failure it is removed.

    Raises OSError where the folder cannot be written or the disk is full; `path` is then untouched.
    """
    temporary = temporary_path(path)
    try:
        with naming(path):
            yield temporary
            with temporary.open("rb+") as file:
                sync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)  # makes the rename itself outlast a power cut


def sync(descriptor: int) -> None:
    """Have the disk write a file or folder out, where the file system knows how."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def sync_folder(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_exclusive(path: Path, text: str) -> bool:
    """Write a file that must not be there yet, whole; False, and nothing done, if it is."""
    temporary = temporary_path(path)
    try:
        with naming(path):
            temporary.write_text(text, encoding="utf-8")
        try:
            os.link(temporary, path)  # unlike a rename, it fails where the name is taken
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            return _create_without_links(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _create_without_links(temporary: Path, path: Path) -> bool:
    """Whoever makes the claim first may rename. It stays: to remove it would let a second one in."""
    if path.exists():
        return False
    try:
        os.close(os.open(path.with_name(f".{path.name}.claimed"), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    temporary.replace(path)
    return True


def open_append(path: Path) -> BinaryIO:
    """Open a file to append to, unbuffered; never one that lies elsewhere.

    A symbolic link is not followed, and a file that has a second name (a hard link, as some backups make)
    is replaced by a copy first, so that the other name keeps its content.
    """
    if path.exists() and path.lstat().st_nlink > 1:
        content = path.read_bytes()
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o666), "ab", buffering=0)


def require_ordinary(directory: Path, *, files: Iterable[str], folders: Iterable[str] = ()) -> None:
    """Nothing in a directory that may come from a stranger leads out of it, or blocks whoever opens it.

    Raises ValueError for a link, pipe, device or the like in the place of one of `files` or `folders`.
    """
    for names, is_kind, kind in ((files, stat.S_ISREG, "file"), (folders, stat.S_ISDIR, "folder")):
        for name in names:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                path = directory / name
                if not is_kind(path.lstat().st_mode):
                    raise CheckError(f"{path}: must be an ordinary {kind}, not a link, pipe or device")


def lock_directory(directory: Path, setting: str, *, wait: bool = False) -> BaseFileLock:
    """Hold a directory, made if it is not there, against other processes until the lock is released.

    What killed processes left half written in it is removed. Raises ValueError for `setting` where another
    process holds it; `wait` waits for that one instead.
    """
    directory.mkdir(parents=True, exist_ok=True)
    require_ordinary(directory, files=[layout.LOCK, layout.SOFT_LOCK])
    lock: BaseFileLock = FileLock(directory / layout.LOCK, fallback_to_soft=False)
    try:
        try:
            lock.acquire(blocking=wait)
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            # The existence of a file is the lock then; after a kill it stays, so nobody waits for it.
            lock = SoftFileLock(directory / layout.SOFT_LOCK)
            lock.acquire(blocking=False)
    except Timeout:
        hint = f" (if none does, remove {lock.lock_file})" if isinstance(lock, SoftFileLock) else ""
        raise wrong_value(setting, directory, f"free: a running process holds it{hint}") from None
    remove_temporaries(directory)
    return lock


def remove_temporaries(directory: Path) -> None:
    """Remove what killed processes left half written; only while the directory is held, by the one who holds it."""
    for path in list(directory.iterdir()):
        if TEMPORARY.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def user_path(path: str) -> Path:
    """A path as a user gives it: `~` is a home."""
    return Path(os.path.expanduser(path))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
