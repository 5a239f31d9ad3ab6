"""A record as one safetensors file, written piece by piece: it may be larger than the memory."""

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from marble_sweep.record.reader import Record
from marble_sweep.runs.files import atomic_write

DTYPES = {"uint16": "U16", "uint32": "F32", "float32": "F32", "int64": "I64", "bool": "BOOL"}  # uint32: float32's bits


class Part(NamedTuple):
    """A tensor of the file, and the blocks of its rows."""

    shape: tuple[int, ...]
    dtype: str
    blocks: Callable[[], Iterable[npt.NDArray[Any]]]

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def export_safetensors(run_dir: Path, path: Path) -> None:
    """Write a run's record as safetensors: W as in checkpoints.safetensors, and what else the record has.

    W is (n, R, D), bits of bfloat16 as uint16, or float32. The columns of `intended` are in the file's header. Shows
    progress. Raises CheckError where the run has no record.
    """
    record = Record.open(run_dir)
    parts = _parts(record)
    columns = {} if record.intended is None else {"intended": json.dumps([*record.intended.columns])}
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        _write_header(file, parts, columns)
        total = sum(part.num_bytes for part in parts.values())
        with tqdm(total=total, unit="B", unit_scale=True, desc="export") as bar:
            for part in parts.values():
                for block in part.blocks():
                    file.write(np.ascontiguousarray(block).data)
                    bar.update(block.nbytes)


def _parts(record: Record) -> dict[str, Part]:
    num_tokens = len(record.token_ids)
    whole = {name: getattr(record, name) for name in ("steps", "token_ids", "dead_mask", "h_mean")}
    if record.intended is not None:
        whole["intended"] = record.intended.to_numpy()
    parts = {
        name: Part(value.shape, value.dtype.name, functools.partial(iter, [value])) for name, value in whole.items()
    }
    if "W" in record.group:
        shape = (record.num_rows, num_tokens, record.group["W"].shape[2])
        parts["W"] = Part(shape, record.bits_dtype.name, lambda: (bits for _, bits in record.blocks()))
    if "norms" in record.group:
        shape = (record.last_step, num_tokens, record.group["norms"].shape[2])
        parts["norms"] = Part(shape, "float32", lambda: (norms for _, norms in record.norm_blocks()))
    return parts


def _write_header(file: BinaryIO, parts: dict[str, Part], metadata: dict[str, str]) -> None:
    """The length of the header, little-endian, and the header: the place of every tensor behind it."""
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, part in parts.items():
        end = offset + part.num_bytes
        entries[name] = {"dtype": DTYPES[part.dtype], "shape": part.shape, "data_offsets": (offset, end)}
        offset = end
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    file.write(len(header).to_bytes(8, "little") + header)
