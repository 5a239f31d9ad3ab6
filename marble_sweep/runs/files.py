"""Atomic writes: a file is written under a temporary name, synced, then renamed. And locks of directories."""

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

# Errors of file systems that lack a call: FAT and network folders have no hard links, CIFS cannot sync a folder,
# some clusters mount without flock.
UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM, errno.EMLINK}
UNSUPPORTED |= {errno.EBADF, errno.EISDIR, errno.ENOTTY}
NO_FLOCK = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK}
# A temporary file of this program, named with a random number; version 0.1.0 used the number of the process.
TEMPORARY = re.compile(r"\..+\.(json|csv|yaml|safetensors|parquet|png|html)\.([0-9a-f]{32}|[0-9]+)\.tmp")


def temporary_path(path: Path) -> Path:
    """A name beside `path` that no other process uses, on this machine or another that shares the folder."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make an OSError name `path` where it names no file, as that of a full disk does not."""
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
    """Yield a temporary path beside `path`; it replaces `path` on success and is removed on failure.

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
    sync_folder(path.parent)  # so that the rename itself survives a power cut


def sync(descriptor: int) -> None:
    """Write a file or folder out to the disk, where the file system can."""
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
    """Write a whole file that must not exist yet; False, with nothing written, where it does."""
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
    """The process that creates the claim first may rename. The claim stays: without it a second one could follow."""
    if path.exists():
        return False
    try:
        os.close(os.open(path.with_name(f".{path.name}.claimed"), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    temporary.replace(path)
    return True


def open_append(path: Path) -> BinaryIO:
    """Open a file to append to, unbuffered, and never one outside its folder.

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
    """Refuse links, pipes and devices in a directory that may come from a stranger: they lead out of it, or block.

    Raises ValueError for a link, pipe, device or the like in the place of one of `files` or `folders`.
    """
    for names, is_kind, kind in ((files, stat.S_ISREG, "file"), (folders, stat.S_ISDIR, "folder")):
        for name in names:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                path = directory / name
                if not is_kind(path.lstat().st_mode):
                    raise CheckError(f"{path}: must be an ordinary {kind}, not a link, pipe or device")


def lock_directory(directory: Path, setting: str, *, wait: bool = False) -> BaseFileLock:
    """Lock a directory, created where it is missing, against other processes until the lock is released.

    Removes the temporary files that killed processes left in it. Raises ValueError for `setting` where another
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
            # Without flock the lock is a file that exists; after a kill it stays, so waiting for it might never end.
            lock = SoftFileLock(directory / layout.SOFT_LOCK)
            lock.acquire(blocking=False)
    except Timeout:
        hint = f" (if none does, remove {lock.lock_file})" if isinstance(lock, SoftFileLock) else ""
        raise wrong_value(setting, directory, f"free: a running process holds it{hint}") from None
    remove_temporaries(directory)
    return lock


def remove_temporaries(directory: Path) -> None:
    """Remove the temporary files of killed processes; only for the holder of the directory's lock."""
    for path in list(directory.iterdir()):
        if TEMPORARY.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def user_path(path: str) -> Path:
    """A path as a user gives it, with `~` as the home directory."""
    return Path(os.path.expanduser(path))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
