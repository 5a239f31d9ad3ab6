"""Black holes as they form: groups of bit-identical rows at sampled steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marble_sweep.lifecycle.motion import Bits, displacement, seen, values

MAX_COMPARED = 64  # black holes of a step, the largest, between which cells are counted


def identical_rows(rows: Bits) -> list[NDArray[np.intp]]:
    """Groups of two or more identical rows, largest first, then by first row; +0 and -0 are different bits."""
    members: dict[bytes, list[int]] = {}
    data, width = rows.tobytes(), rows.shape[1] * rows.itemsize
    for row in range(len(rows)):
        members.setdefault(data[row * width : (row + 1) * width], []).append(row)
    groups = sorted((group for group in members.values() if len(group) > 1), key=len, reverse=True)
    return [np.array(group) for group in groups]


def nearest_cells(rows: NDArray[np.uint16]) -> NDArray[np.float64]:
    """For each row (n, D) how many cells the nearest other one is away in its farthest dimension; NaN for a single one.

    Cells are those of the coarser grid of the two, so it is the same in both directions.
    """
    distances = np.full((len(rows), len(rows)), np.inf)
    for first, row in enumerate(rows[:-1]):
        others = rows[first + 1 :]
        farther = np.abs(values(row)) >= np.abs(values(others))
        start, end = np.where(farther, row, others), np.where(farther, others, row)
        distances[first, first + 1 :] = distances[first + 1 :, first] = np.abs(displacement(start, end)).max(axis=1)
    nearest = distances.min(axis=1, initial=np.inf)
    return np.where(np.isfinite(nearest), nearest, np.nan)


class HoleHistory:
    """The black holes among `token_ids`, one sampled step after another."""

    def __init__(self, token_ids: NDArray[np.int64]) -> None:
        self.token_ids = token_ids
        self.rows: list[dict[str, Any]] = []
        self.sizes: dict[int, list[int]] = {}  # of every sampled step
        self.hole_of = np.full(len(token_ids), -1)  # in the sampled step before; -1: in none

    def add(self, step: int, bits: Bits) -> None:
        """The rows (len(token_ids), D) at a sampled step."""
        groups = identical_rows(bits)
        self.sizes[step] = [len(group) for group in groups]
        compared = [group[0] for group in groups[:MAX_COMPARED]]
        nearest = np.full(len(groups), np.nan)
        nearest[: len(compared)] = nearest_cells(seen(bits[compared]))
        for group, cells in zip(groups, nearest, strict=True):
            merged = set(self.hole_of[group].tolist()) - {-1}
            tokens = self.token_ids[group].tolist()
            self.rows.append(
                {"step": step, "size": len(group), "tokens": tokens, "num_merged": len(merged), "nearest_cells": cells}
            )
        self.hole_of[:] = -1
        for number, group in enumerate(groups):
            self.hole_of[group] = number


HOLE_COLUMNS: Sequence[str] = ("step", "size", "tokens", "num_merged", "nearest_cells")
