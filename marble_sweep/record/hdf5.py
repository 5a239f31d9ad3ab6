"""A record made of an HDF5 file with `W` (steps, V, D), the bits of every step's embedding."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tqdm import tqdm

from marble_sweep.checks import CheckError, require
from marble_sweep.record.store import BITS, Contents, RecordStore
from marble_sweep.runs import layout

READ_BYTES = 64 << 20  # at once, unless a step is more


def import_hdf5(source: Path, directory: Path, dead_mask: Path | None = None) -> Path:
    """Make `record/` in a directory, new or a run's, of `W` in an HDF5 file; returns its path. Row t is step t.

    `dead_mask` is a safetensors file with `dead_mask` (V,), as data=notebook takes it; without one the file's own
    `dead_mask` counts, and without that no token is dead. Shows progress. Raises CheckError where the directory has a
    record, or `W` is no bits of that shape; ImportError without h5py.
    """
    import h5py

    path, new = directory / layout.RECORD, directory / f".{layout.RECORD}.new"
    require(not path.exists(), "directory", directory, f"one without a {layout.RECORD}; this one has one")
    try:
        file = h5py.File(source, "r")
    except OSError as error:
        if not source.is_file():
            raise
        raise CheckError(f"{source}: must be an HDF5 file: {error}") from None
    with file:
        weights = file.get("W")
        bits = next((name for name, dtype in BITS.items() if getattr(weights, "dtype", None) == dtype), None)
        if not isinstance(weights, h5py.Dataset) or bits is None or weights.ndim != 3 or 0 in weights.shape:
            raise CheckError(f"{source}: must have W (steps, V, D), bits of bfloat16 as uint16 or of float32 as uint32")
        num_steps, vocab_size, width = weights.shape
        is_dead = _dead_mask(file, dead_mask, vocab_size)
        contents = Contents("full", np.arange(vocab_size), is_dead, width, bits)
        store = RecordStore(new, contents)
        with tqdm(total=num_steps, unit="step", desc="import") as bar:
            for step, row in enumerate(_rows(weights)):
                store.append(step, weights=row)
                bar.update()
        store.commit()
    new.rename(path)
    return path


def _rows(weights: Any) -> Iterator[npt.NDArray[Any]]:
    """The steps of an HDF5 dataset, read many at a time."""
    at_once = max(1, READ_BYTES // (weights[0].nbytes))
    for first in range(0, len(weights), at_once):
        yield from weights[first : first + at_once]


def _dead_mask(file: Any, path: Path | None, vocab_size: int) -> npt.NDArray[np.bool_]:
    """Which tokens are dead, (V,)."""
    mask = np.zeros(vocab_size, np.bool_) if "dead_mask" not in file else file["dead_mask"][:]
    if path is not None:
        try:
            mask = load_file(path)["dead_mask"]
        except (SafetensorError, KeyError) as error:
            raise CheckError(f"{path}: must be a safetensors file with dead_mask (V,): {error}") from None
    fits = mask.shape == (vocab_size,) and mask.dtype in (np.bool_, np.uint8)
    require(fits, "dead_mask", f"{mask.dtype} {mask.shape}", f"bool, of the {vocab_size:,} tokens of W")
    return mask.astype(np.bool_)
