"""What a record must give, as record/reader.py does."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from marble_sweep.lifecycle.motion import Bits, Floats

NORMS_ALONE = "dead"  # the kind of record that has no positions
SOME_DEAD = "tracers"  # the kind that may have only some of the dead tokens


class Recorded(Protocol):
    """n recorded steps of R of V tokens in D dimensions; a row of the tables for every training step 1 to m."""

    @property
    def kind(self) -> str:
        """`dead` (norms alone), `tracers` (some dead tokens) or `full` (all tokens)."""

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """(R,)."""

    @property
    def dead_mask(self) -> NDArray[np.bool_]:
        """(V,)."""

    @property
    def steps(self) -> NDArray[np.int64]:
        """(n,) of the recorded positions, step 0 the first."""

    @property
    def last_step(self) -> int:
        """m."""

    @property
    def h_mean(self) -> Floats:
        """(m, D); (0, 0) where no hidden states were recorded."""

    @property
    def intended(self) -> pd.DataFrame | None:
        """Shares of the intended update, a column each, by step."""

    def norm_blocks(self) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        """Of kind `dead`: consecutive steps (k,) with norms (k, R, 4): L1, L2, L-infinity, the change's L2 norm."""

    def blocks(self, tokens: Sequence[int] | None = None) -> Iterator[tuple[NDArray[np.int64], Bits]]:
        """Of the others: consecutive steps (k,) with the bits (k, R, D) of all recorded tokens, or of these."""


@dataclass(frozen=True)
class RecordUntil:
    """A record as if it ended at `last_step`, which is one of its recorded steps."""

    whole: Recorded
    last_step: int

    @property
    def kind(self) -> str:
        return self.whole.kind

    @property
    def token_ids(self) -> NDArray[np.int64]:
        return self.whole.token_ids

    @property
    def dead_mask(self) -> NDArray[np.bool_]:
        return self.whole.dead_mask

    @property
    def steps(self) -> NDArray[np.int64]:
        return self.whole.steps[self.whole.steps <= self.last_step]

    @property
    def h_mean(self) -> Floats:
        return self.whole.h_mean[: self.last_step]

    @property
    def intended(self) -> pd.DataFrame | None:
        return None if self.whole.intended is None else self.whole.intended.loc[: self.last_step]

    def norm_blocks(self) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        for steps, norms in self.whole.norm_blocks():
            number = int((steps <= self.last_step).sum())
            if number:
                yield steps[:number], norms[:number]
            if number < len(steps):
                return

    def blocks(self, tokens: Sequence[int] | None = None) -> Iterator[tuple[NDArray[np.int64], Bits]]:
        for steps, bits in self.whole.blocks(tokens):
            number = int((steps <= self.last_step).sum())
            if number:
                yield steps[:number], bits[:number]
            if number < len(steps):
                return
