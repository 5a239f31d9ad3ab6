"""An embedding on disk, read in chunks of rows: passes over it never hold more than one chunk."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from marble_sweep.census.source import DTYPES, Source, opened
from marble_sweep.checks import CheckError, require, wrong_value
from marble_sweep.metrics.lattice import BFLOAT16, Lattice

CHUNK = 1 << 19  # values read at once: 4 MB in float64, which the caches of most CPUs hold
QUIET_SECONDS = 1.0  # before progress is shown, on a terminal


class Embedding:
    """A matrix (num_rows, dim) of bfloat16, float16 or float32 in a safetensors file."""

    def __init__(self, file: Any, source: Source, *, as_bfloat16: bool) -> None:
        """Raises CheckError for a tensor of another dtype or shape."""
        self.part = file.get_slice(source.tensor)
        self.snapshot = source.snapshot
        shape, dtype = [*self.part.get_shape()], self.part.get_dtype()
        if self.snapshot is not None:
            require(len(shape) == 3 and dtype == "U16", "tensor", source.tensor, "the bits of a run's embeddings")
            shape, dtype = shape[1:], "BF16"
        allowed = f"a matrix with rows and columns; its shape is {shape}"
        require(len(shape) == 2 and 0 not in shape, "tensor", source.tensor, allowed)
        if dtype not in DTYPES:
            raise wrong_value("tensor", source.tensor, f"of dtype {', '.join(DTYPES)}, not {dtype}")
        require(not as_bfloat16 or dtype == "F32", "as_bfloat16", as_bfloat16, f"left out for a tensor of {dtype}")
        self.num_rows, self.dim = shape
        self.as_bfloat16 = as_bfloat16
        self.lattice: Lattice = BFLOAT16 if as_bfloat16 else DTYPES[dtype]
        self.stored = DTYPES[dtype].name
        self.rows_at_once = max(1, CHUNK // self.dim)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows from `start` to before `stop`, in the dtype of the lattice."""
        if self.snapshot is None:
            rows: Tensor = self.part[start:stop]
        else:
            rows = self.part[self.snapshot : self.snapshot + 1, start:stop][0].view(torch.bfloat16)
        return rows.bfloat16() if self.as_bfloat16 else rows

    def chunks(self, what: str) -> Iterator[tuple[slice, Tensor]]:
        """All rows in order, some at once, with their positions; `what` names the pass on a terminal."""
        with tqdm(total=self.num_rows, desc=what, unit="row", delay=QUIET_SECONDS, disable=None, leave=False) as bar:
            for start in range(0, self.num_rows, self.rows_at_once):
                place = slice(start, min(start + self.rows_at_once, self.num_rows))
                yield place, self.rows(place.start, place.stop)
                bar.update(place.stop - place.start)

    def take(self, ids: Iterable[int]) -> Tensor:
        """The rows of these ids, in their order."""
        return torch.cat([self.rows(number, number + 1) for number in ids])


@contextlib.contextmanager
def open_embedding(source: Source, *, as_bfloat16: bool = False) -> Iterator[Embedding]:
    """The embedding at a place. Raises CheckError where it cannot be read."""
    with opened(source.file) as file:
        try:
            embedding = Embedding(file, source, as_bfloat16=as_bfloat16)
        except SafetensorError as error:
            raise CheckError(f"{source.file}: {error}") from None
        yield embedding
