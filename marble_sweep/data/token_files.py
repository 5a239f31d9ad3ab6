"""Ids made elsewhere, as they lie on the disk: raw numbers, .npy, safetensors, or a folder that `datasets` saved.

Every file is mapped into memory: its ids are read where and when they are used.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from marble_sweep.checks import require, wrong_value
from marble_sweep.groups import TokensConfig

NAME = "tokens"  # in a safetensors file
COLUMNS = ("input_ids", "tokens")  # in an Arrow folder, the first that is there
STATE = "state.json"  # of an Arrow folder: the names of its files
SPLITS = "dataset_dict.json"  # of a folder of Arrow folders
# As safetensors writes dtypes, and as numpy does.
DTYPES = {"U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8"}

Pieces = list[NDArray[Any]]  # one-dimensional whole numbers; together they are the stream


def open_pieces(config: TokensConfig) -> tuple[Pieces, list[Path]]:
    """The ids of data.path, mapped, and the files that hold them. Raises CheckError for what holds none."""
    path = Path(config.path).expanduser()
    if path.is_dir():
        return open_arrow(path)
    allowed = "a .bin, .npy or safetensors file of ids, or a folder that save_to_disk of `datasets` wrote"
    require(path.is_file(), "data.path", config.path, allowed)
    try:
        if path.suffix == ".bin":
            ids = open_raw(path, np.dtype(config.dtype).newbyteorder("<"))
        elif path.suffix == ".npy":
            ids = open_npy(path)
        else:
            ids = open_safetensors(path)
    except OSError as error:
        raise wrong_value("data.path", config.path, f"readable ({error.strerror or error})") from None
    return [ids], [path]


def mapped(path: Path, dtype: Any, offset: int, size: int) -> NDArray[Any]:
    """`size` numbers from byte `offset` on; nothing can be mapped of no numbers."""
    return np.memmap(path, dtype, "r", offset, (size,)) if size else np.zeros(0, dtype)


def open_raw(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Numbers one after the other, without a header, as nanoGPT writes them."""
    num_bytes = path.stat().st_size
    size, left = divmod(num_bytes, dtype.itemsize)
    if left:
        raise wrong_value(
            "data.path",
            str(path),
            f"of whole {dtype.name} numbers (data.dtype): it has {num_bytes:,} bytes, and of number {size:,}, "
            f"from byte {size * dtype.itemsize:,} on, only {left} of {dtype.itemsize}",
        )
    return mapped(path, dtype, 0, size)


def open_npy(path: Path) -> NDArray[Any]:
    try:
        ids: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise wrong_value("data.path", str(path), f"a whole .npy file of numbers ({error})") from None
    require_whole_numbers(path, "its array", ids.shape, ids.dtype)
    require(ids.flags.c_contiguous, "data.path", str(path), "in C order, one row after the other")
    return ids.reshape(-1)


def open_safetensors(path: Path) -> NDArray[Any]:
    """The tensor `tokens`."""
    try:
        with safe_open(path, "np") as file:
            names = [*file.keys()]
            require(
                NAME in names, "data.path", str(path), f"a file with `{NAME}`; it has {', '.join(names) or 'nothing'}"
            )
            tensor = file.get_slice(NAME)
            shape, kind = tuple(tensor.get_shape()), tensor.get_dtype()
    except SafetensorError as error:
        raise wrong_value("data.path", str(path), f"a whole safetensors file ({error})") from None
    require_whole_numbers(path, f"`{NAME}`", shape, np.dtype(DTYPES.get(kind, "f4")), kind)
    with path.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        begin = json.loads(raw.read(length))[NAME]["data_offsets"][0]
    return mapped(path, DTYPES[kind], 8 + length + begin, int(np.prod(shape)))


def require_whole_numbers(path: Path, what: str, shape: tuple[int, ...], dtype: np.dtype[Any], kind: str = "") -> None:
    whole = len(shape) in (1, 2) and np.issubdtype(dtype, np.integer)
    allowed = "of (num_tokens,) whole numbers, or (num_rows, length) to be read row by row"
    require(whole, "data.path", str(path), f"{allowed}; {what} is {shape} {kind or dtype}")


def open_arrow(folder: Path) -> tuple[Pieces, list[Path]]:
    """The column `input_ids` or `tokens` of a data set, row by row, mapped."""
    if (folder / SPLITS).is_file():
        splits = ", ".join(sorted(path.parent.name for path in folder.glob(f"*/{STATE}"))) or "none"
        raise wrong_value("data.path", str(folder), f"the folder of one split of the data set; it has {splits}")
    try:
        state = json.loads((folder / STATE).read_bytes())
        files = [folder / entry["filename"] for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        allowed = f"a folder that save_to_disk of `datasets` wrote: its {STATE} must name the data files"
        raise wrong_value("data.path", str(folder), allowed) from None
    return [piece for file in files for piece in arrow_pieces(file)], files


def arrow_pieces(path: Path) -> Pieces:
    """The ids of a file in Arrow's stream format, an array a batch of rows."""
    import pyarrow as pa  # late: only these folders need it

    try:
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise wrong_value("data.path", str(path), f"a whole Arrow file in the stream format ({error})") from None
    column = next((name for name in COLUMNS if name in table.column_names), None)
    if column is None:
        has = ", ".join(table.column_names) or "none"
        raise wrong_value("data.path", str(path), f"one with a column {' or '.join(COLUMNS)}; it has {has}")
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    pieces: Pieces = []
    num_rows = 0
    for chunk in table[column].chunks:
        are_lists = any(is_kind(chunk.type) for is_kind in lists)
        values = chunk.flatten() if are_lists else chunk
        if not pa.types.is_integer(values.type):
            allowed = f"whole numbers, or lists of them, in column {column}; it holds {chunk.type}"
            raise wrong_value("data.path", str(path), allowed)
        if are_lists and chunk.null_count:
            row = num_rows + chunk.is_null().index(True).as_py()
            allowed = f"with a list in every row: row {row} of its column {column} is null"
            raise wrong_value("data.path", str(path), allowed)
        if values.null_count:
            first = values.is_null().index(True).as_py()
            before = sum(len(piece) for piece in pieces)
            allowed = f"with an id at every place: number {before + first} of its column {column} is null"
            raise wrong_value("data.path", str(path), allowed)
        pieces.append(values.to_numpy(zero_copy_only=True))
        num_rows += len(chunk)
    return pieces
