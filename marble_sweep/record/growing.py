"""A Zarr array that grows along its first axis, written a chunk at a time and compressed along time."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from marble_sweep.runs.files import naming, sync, sync_folder

CHUNK_BYTES = 8 << 20  # of a file before compression, at most where a single row is not more
BLOCK_BYTES = 1 << 20  # that Blosc compresses as one: the larger, the better a slow motion compresses
MAX_CHUNK_ROWS = 1024


def rows_within(num_bytes: int, row_bytes: int, least: int, most: int) -> int:
    """The largest power of two whose rows fit into so many bytes, from `least` to `most`, which are powers of two."""
    fitting = max(1, num_bytes // max(1, row_bytes))
    return min(most, max(least, 1 << (fitting.bit_length() - 1)))


def create_growing(
    group: Any, name: str, row: npt.NDArray[Any], *, rows: int | None = None, attributes: dict[str, Any] | None = None
) -> "GrowingArray":
    """A new array in a Zarr group for rows like `row`, `rows` of them in a chunk."""
    from zarr.codecs import BloscCodec, TransposeCodec

    if rows is None:
        rows = rows_within(CHUNK_BYTES, row.nbytes, 8, MAX_CHUNK_ROWS)
    # A chunk holds some of a row's first dimension, all of the others.
    parts = [min(row.shape[0], max(1, CHUNK_BYTES * row.shape[0] // max(1, rows * row.nbytes)))] if row.ndim else []
    # One number's values at successive steps lie next to each other: they are alike.
    order = (*range(1, row.ndim + 1), 0)
    array = group.create_array(
        name,
        shape=(0, *row.shape),
        chunks=(rows, *parts, *row.shape[1:]),
        dtype=row.dtype,
        fill_value=0,
        filters=[TransposeCodec(order=order)] if row.ndim else None,
        compressors=BloscCodec(
            cname="zstd", clevel=1, shuffle="bitshuffle", typesize=row.dtype.itemsize, blocksize=BLOCK_BYTES
        ),
        attributes=attributes,
    )
    return GrowingArray(array, 0)


class GrowingArray:
    """Takes rows, and writes every full chunk to the disk. The last chunk is written anew until it is full."""

    def __init__(self, array: Any, num_rows: int) -> None:
        """`array` is a Zarr array that has at least `num_rows` rows; later ones are dropped."""
        # Zarr would compare every chunk with one of zeros, which takes half as long as compressing it.
        self.array = array.with_config({"write_empty_chunks": True})
        self.chunk_rows: int = array.chunks[0]
        self.folder = Path(str(array.store.root)) / array.path
        self.buffer = np.zeros((self.chunk_rows, *array.shape[1:]), array.dtype)  # the last chunk
        self.num_rows = self.num_written = array.shape[0]
        self.truncate(num_rows)

    @property
    def next_row(self) -> npt.NDArray[Any]:
        """Where the next row goes, which `advance` then appends."""
        return self.buffer[self.num_rows % self.chunk_rows, ...]

    def advance(self) -> None:
        self.num_rows += 1
        if self.num_rows % self.chunk_rows == 0:
            self.write()

    def append(self, row: npt.ArrayLike) -> None:
        self.next_row[...] = row
        self.advance()

    def write(self) -> None:
        """Write the rows that are not on the disk yet, and wait until the disk has them."""
        if self.num_written == self.num_rows:
            return
        first = (self.num_rows - 1) // self.chunk_rows * self.chunk_rows
        self.array.resize((self.num_rows, *self.array.shape[1:]))
        part = self.array.chunks[1] if self.array.ndim > 1 else 1
        rows = self.buffer[: self.num_rows - first]
        with naming(self.folder):
            if self.array.ndim == 1:
                self.array[first : self.num_rows] = rows
            else:  # a file at a time: Zarr would take a thread for each
                for start in range(0, rows.shape[1], part):
                    self.array[first : self.num_rows, start : start + part] = rows[:, start : start + part]
        self.num_written = self.num_rows
        self._sync(first // self.chunk_rows)

    def _sync(self, chunk: int) -> None:
        """Wait until the files of a chunk are on the disk, and the array's shape."""
        folder = self.folder / "c" / str(chunk)
        files = [folder] if self.array.ndim == 1 else [path for path in folder.rglob("*") if path.is_file()]
        for path in (*files, self.folder / "zarr.json"):
            with path.open("rb") as file:
                sync(file.fileno())
        for parent in {path.parent for path in files} | {folder.parent, self.folder}:
            sync_folder(parent)

    def truncate(self, num_rows: int) -> None:
        """Drop the rows beyond the first `num_rows`."""
        self.write()
        first = num_rows // self.chunk_rows * self.chunk_rows
        self.array.resize((num_rows, *self.array.shape[1:]))
        self.buffer[: num_rows - first] = self.array[first:num_rows]
        self.num_rows = self.num_written = num_rows
