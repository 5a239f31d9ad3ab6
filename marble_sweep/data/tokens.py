"""A stream of ids that may be larger than memory: read in windows and blocks, checked and hashed in one pass."""

import hashlib
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from marble_sweep.checks import CheckError, wrong_value
from marble_sweep.groups import TokensConfig

MAX_LOADED = 1 << 24  # ids, 64 MB: a longer stream stays on the disk
BLOCK = 1 << 20  # ids read at a time: they stay in a processor's cache
# Of a longer stream's training part: on so many ids, in so many blocks, its baselines are counted, within some seconds.
NUM_SAMPLED = 1 << 22
SAMPLE_BLOCKS = 256
PROGRESS_SECONDS = 1.0

logger = logging.getLogger(__name__)


class TokenStream:
    """Ids (num_tokens,) in pieces that may lie on the disk; what is read of them is int32."""

    def __init__(self, pieces: list[NDArray[Any]]) -> None:
        self._pieces = pieces
        self._starts = np.cumsum([0, *map(len, pieces)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def cut(self, start: int, stop: int) -> Iterator[NDArray[Any]]:
        """The parts of the pieces that ids `start` to `stop` lie in, as they are."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for piece, its_start in zip(self._pieces[first:], self._starts[first:], strict=False):
            if its_start >= stop:
                return
            yield piece[max(start - its_start, 0) : stop - its_start]

    def part(self, start: int, stop: int) -> "TokenStream":
        """Ids `start` to `stop` as a stream; nothing is read."""
        return TokenStream([*self.cut(start, stop)])

    def read(self, start: int, stop: int) -> NDArray[np.int32]:
        """Ids `start` to `stop`."""
        ids = np.empty(stop - start, dtype=np.int32)
        filled = 0
        for piece in self.cut(start, stop):
            ids[filled : filled + len(piece)] = piece
            filled += len(piece)
        return ids

    def read_all(self) -> Tensor:
        """All ids, (num_tokens,) int32."""
        return torch.from_numpy(self.read(0, len(self)))

    def blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """All ids as they are stored, some at a time, with the position of the first."""
        for start in range(0, len(self), BLOCK):
            position = start
            for piece in self.cut(start, min(start + BLOCK, len(self))):
                yield position, piece
                position += len(piece)

    def sample(self) -> Tensor:
        """At most NUM_SAMPLED ids, (num_sampled,) int32: SAMPLE_BLOCKS blocks that are equally far apart."""
        if len(self) <= NUM_SAMPLED:
            return self.read_all()
        size = NUM_SAMPLED // SAMPLE_BLOCKS
        starts = [len(self) * number // SAMPLE_BLOCKS for number in range(SAMPLE_BLOCKS)]
        return torch.from_numpy(np.concatenate([self.read(start, start + size) for start in starts]))


Tokens = Tensor | TokenStream  # (num_tokens,): int32 in memory, or on the disk


def all_of(tokens: Tokens) -> Tensor:
    """All ids in memory."""
    return tokens.read_all() if isinstance(tokens, TokenStream) else tokens


class MappedWindows:
    """A stream cut into windows (num_windows, T), of which those that are asked for are read."""

    def __init__(self, stream: TokenStream, seq_len: int, device: torch.device | None = None) -> None:
        self._stream = stream
        self.shape = (len(stream) // seq_len, seq_len)
        self._device = device or torch.device("cpu")

    def __len__(self) -> int:
        return self.shape[0]

    def to(self, device: torch.device) -> "MappedWindows":
        """The same windows, which are put on `device` once they are read."""
        return MappedWindows(self._stream, self.shape[1], device)

    def __getitem__(self, numbers: Tensor | NDArray[np.int64]) -> Tensor:
        """The windows of these numbers (n,), which lie on the CPU: (n, T) int32 on the device."""
        _, seq_len = self.shape
        ids = np.empty((len(numbers), seq_len), dtype=np.int32)
        for row, number in zip(ids, numbers.tolist(), strict=True):
            row[:] = self._stream.read(number * seq_len, (number + 1) * seq_len)
        return torch.from_numpy(ids).to(self._device)


@dataclass(frozen=True)
class Occurring:
    """What one pass over a stream shows."""

    in_training: NDArray[np.bool_]  # (V,): the ids that occur in the training part
    held_out: NDArray[np.bool_]  # (V,): and in the held-out part


def scan(config: TokensConfig, stream: TokenStream, num_train: int, digest: "hashlib._Hash") -> Occurring:
    """Check every id, see which occur, and add all of them to the digest as int32. Shows progress where it takes long.

    Raises CheckError for the first id that is outside the vocabulary.
    """
    occur = np.zeros((2, config.vocab_size), dtype=bool)
    if len(stream) > MAX_LOADED:
        logger.info("data.path: checking, counting and hashing %s ids of %s", f"{len(stream):,}", config.path)
    hidden = not sys.stderr.isatty()
    bar = tqdm(total=len(stream), unit="id", unit_scale=True, delay=PROGRESS_SECONDS, disable=hidden)
    with ThreadPoolExecutor(1) as pool, bar:
        hashed: Future[None] | None = None
        for start, ids in stream.blocks():
            require_within(config, ids, start, len(stream))
            block = ids.astype(np.int32)
            if hashed is not None:
                hashed.result()
            hashed = pool.submit(digest.update, block.data)  # beside the counting
            cut = min(max(num_train - start, 0), len(block))
            for its, part in zip(occur, (block[:cut], block[cut:]), strict=True):
                its |= np.bincount(part, minlength=config.vocab_size) > 0
            bar.update(len(block))
    return Occurring(*occur)


def require_within(config: TokensConfig, ids: NDArray[Any], start: int, num_tokens: int) -> None:
    """Raise CheckError that names the first id outside the vocabulary; `ids` are those from number `start` on."""
    if len(ids) == 0 or (ids.min() >= 0 and ids.max() < config.vocab_size):
        return
    first = int(np.flatnonzero((ids < 0) | (ids >= config.vocab_size))[0])
    where = f"number {start + first} of {num_tokens} in {config.path} is {ids[first]}"
    if ids[first] < 0:
        raise wrong_value("data.path", config.path, f"of ids >= 0: {where}")
    raise wrong_value("data.vocab_size", config.vocab_size, f"above every id: {where}")


def require_named(
    config: TokensConfig, stream: TokenStream, named: NDArray[np.bool_], occurs: NDArray[np.bool_]
) -> None:
    """Raise CheckError for the first id that occurs and that the tokenizer or the mapping does not have."""
    if not (occurs & ~named).any():
        return
    name = "tokenizer_path" if config.mapping_path is None else "mapping_path"
    for start, ids in stream.blocks():
        missing = np.flatnonzero(~named[ids])
        if len(missing):
            first = int(missing[0])
            where = f"number {start + first} of {len(stream)} in {config.path} is {ids[first]}, which it has not"
            field = f"data.{name}"
            raise CheckError(f"{field} = {getattr(config, name)}: must have every id that occurs: {where}", field)
