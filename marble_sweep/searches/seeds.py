"""The seeds of a search: its own, and fresh ones that no other search uses."""

import hashlib
import json
from collections.abc import Mapping

from marble_sweep.searches.space import Value

BITS = 31  # short enough to read and to type


def trial_seed(search_seed: int, params: Mapping[str, Value], index: int) -> int:
    """The seed of a trial: the search's own for index 0, else a fresh one.

    A fresh seed is derived from the search's seed, the size and the recipe: searches whose seeds are neighbours share
    none, nor do two recipes, so what is trained next never depends on the seeds that will judge it.
    """
    if index == 0:
        return search_seed
    text = json.dumps([search_seed, sorted(params.items()), index])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()) >> (256 - BITS)
