"""The first pass over an embedding: what every row and every column is, and a digest of each row's bits."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from marble_sweep.census.embedding import Embedding
from marble_sweep.metrics.lattice import Lattice

PROJECTIONS = 4  # in more dimensions a k-d tree of 150,000 points takes many times as long
TOP_BITS = 16  # of a value: all of a 16-bit format, and sign, exponent and 7 bits of a float32


@dataclass
class Scan:
    """What one pass tells. V rows, D dimensions."""

    digests: list[bytes]  # SHA-256 of each row's bits
    num_nan: NDArray[np.int64]  # (V,) of a row
    num_inf: NDArray[np.int64]  # (V,)
    is_zero: NDArray[np.bool_]  # (V,) nothing but +0 and -0
    exponents: NDArray[np.int64]  # how many values have each biased exponent field
    minimum: Tensor  # (D,) float32, over finite rows, as are all that follow
    maximum: Tensor
    column_sums: Tensor  # (D,) float64
    projected: NDArray[np.float64]  # (V, at most PROJECTIONS)
    is_on_bfloat16: bool  # every value of a float32 tensor is a bfloat16

    @property
    def is_finite(self) -> NDArray[np.bool_]:
        """(V,) rows without NaN and infinity."""
        return (self.num_nan == 0) & (self.num_inf == 0)


def scan_rows(embedding: Embedding) -> Scan:
    """Read an embedding once."""
    num_rows, dim, lattice = embedding.num_rows, embedding.dim, embedding.lattice
    directions = random_directions(dim)
    scan = Scan(
        digests=[],
        num_nan=np.zeros(num_rows, dtype=np.int64),
        num_inf=np.zeros(num_rows, dtype=np.int64),
        is_zero=np.zeros(num_rows, dtype=np.bool_),
        exponents=np.zeros(1 << lattice.exponent_bits, dtype=np.int64),
        minimum=torch.full((dim,), torch.inf),
        maximum=torch.full((dim,), -torch.inf),
        column_sums=torch.zeros(dim, dtype=torch.float64),
        projected=np.zeros((num_rows, directions.shape[1])),
        is_on_bfloat16=True,
    )
    for place, rows in embedding.chunks("rows"):
        bits = row_bits(rows)
        scan.digests += [hashlib.sha256(row, usedforsecurity=False).digest() for row in bits]
        scan.exponents += count_exponents(bits, lattice)
        scan.is_on_bfloat16 &= bits.itemsize == 4 and not (bits & 0xFFFF).any()
        scan.is_zero[place] = ~rows.any(dim=1).numpy()
        finite = rows.isfinite().all(dim=1)
        if not finite.all():
            scan.num_nan[place] = rows.isnan().sum(dim=1)
            scan.num_inf[place] = rows.isinf().sum(dim=1)
            rows = rows[finite]
        if len(rows):
            values = rows.double()
            scan.column_sums += values.sum(dim=0)
            scan.projected[place][finite.numpy()] = values @ directions
            torch.minimum(scan.minimum, rows.amin(dim=0).float(), out=scan.minimum)
            torch.maximum(scan.maximum, rows.amax(dim=0).float(), out=scan.maximum)
    return scan


def row_bits(rows: Tensor) -> NDArray[np.unsignedinteger]:
    """The bits of rows, as unsigned integers of the values' width."""
    return rows.contiguous().view(torch.uint16 if rows.element_size() == 2 else torch.uint32).numpy()


def count_exponents(bits: NDArray[np.unsignedinteger], lattice: Lattice) -> NDArray[np.int64]:
    """How many values have each biased exponent field; the last one is that of infinity and NaN."""
    top = bits >> (8 * bits.itemsize - TOP_BITS)
    counts = np.bincount(top.reshape(-1), minlength=1 << TOP_BITS)
    return counts.reshape(2, 1 << lattice.exponent_bits, -1).sum(axis=(0, 2))


def random_directions(dim: int) -> Tensor:
    """(D, few) float64: directions to project rows on, always the same; the axes themselves where D is as small."""
    if dim <= PROJECTIONS:
        return torch.eye(dim, dtype=torch.float64)
    return torch.from_numpy(np.random.default_rng(0).standard_normal((dim, PROJECTIONS)))
