"""A corpus in the notebook's formats: text, tokenizer JSON and dead-mask safetensors."""

import logging
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from tokenizers import Tokenizer
from torch import Tensor

from marble_sweep.checks import CheckError, require, wrong_value
from marble_sweep.data.given import Encoded, encode_given
from marble_sweep.data.text import read_bytes, read_text
from marble_sweep.data.tokenizer import load_tokenizer
from marble_sweep.groups import NotebookConfig

logger = logging.getLogger(__name__)


def read_corpus(path: str) -> str:
    """The text. Raises ValueError if it is missing, empty, or not UTF-8."""
    text = read_text(Path(os.path.expanduser(path)), "data.corpus_path")
    require(bool(text.strip()), "data.corpus_path", repr(path), "more than white space, and is empty")
    return text


def read_tokenizer(path: str, vocab_size: int) -> tuple[Tokenizer, str]:
    """The tokenizer and its JSON. Raises ValueError unless its ids are distinct and below vocab_size."""
    source = read_text(Path(os.path.expanduser(path)), "data.tokenizer_path")
    name = repr(path)
    try:
        tokenizer = load_tokenizer(source)
    except Exception as error:  # the library raises nothing narrower
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise wrong_value("data.tokenizer_path", name, f"tokenizers JSON ({reason})") from None
    entries = sorted((number, token) for token, number in tokenizer.get_vocab().items())
    require(bool(entries), "data.tokenizer_path", name, "a tokenizer with a vocabulary, and has none")
    owners: dict[int, str] = {}
    for number, token in entries:
        if number in owners:
            allowed = f"a tokenizer with one token for each id, and {number} is both {owners[number]!r} and {token!r}"
            require(False, "data.tokenizer_path", name, allowed)
        if number >= vocab_size:
            allowed = f">= {entries[-1][0] + 1}: {token!r} of the tokenizer {name} has id {number}"
            require(False, "data.vocab_size", vocab_size, allowed)
        owners[number] = token
    return tokenizer, source


def rows_without_token(config: NotebookConfig, tokenizer: Tokenizer, ids: NDArray[np.int32]) -> Tensor:
    """(V,) bool: the rows without a token in the vocabulary or in the corpus `ids`. Warns of rows between tokens.

    Raises ValueError if the corpus has an id beyond data.vocab_size: special tokens need not be in the vocabulary.
    """
    allowed = f">= {ids.max() + 1}: the tokenizer {config.tokenizer_path!r} puts id {ids.max()} into the text"
    require(ids.max() < config.vocab_size, "data.vocab_size", config.vocab_size, allowed)
    missing = torch.ones(config.vocab_size, dtype=torch.bool)
    missing[list(tokenizer.get_vocab().values())] = False
    missing[torch.from_numpy(ids).long()] = False
    size = int((~missing).nonzero().max()) + 1
    if holes := missing[:size].nonzero().flatten().tolist():
        piece = tokenizer.id_to_token(holes[0])
        reason = "has no token" if piece is None else f"is {piece!r}, which has another id as well"
        logger.warning(
            "data.tokenizer_path = %r: id %d %s; such ids (%d) are dead tokens",
            *(config.tokenizer_path, holes[0], reason, len(holes)),
        )
    return missing


def encode_corpus(config: NotebookConfig, tokenizer: Tokenizer, text: str) -> Encoded:
    """Encode the text. Raises ValueError, which names the first such word, where the tokenizer cannot."""
    try:
        return encode_given(tokenizer, text)
    except Exception as error:  # the library raises nothing narrower
        allowed = f"a tokenizer for all of {config.corpus_path!r}, and fails{_first_failure(tokenizer, text)} ({error})"
        raise wrong_value("data.tokenizer_path", repr(config.tokenizer_path), allowed) from None


def _first_failure(tokenizer: Tokenizer, text: str) -> str:
    """Where the first word is that cannot be encoded alone; empty where no single word fails."""
    for number, line in enumerate(text.splitlines(), start=1):
        for word in line.split():
            try:
                tokenizer.encode(word)
            except Exception:
                return f" at {word[:40]!r} in line {number}"
    return ""


def read_dead_mask(config: NotebookConfig, without_token: Tensor) -> Tensor:
    """The mask (V,) bool; the rows `without_token` (V,) are dead in any case.

    Raises ValueError if the file is not in the format, or its two tensors disagree.
    """
    path = Path(os.path.expanduser(config.dead_mask_path))

    def check(condition: bool, allowed: str) -> None:
        require(condition, "data.dead_mask_path", repr(config.dead_mask_path), allowed)

    try:
        tensors = load_tensors(read_bytes(path, "data.dead_mask_path"))
    except SafetensorError as error:
        raise wrong_value("data.dead_mask_path", f"'{path}'", f"a safetensors file ({error})") from None
    check(
        {"dead_mask", "dead_indices"} <= tensors.keys(),
        f"a file with dead_mask and dead_indices, and has only {', '.join(sorted(tensors)) or 'a header'}",
    )
    size = int((~without_token).nonzero().max()) + 1
    shape, expected = tuple(tensors["dead_mask"].shape), (config.vocab_size,)
    check(shape in {expected, (size,)}, f"a dead_mask of shape {expected}, and is {shape}")
    mask = tensors["dead_mask"].bool()
    agree = torch.equal(mask.nonzero().flatten(), tensors["dead_indices"].long().flatten().sort().values)
    check(agree, "a mask that agrees with dead_indices")
    dead = without_token.clone()
    dead[: len(mask)] |= mask
    return dead


def check_dead_mask(config: NotebookConfig, mask: Tensor, occurs: Tensor, tokenizer: Tokenizer) -> None:
    """Raise ValueError if `mask` (V,) marks a token that `occurs` (V,) in the training split."""
    wrong = (mask & occurs).nonzero().flatten().tolist()
    if wrong:
        raise CheckError(
            f"data.dead_mask_path = '{config.dead_mask_path}': must mark only tokens that never occur in training, "
            f"and marks {len(wrong)} that do, such as {wrong[0]} ({tokenizer.id_to_token(wrong[0])!r})",
            "data.dead_mask_path",
        )
