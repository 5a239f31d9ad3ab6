"""`record/` in a run directory: one Zarr 3 group of arrays that grow step by step. docs/record.md describes them.

What counts are the first `num_rows` recorded steps and the steps up to `last_step`, attributes of the group that are
written once the arrays are: a reader beside the run, or after a kill, never sees half a step.
"""

import itertools
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from marble_sweep.checks import CheckError
from marble_sweep.record.growing import GrowingArray, create_growing, rows_within
from marble_sweep.record.lattice_coding import Bits, code_step, decode, ordered
from marble_sweep.runs.files import naming, require_ordinary, sync, sync_folder

FORMAT, VERSION = "marble_sweep record", 1
WEIGHTS_BYTES = 48 << 20  # of W that are compressed together, unless 16 rows are more
MIN_WEIGHTS_ROWS, MAX_WEIGHTS_ROWS = 16, 256
KEYFRAME_INTERVAL = 1024  # rows of W, a multiple of every chunk's; a keyframe takes as much disk as some 30 rows
BITS: dict[str, np.dtype[Any]] = {"bfloat16": np.dtype(np.uint16), "float32": np.dtype(np.uint32)}
NORMS = ("l1", "l2", "linf", "update_l2")  # the last dimension of `norms`
FROM_THE_START = ("token_ids", "dead_mask")  # arrays that do not grow
ROW_A_STEP = ("h_mean", "norms", "intended")  # from step 1 on
DEAD = "dead"  # the kind of record that has norms in place of weights


@dataclass(frozen=True)
class Contents:
    """What a record is of."""

    kind: str  # dead, tracers or full
    token_ids: npt.NDArray[np.int64]  # (R,) of the rows that are recorded
    dead_mask: npt.NDArray[np.bool_]  # (V,)
    hidden_dim: int
    bits: str  # bfloat16 or float32
    every: int = 1  # step 0 and every multiple are recorded
    intended: tuple[str, ...] = ()  # the columns of `intended`

    def attributes(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "kind": self.kind,
            "bits": self.bits,
            "every": self.every,
            "keyframe_interval": KEYFRAME_INTERVAL,
        }


class RecordStore:
    """Writes a record. Rows are on the disk after `commit`; a kill loses what came after the last one.

    Every method raises OSError that names a file or folder where the disk is full or fails.
    """

    def __init__(self, path: Path, contents: Contents) -> None:
        """Start the record anew; one that is there is removed."""
        import zarr

        if path.exists():
            shutil.rmtree(path)
        with naming(path):
            group = zarr.create_group(path, attributes=contents.attributes())
            for name in FROM_THE_START:
                values = getattr(contents, name)
                group.create_array(name, data=values, config={"write_empty_chunks": True})
        self._begin(path, contents, group)

    def _begin(self, path: Path, contents: Contents, group: Any) -> None:
        self.path, self.contents, self.group = path, contents, group
        self.arrays: dict[str, GrowingArray] = {}
        self.last_step = -1
        self.previous: Bits | None = None  # the weights recorded last, ordered
        self.spare = np.empty((len(contents.token_ids), contents.hidden_dim), BITS[contents.bits])

    @classmethod
    def resume(cls, path: Path, contents: Contents, step: int) -> "RecordStore":
        """Continue the record after `step` and drop what it has beyond it.

        Raises CheckError where it is not one of these contents up to that step.
        """
        require_plain(path)
        for partial in path.rglob("*.partial"):  # of a write that was killed
            partial.unlink()
        store = cls.__new__(cls)
        store._begin(path, contents, open_group(path, "r+"))
        needed = require_whole(store.group, path, contents.kind, step // contents.every + 1, step)
        store._require_same_contents()
        for name, num_rows in needed.items():
            store.arrays[name] = GrowingArray(store.group[name], num_rows)
        store.last_step = step
        store._recall()
        store.commit()
        return store

    def _num_rows(self, name: str, step: int) -> int:
        """How many rows of an array belong to the steps up to `step`."""
        return step if name in ROW_A_STEP else step // self.contents.every + 1

    def _require_same_contents(self) -> None:
        for name, value in self.contents.attributes().items():
            if self.group.attrs.get(name) != value:
                raise CheckError(f"{self.path}: {name} = {self.group.attrs.get(name)}: must be {value}, as in this run")
        for name in FROM_THE_START:
            if not np.array_equal(self.group[name][:], getattr(self.contents, name)):
                raise CheckError(f"{self.path}: must be of this run: its {name} are others")

    def _recall(self) -> None:
        """Work out the weights of the last recorded step, from the last keyframe on."""
        if "W" not in self.arrays:
            return
        weights = self.arrays["W"]
        self.previous, first = None, (weights.num_rows - 1) // KEYFRAME_INTERVAL * KEYFRAME_INTERVAL
        for start in range(first, weights.num_rows, weights.chunk_rows):
            coded = weights.array[start : min(start + weights.chunk_rows, weights.num_rows)]
            self.previous = decode(coded, self.previous)[-1].copy()

    @property
    def last_weights(self) -> Bits | None:
        """The bits of the weights recorded last."""
        return None if self.previous is None else ordered(self.previous)

    def append(
        self,
        step: int,
        *,
        weights: Bits | None = None,
        hidden: npt.NDArray[Any] | None = None,
        values: Mapping[str, npt.NDArray[np.float32]] | None = None,
    ) -> None:
        """Append what a step left behind.

        Args:
            step: 0 or the one after the last.
            weights: bits (R, D), at recorded steps, of a record that has weights.
            hidden: hidden states of the probe, at recorded steps, where there is a probe.
            values: h_mean (D,), norms (R, 4) of a record of dead tokens and intended, the shares of the intended
                update, by these names, from step 1 on; each of them always or never.
        """
        written = self._num_written()
        for name, row in (values or {}).items():
            self._array(name, row).append(row)
        if step % self.contents.every == 0:
            if hidden is not None:
                self._array("hidden", hidden).append(hidden)
            if weights is not None:
                self._append_weights(weights)
            self._array("steps", np.array(step)).append(step)
        self.last_step = step
        if self._num_written() > written:  # this step filled a chunk
            self.commit()

    def _num_written(self) -> int:
        """How many rows of norms, or of weights, are on the disk."""
        main = self.arrays.get("norms") or self.arrays.get("W")
        return 0 if main is None else main.num_written

    def _append_weights(self, weights: Bits) -> None:
        rows = rows_within(WEIGHTS_BYTES, weights.nbytes, MIN_WEIGHTS_ROWS, MAX_WEIGHTS_ROWS)
        array = self._array("W", weights, rows=rows)
        points = self.spare
        before = None if array.num_rows % KEYFRAME_INTERVAL == 0 else self.previous
        code_step(weights, before, points, coded=array.next_row)
        self.spare, self.previous = np.empty_like(points) if self.previous is None else self.previous, points
        array.advance()

    def _array(self, name: str, row: npt.NDArray[Any], rows: int | None = None) -> GrowingArray:
        """The array of this name, made for rows like the first one."""
        if name not in self.arrays:
            attributes = {"columns": [*self.contents.intended]} if name == "intended" else None
            with naming(self.path):
                self.arrays[name] = create_growing(self.group, name, row, rows=rows, attributes=attributes)
        return self.arrays[name]

    def truncate(self, step: int) -> None:
        """Drop what belongs to steps beyond `step`."""
        if step < self.last_step:
            for name, array in self.arrays.items():
                array.truncate(self._num_rows(name, step))
            self.last_step = step
            self._recall()

    def commit(self) -> None:
        """Wait until everything appended is on the disk, and counts."""
        for array in self.arrays.values():
            array.write()
        with naming(self.path):
            num_rows = self.arrays["steps"].num_rows if self.arrays else 0
            counts = {"num_rows": num_rows, "last_step": self.last_step, "arrays": sorted(self.arrays)}
            self.group.attrs.update(counts)
            with (self.path / "zarr.json").open("rb") as file:
                sync(file.fileno())
        sync_folder(self.path)


def open_group(path: Path, mode: Any = "r") -> Any:
    """The Zarr group of a record. Raises CheckError where there is none that this version reads."""
    import zarr

    if not (path / "zarr.json").is_file():
        raise CheckError(f"{path}: must be there, as a run with recorder=full, tracers or dead leaves it")
    try:
        group = zarr.open_group(path, mode=mode)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckError(f"{path}: must be a Zarr group: {error}") from None
    if group.attrs.get("format") != FORMAT or group.attrs.get("version") != VERSION:
        raise CheckError(f"{path}: must be a record of version {VERSION}, with a format and a version that say so")
    return group


def require_whole(group: Any, path: Path, kind: str, num_rows: int, last_step: int) -> dict[str, int]:
    """The rows that every growing array has of `num_rows` recorded steps and the steps up to `last_step`, by its name.

    Raises CheckError where a file of them is missing: Zarr would read zeros in its place.
    """
    main = ["W"] if kind != DEAD else ["norms"] if last_step > 0 else []
    listed = group.attrs.get("arrays", [])  # records of earlier versions have no list
    if not isinstance(listed, list) or not all(isinstance(name, str) and name.isidentifier() for name in listed):
        raise CheckError(f"{path}: arrays = {listed}: must be a list of names")
    growing = {"steps", *main, *group.array_keys(), *listed} - {*FROM_THE_START}
    needed = {name: last_step if name in ROW_A_STEP else num_rows for name in sorted(growing)}
    for name in (*FROM_THE_START, *needed):
        if name not in group:
            raise CheckError(f"{path / name / 'zarr.json'}: must be there, as a part of this record")
        array = group[name]
        rows = needed.get(name, array.shape[0])
        if array.shape[0] < rows:
            raise CheckError(f"{path}: must hold the steps up to {last_step}: {name} has {array.shape[0]} of {rows}")
        lengths = zip((rows, *array.shape[1:]), array.chunks, strict=True)
        for numbers in itertools.product(*(range(-(-length // chunk)) for length, chunk in lengths)):
            file = path.joinpath(name, "c", *map(str, numbers))
            if not file.is_file():
                raise CheckError(f"{file}: must be there, with some of the {rows:,} rows of {name}")
    return needed


def require_plain(path: Path) -> None:
    """Raise CheckError for links and the like in a record, which may come from a stranger and would lead out of it."""
    require_ordinary(path.parent, files=[], folders=[path.name])
    for folder, folders, files in os.walk(path):
        require_ordinary(Path(folder), files=files, folders=folders)
