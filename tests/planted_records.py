"""Records in memory whose tokens move as planted: by known cells at known steps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from marble_sweep.lifecycle.motion import Bits
from marble_sweep.record.store import Contents, RecordStore
from marble_sweep.runs import layout


@dataclass
class Planted:
    """What a record's reader gives, from arrays."""

    bits: Bits  # (n, R, D)
    dead_mask: NDArray[np.bool_]
    h_mean: NDArray[np.float32]
    steps: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    kind: str = "full"
    norms: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0, 4), np.float32))  # (m, R, 4)
    intended: pd.DataFrame | None = None
    block: int = 7  # steps

    def __post_init__(self) -> None:
        if not len(self.steps):
            self.steps = np.arange(len(self.bits))
        self.token_ids = np.arange(len(self.dead_mask)) if self.kind == "full" else np.flatnonzero(self.dead_mask)

    @property
    def last_step(self) -> int:
        return int(self.steps[-1]) if len(self.steps) else len(self.norms)

    def norm_blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        for begin in range(0, len(self.norms), self.block):
            part = self.norms[begin : begin + self.block]
            yield np.arange(begin + 1, begin + 1 + len(part)), part

    def blocks(self, tokens: Sequence[int] | None = None) -> Iterator[tuple[NDArray[np.int64], Bits]]:
        places = slice(None) if tokens is None else np.searchsorted(self.token_ids, tokens)
        for begin in range(0, len(self.steps), self.block):
            yield self.steps[begin : begin + self.block], self.bits[begin : begin + self.block, places].copy()

    def write(self, run_dir: Path) -> None:
        """Leave it in a run directory, as a recorder does."""
        dim, every = self.h_mean.shape[1], int(self.steps[1] - self.steps[0])
        bits = "bfloat16" if self.bits.dtype == np.uint16 else "float32"
        contents = Contents(self.kind, self.token_ids, self.dead_mask, dim, bits, every)
        store = RecordStore(run_dir / layout.RECORD, contents)
        for step in range(self.last_step + 1):
            values = {"h_mean": self.h_mean[step - 1]} if step else {}
            if step and len(self.norms):
                values["norms"] = self.norms[step - 1]
            is_recorded = step % every == 0 and not len(self.norms)
            store.append(step, weights=self.bits[step // every] if is_recorded else None, values=values)
        store.commit()


def ordered(bits: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Integers that are neighbours where the bfloat16 values are; -0 is -1."""
    signed = bits.astype(np.int64)
    return np.where(signed >= 0x8000, 0x7FFF - signed, signed)


def from_ordered(places: NDArray[np.int64]) -> NDArray[np.uint16]:
    return np.where(places < 0, 0x7FFF - places, places).astype(np.uint16)


def bfloat16_bits(values: NDArray[np.float64]) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16."""
    import ml_dtypes

    return values.astype(ml_dtypes.bfloat16).view(np.uint16)


def hopping(
    start: NDArray[np.uint16], num_steps: int, hops: dict[int, dict[int, dict[int, int]]]
) -> NDArray[np.uint16]:
    """(num_steps + 1, R, D): `hops` has, by step, token and dimension, how many lattice points a weight goes up."""
    places = ordered(start)
    history = [start]
    for step in range(1, num_steps + 1):
        for token, by_dim in hops.get(step, {}).items():
            for dim, points in by_dim.items():
                places[token, dim] += points
        history.append(from_ordered(places))
    return np.stack(history)


def random_walk(rng: np.random.Generator, num_steps: int, num_tokens: int, dim: int) -> NDArray[np.uint16]:
    """Tokens that slow down, some next to zero and across it, some across powers of two; (num_steps + 1, R, D)."""
    places = ordered(bfloat16_bits(rng.normal(0, 0.02, (num_tokens, dim))))
    places[0] = rng.integers(-3, 3, dim)  # zeros and subnormals
    places[1] = ordered(bfloat16_bits(np.full((1, dim), 0.5)))
    history = [from_ordered(places)]
    speed = rng.uniform(0.5, 4, (num_tokens, 1))
    for step in range(1, num_steps + 1):
        size = 8 * np.exp(-speed * step / num_steps * 3)
        places = places + np.round(rng.normal(0, size, places.shape) * (rng.random(places.shape) < size)).astype(int)
        history.append(from_ordered(places))
    return np.stack(history)
