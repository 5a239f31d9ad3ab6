"""The user's own text: a file, a glob, or a folder."""

import glob
import logging
import os
from pathlib import Path

from marble_sweep.checks import require

SUFFIXES = (".txt", ".md")  # in upper or lower case

logger = logging.getLogger(__name__)


def read_documents(path: str) -> dict[str, str]:
    """Texts by file name (relative to the folder they share), sorted.

    Raises ValueError if there is no such file, or one that is not UTF-8, or nothing but white space in all of them.
    """
    try:
        files = _find(path)
    except OSError as error:
        raise ValueError(f"data.path = {path!r}: must be readable ({error.strerror}: {error.filename!r})") from None
    require(bool(files), "data.path", repr(path), f"a file, a glob, or a folder with {' or '.join(SUFFIXES)} files")
    root = os.path.commonpath([file.parent for file in files])
    documents = {file.relative_to(root).as_posix(): read_text(file, "data.path") for file in files}
    documents = {name: text for name, text in documents.items() if text.strip()}
    require(bool(documents), "data.path", repr(path), "more than white space, and is empty")
    return documents


def read_text(path: Path, name: str) -> str:
    """A UTF-8 file, its line ends as Unix has them. Raises ValueError for setting `name` if it cannot be read."""
    try:
        text = read_bytes(path, name).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} = {str(path)!r}: must be UTF-8, and byte {error.start} is not") from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def read_bytes(path: Path, name: str) -> bytes:
    """The bytes of a file. Raises ValueError for setting `name` if it cannot be read."""

    def complaint(reason: str) -> ValueError:
        return ValueError(f"{name} = {str(path)!r}: must be a readable file ({reason})")

    try:
        if path.exists() and not path.is_file():
            raise complaint("Is a directory" if path.is_dir() else "Not a regular file")  # a pipe would never end
        return path.read_bytes()
    except OSError as error:
        raise complaint(error.strerror or str(error)) from None
    except MemoryError:
        raise complaint(f"{path.stat().st_size:,} bytes do not fit into memory") from None


def printable(path: str) -> str:
    """A path as valid UTF-8: other bytes are escaped."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


def _find(path: str) -> list[Path]:
    """The files that a path means: a file or folder of exactly that name, or else what it matches as a glob."""
    if not path:
        return []
    expanded = Path(os.path.expanduser(path))
    if expanded.is_file():
        return [expanded]
    if expanded.is_dir():
        return _find_in(expanded)
    # Leading folders that exist are taken literally, so a `[` in their names is not a pattern.
    folder, *parts = (expanded.anchor or os.curdir), *expanded.relative_to(expanded.anchor).parts
    while parts and os.path.lexists(os.path.join(folder, parts[0])):
        folder = os.path.join(folder, parts.pop(0))
    matches = glob.glob(os.path.join(*parts), root_dir=folder, recursive=True) if parts else []
    return sorted(file for match in matches if (file := Path(folder, match)).is_file())


def _find_in(folder: Path) -> list[Path]:
    """The texts in a folder, at any depth. Hidden files and folders are left out: `._book.txt`, `.git`."""

    def fail(error: OSError) -> None:
        raise error  # os.walk would silently leave out a folder that cannot be read

    files = []
    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(parent, name)
            if name.startswith(".") or file.suffix.lower() not in SUFFIXES:
                continue
            if file.is_file():
                files.append(file)
            else:
                logger.warning("data.path: %r is left out: it is a broken link or not a regular file", str(file))
    return sorted(files)
