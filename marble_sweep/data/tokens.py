"""The user's own token ids, from a safetensors file."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from marble_sweep.checks import require
from marble_sweep.groups import TokensConfig

NAME = "tokens"


def read_tokens(config: TokensConfig) -> NDArray[np.int32]:
    """The ids (num_tokens,). Raises ValueError for a file without them, and for an id outside the vocabulary."""
    path = Path(config.path).expanduser()
    require(path.is_file(), "data.path", config.path, f"a safetensors file with `{NAME}`")
    try:
        arrays = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"data.path = {config.path}: must be a whole safetensors file ({error})") from None
    require(NAME in arrays, "data.path", config.path, f"a file with `{NAME}`; it has {', '.join(arrays) or 'nothing'}")
    ids = arrays[NAME]
    whole = ids.ndim == 1 and np.issubdtype(ids.dtype, np.integer)
    require(whole, "data.path", config.path, f"of (num_tokens,) whole numbers; `{NAME}` is {ids.shape} {ids.dtype}")
    outside = np.flatnonzero((ids < 0) | (ids >= config.vocab_size))
    if len(outside):
        first = outside[0]
        allowed = f"above every id: number {first} of {len(ids)} in {config.path} is {ids[first]}"
        raise ValueError(f"data.vocab_size = {config.vocab_size}: must be {allowed}")
    return ids.astype(np.int32)
