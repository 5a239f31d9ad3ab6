"""The user's own text: a file, a glob, or a folder."""

import glob
import os
from pathlib import Path

from marble_sweep.config import require

SUFFIXES = (".txt", ".md")


def read_documents(path: str) -> dict[str, str]:
    """Texts by file name (relative to the folder they share), sorted.

    Raises ValueError if there is no such file, or one that is not UTF-8, or nothing but white space in all of them.
    """
    files = _find(path)
    require(bool(files), "data.path", repr(path), f"a file, a glob, or a folder with {' or '.join(SUFFIXES)} files")
    root = os.path.commonpath([file.parent for file in files])
    documents = {file.relative_to(root).as_posix(): read_text(file, "data.path") for file in files}
    documents = {name: text for name, text in documents.items() if text.strip()}
    require(bool(documents), "data.path", repr(path), "more than white space, and is empty")
    return documents


def read_text(path: Path, name: str) -> str:
    """A UTF-8 file, its line ends as Unix has them. Raises ValueError for setting `name` if it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{name} = '{path}': must be a readable file ({error.strerror})") from None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} = '{path}': must be UTF-8, and byte {error.start} is not") from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def _find(path: str) -> list[Path]:
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        return sorted(file for file in place.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    found = map(Path, glob.glob(str(place), recursive=True))
    return sorted(file for file in found if file.is_file())
