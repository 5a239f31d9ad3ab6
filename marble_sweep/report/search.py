"""What a search has left beside its trials: search.json."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marble_sweep.runs.run import Run


def read_search(runs: Sequence[Run]) -> dict[str, Any] | None:
    """The search.json of the search that all these runs are trials of; None where they are not."""
    folders = {run.path.resolve().parent for run in runs}
    if len(folders) != 1:
        return None
    try:
        return read_search_json(folders.pop())
    except (FileNotFoundError, ValueError):
        return None


def read_search_json(directory: Path) -> dict[str, Any]:
    """What a search has found, as docs/search.md has it. Raises FileNotFoundError where there was none."""
    found: dict[str, Any] = json.loads((directory / "search.json").read_text(encoding="utf-8"))
    return found
