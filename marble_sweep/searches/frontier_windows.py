"""How certain losses of several sizes are, which are evaluated on the same held-out windows.

Text that is hard for one model is hard for all of them. So a loss has an error of its own, of what sets its model apart
from the others on these windows, and one that it shares with all of them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from marble_sweep.runs.damage import DamageError
from marble_sweep.runs.window_losses import read_documents, read_window_losses
from marble_sweep.uncertainty.clusters import Numbers, clustered_mean


def window_errors(sizes: Sequence[Sequence[Path]], step: int) -> tuple[list[float], float] | None:
    """The standard error of each size's loss alone, and the one that all share, from the runs of every size.

    The losses are those at `step`, on the windows that all runs were evaluated on, averaged over a size's runs. None
    where a file is missing or damaged, where runs have other windows, or where the windows cannot tell an error.
    """
    losses: list[Numbers] = []
    known: set[str] = set()
    try:
        for directories in sizes:
            evaluations = [read_window_losses(directory, step) for directory in directories]
            present = [evaluation for evaluation in evaluations if evaluation is not None]
            known |= {evaluation.numbers for evaluation in present}
            if len(present) < max(1, len(directories)) or len(known) != 1:
                return None
            losses.append(np.mean([evaluation.losses for evaluation in present], axis=0))
        documents = read_documents(sizes[0][0], *known)
    except (FileNotFoundError, DamageError):
        return None
    return shared_and_own(np.array(losses), documents)


def shared_and_own(losses: Numbers, documents: np.ndarray | None) -> tuple[list[float], float] | None:
    """The same from `losses` (num_sizes, num_windows) in the order of the text, of `documents` (num_windows,)."""
    mean = losses.mean(axis=0)
    own = [clustered_mean(of_size - mean, documents).error for of_size in losses]
    shared = clustered_mean(mean, documents).error
    return (own, shared) if np.isfinite([*own, shared]).all() else None
