"""Where the documents of the held-out text are among its tokens and its windows."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def starts_in_bytes(text: str, starts: Sequence[int]) -> NDArray[np.int64]:
    """Places in a text, ascending and in characters, as bytes of its UTF-8; equal ones once."""
    ordered = [*dict.fromkeys(starts)]
    pieces = [text[start:end] for start, end in zip([0, *ordered], ordered, strict=False)]
    return np.cumsum([len(piece.encode()) for piece in pieces], dtype=np.int64)


def first_tokens(byte_starts: NDArray[np.int64], num_bytes: NDArray[np.int32]) -> NDArray[np.int64]:
    """The first token of each document that has one, given the bytes (num_tokens,) that each token stands for.

    A token that begins in one document and ends in the next belongs to the first.
    """
    token_starts = np.cumsum(num_bytes, dtype=np.int64) - num_bytes
    firsts = np.unique(np.searchsorted(token_starts, byte_starts))
    return firsts[firsts < len(num_bytes)]


def documents_of_windows(firsts: Tensor, numbers: Tensor, seq_len: int) -> Tensor:
    """The document (num_windows,) of each window of `seq_len` tokens, by its number in the split.

    A window belongs to the document that holds its middle: of two in a window that has the more tokens of it. By the
    document in which it begins, a window with three last tokens of one would count to that one.
    """
    return torch.searchsorted(firsts, numbers * seq_len + seq_len // 2, right=True) - 1
