"""Which code made a run."""

import functools
import hashlib
from pathlib import Path


@functools.cache
def code_sha256() -> str:
    """SHA-256 of the package's source files: runs with the same hash were made by the same code."""
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
