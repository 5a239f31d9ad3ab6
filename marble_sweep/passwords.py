"""Passwords in the addresses of databases: recognised, refused, and masked in whatever is printed."""

import contextlib
import io
import re
import sys
from collections.abc import Iterator, Sequence

from marble_sweep.checks import wrong_value

# scheme://user:password@host. A password that was not encoded may hold any character, an @ too: the last @ ends it.
IN_URL = re.compile(r"([A-Za-z][\w+.-]*:/{0,2}[^\s:/@?]*:)(.+)@")
# password=…, as in the query of a URL or in a driver's own words.
IN_FIELD = re.compile(r"((?:password|passwd|passphrase|pwd)\s*(?:=|%3D)\s*)('[^']*'|[^&;\s]+)", re.IGNORECASE)
STORAGE_IN_A_DICT = re.compile(r"\bstorage['\"]?\s*:")
WITHOUT_PASSWORD = (
    "without a password: PostgreSQL's is read from the variable PGPASSWORD, from ~/.pgpass or from the file named by "
    "PGPASSFILE; another database's from its driver's own file (docs/search.md)"
)


def has_password(address: str) -> bool:
    return mask(address) != address


def mask(text: str) -> str:
    """The text with *** for every password in it."""
    return IN_FIELD.sub(r"\1***", IN_URL.sub(r"\1***@", text))


@contextlib.contextmanager
def masked_output() -> Iterator[None]:
    """Mask what is printed meanwhile."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        sys.stdout.write(mask(printed.getvalue()))


def refuse_passwords(overrides: Sequence[str]) -> None:
    """Raise CheckError for an override that names a storage by its password.

    Hydra repeats overrides in its messages and in --cfg, and writes them down: they are looked at before it sees them.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        value = value.replace("\\", "")  # signs may be escaped in Hydra's grammar
        names_storage = key.endswith("storage") or STORAGE_IN_A_DICT.search(value)
        if names_storage and has_password(value):
            raise wrong_value(key.lstrip("+"), mask(value), WITHOUT_PASSWORD)
