"""A cache of files under the user's cache directory, keyed by content and verified on every read.

An entry is a directory of files and a `manifest.json` with their SHA-256. It is written under a
temporary name and renamed, so several processes may build the same entry at once. An entry that does
not match its manifest is built again, never used.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import platformdirs

from marble_sweep.runs.files import user_path

FORMAT_VERSION = 2  # raise it whenever the same inputs would build other files
MANIFEST = "manifest.json"

logger = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Where entries live: the environment's MARBLE_SWEEP_CACHE, or the user's cache directory."""
    return user_path(os.environ.get("MARBLE_SWEEP_CACHE") or platformdirs.user_cache_dir("marble_sweep"))


def content_key(*parts: object) -> str:
    """SHA-256, in hexadecimal, of JSON-able parts and the format version."""
    return hashlib.sha256(json.dumps([FORMAT_VERSION, *parts]).encode()).hexdigest()


def cached(kind: str, key: str, build: Callable[[], dict[str, bytes]]) -> dict[str, bytes]:
    """The files (name to content) of entry `key`: read and verified, or built and stored.

    Where nothing can be stored (no permission, no space) the files are built every time, and the log says so once.
    """
    path = cache_dir() / f"{kind}-{key}"
    files = _read(path)
    if files is None:
        files = build()
        try:
            _write(path, files)
        except OSError as error:
            _warn_unwritable(str(path.parent), error.strerror or str(error))
    return files


@cache
def _warn_unwritable(folder: str, reason: str) -> None:
    logger.warning("nothing is cached: cannot write to %s (%s)", folder, reason)


def _read(path: Path) -> dict[str, bytes] | None:
    """The files of an entry; None where it is absent or damaged."""
    if not path.exists():
        return None
    try:
        digests: dict[str, str] = json.loads((path / MANIFEST).read_bytes())["sha256"]
        files = {name: (path / name).read_bytes() for name in digests}
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("cache entry %s is damaged and will be rebuilt (%r)", path, error)
        return None
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != digests[name]:
            logger.warning("cache entry %s is damaged and will be rebuilt (%s has changed)", path, name)
            return None
    return files


def _write(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".building-", dir=path.parent))
    try:
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        manifest = json.dumps({"sha256": digests}, indent=2).encode()
        entry = temporary / "entry"
        entry.mkdir()
        for name, content in (files | {MANIFEST: manifest}).items():
            with open(entry / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if path.exists() and _read(path) is None:
            os.rename(path, temporary / "damaged")
        os.rename(entry, path)
    except OSError:
        # Another process was first; its entry is as good as ours.
        if _read(path) is None:
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
