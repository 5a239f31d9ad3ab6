"""What a search has left beside its trials: search.json."""

import json
from collections.abc import Sequence
from typing import Any

from marble_sweep.runs.run import Run


def read_search(runs: Sequence[Run]) -> dict[str, Any] | None:
    """The search.json of the search that all these runs are trials of; None where they are not."""
    folders = {run.path.resolve().parent for run in runs}
    if len(folders) != 1:
        return None
    try:
        found: dict[str, Any] = json.loads((folders.pop() / "search.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found
