"""Reads what a recorder left in a run directory, in bounded memory, while the run goes on or after it."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from marble_sweep.checks import CheckError, require
from marble_sweep.record.lattice_coding import Bits, decode, ordered
from marble_sweep.record.store import BITS, DEAD, open_group, require_whole
from marble_sweep.runs import layout
from marble_sweep.runs.removed import require_kept

Steps = npt.NDArray[np.int64]
Tokens = Sequence[int] | npt.NDArray[Any]


@dataclass(frozen=True)
class Record:
    """A run's weights step by step, as bits.

    Everything is as of the moment of `open`, also where the run goes on. n is the number of recorded steps, step 0
    among them; m the last step; R the number of recorded tokens.

    >>> from marble_sweep.record.reader import Record
    >>> record = Record.open("outputs/2026-11-26/09-12-44-018239")  # doctest: +SKIP
    >>> for steps, bits in record.blocks():  # doctest: +SKIP
    ...     print(steps, bits.shape)
    """

    path: Path
    kind: str  # dead, tracers or full
    bits_dtype: np.dtype[Any]  # uint16: bits of bfloat16; uint32: of float32
    every: int  # steps from one recorded step to the next
    num_rows: int  # n
    last_step: int  # m
    group: Any  # Zarr's

    @classmethod
    def open(cls, run_dir: str | Path) -> "Record":
        """Raises CheckError where the run has no record, or one that cannot be read or lacks a file."""
        path = Path(run_dir) / layout.RECORD
        require_kept(path)
        group = open_group(path)
        attributes = dict(group.attrs)
        try:
            record = cls(
                path,
                attributes["kind"],
                BITS[attributes["bits"]],
                attributes["every"],
                attributes["num_rows"],
                attributes["last_step"],
                group,
            )
        except KeyError as error:
            raise CheckError(f"{path}: must be a whole record: it does not say {error}") from None
        require_whole(group, path, record.kind, record.num_rows, record.last_step)
        return record

    @functools.cached_property
    def token_ids(self) -> npt.NDArray[np.int64]:
        """The recorded tokens, (R,)."""
        return self.group["token_ids"][:]

    @functools.cached_property
    def dead_mask(self) -> npt.NDArray[np.bool_]:
        """Which tokens of the vocabulary are dead, (V,)."""
        return self.group["dead_mask"][:]

    @functools.cached_property
    def steps(self) -> Steps:
        """The recorded steps, (n,), from step 0."""
        return self.group["steps"][: self.num_rows]

    @functools.cached_property
    def h_mean(self) -> npt.NDArray[np.float32]:
        """h_mean of every step from 1 to m, (m, D); (0, 0) where none was recorded."""
        return self.group["h_mean"][: self.last_step] if "h_mean" in self.group else np.zeros((0, 0), np.float32)

    @functools.cached_property
    def norms(self) -> npt.NDArray[np.float32] | None:
        """Of a record of dead tokens, for every step from 1 to m: (m, R, 4); None of any other.

        They are L1, L2 and L-infinity of the lattice displacement in cells, and the L2 norm of the change itself.
        """
        return self.group["norms"][: self.last_step] if "norms" in self.group else None

    def norm_blocks(self) -> Iterator[tuple[Steps, npt.NDArray[np.float32]]]:
        """The same in bounded memory: consecutive steps (k,) and their norms (k, R, 4)."""
        if "norms" not in self.group:
            raise CheckError(f"{self.path}: must be a record of dead tokens to have norms; it is one of {self.kind}")
        array = self.group["norms"]
        for first in range(0, self.last_step, array.chunks[0]):
            last = min(first + array.chunks[0], self.last_step)
            yield np.arange(first + 1, last + 1), array[first:last]

    @functools.cached_property
    def intended(self) -> pd.DataFrame | None:
        """Shares of the intended update, a row for every step from 1 to m by `step`; None where none was recorded."""
        if "intended" not in self.group:
            return None
        index = pd.RangeIndex(1, self.last_step + 1, name="step")
        columns = self.group["intended"].attrs["columns"]
        return pd.DataFrame(self.group["intended"][: self.last_step], index=index, columns=columns)

    def hidden_blocks(self) -> Iterator[tuple[Steps, npt.NDArray[Any]]]:
        """Consecutive recorded steps (k,) and the last hidden states of the probe there, (k, windows, T, D).

        As bits of bfloat16, or as float32 where weights are that. Raises CheckError where there is no probe.
        """
        if "hidden" not in self.group:
            raise CheckError(f"{self.path}: must have hidden states, which recorder.probe_windows asks for")
        array = self.group["hidden"]
        for first in range(0, self.num_rows, array.chunks[0]):
            last = min(first + array.chunks[0], self.num_rows)
            yield self.steps[first:last], array[first:last]

    def blocks(self, tokens: Tokens | None = None) -> Iterator[tuple[Steps, Bits]]:
        """Consecutive recorded steps (k,) and the bits of their weights (k, R, D), in bounded memory.

        `tokens` are ids, in the order in which they are wanted; None: all that are recorded. Raises CheckError where
        one is not recorded, and for a record of dead tokens, which has norms alone.
        """
        rows = None if tokens is None else self._rows_of(tokens)
        if self.kind == DEAD:
            raise CheckError(f"{self.path}: must have weights, which recorder=dead does not record")
        array, interval = self.group["W"], self.group.attrs["keyframe_interval"]
        last_points = None
        for first in range(0, self.num_rows, array.chunks[0]):
            last = min(first + array.chunks[0], self.num_rows)
            coded = array[first:last] if rows is None else array.oindex[first:last, rows]
            points = decode(coded, None if first % interval == 0 else last_points)
            last_points = points[-1].copy()
            yield self.steps[first:last], ordered(points, out=points)

    def weights(self, tokens: Tokens) -> Bits:
        """The bits of these tokens' weights at every recorded step, (n, len(tokens), D); raises as `blocks` does."""
        blocks = [bits for _, bits in self.blocks(tokens)]
        return np.concatenate(blocks) if blocks else np.zeros((0, len(tokens), 0), self.bits_dtype)

    def _rows_of(self, tokens: Tokens) -> npt.NDArray[np.int64]:
        """Where tokens are among those recorded."""
        row_of = {int(token): row for row, token in enumerate(self.token_ids)}
        for token in tokens:
            require(int(token) in row_of, "token", token, f"one of the {len(row_of):,} that {self.path} has")
        return np.array([row_of[int(token)] for token in tokens], np.int64)
