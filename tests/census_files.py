"""Embeddings in files for the tests of the census, and a plain census of them."""

from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from marble_sweep.census.census import Census, take_census

NAME = "model.embed_tokens.weight"
NUMPY = {torch.bfloat16: ml_dtypes.bfloat16, torch.float16: np.float16, torch.float32: np.float32}


def write(path: Path, weights: torch.Tensor, name: str = NAME, **others: torch.Tensor) -> Path:
    """A safetensors file with an embedding, and other tensors."""
    save_file({name: weights.contiguous(), **others}, path)
    return path


def census_of(path: Path | str, tokenizer: Path | None = None, *, as_bfloat16: bool = False) -> Census:
    return take_census(path, tokenizer, step=None, as_bfloat16=as_bfloat16)


def as_numpy(weights: torch.Tensor) -> NDArray[np.generic]:
    """The same numbers in numpy's own dtype, or that of ml_dtypes."""
    bits = weights.contiguous().view(torch.uint16 if weights.element_size() == 2 else torch.uint32).numpy()
    return bits.view(NUMPY[weights.dtype])


def plain_holes(values: NDArray[np.generic]) -> list[list[int]]:
    """Groups of rows of the same bits."""
    _, group, sizes = np.unique(values.view(f"u{values.itemsize}"), axis=0, return_inverse=True, return_counts=True)
    groups = [np.flatnonzero(group == number).tolist() for number in np.flatnonzero(sizes > 1)]
    return sorted(groups, key=lambda ids: (-len(ids), ids))


def plain_cells(first: NDArray[np.generic], second: NDArray[np.generic]) -> NDArray[np.float64]:
    """Cells between numbers, on the grid of the one that is farther from zero, by its neighbour away from zero."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    start = np.where(np.abs(a) >= np.abs(b), first, second)
    away = np.where(np.signbit(start), -np.inf, np.inf).astype(first.dtype)
    return np.abs(a - b) / np.abs(np.nextafter(start, away).astype(np.float64) - start.astype(np.float64))
