"""A corpus in the notebook's formats: text, tokenizer JSON and dead-mask safetensors."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from tokenizers import Tokenizer
from torch import Tensor

from marble_sweep.config import NotebookConfig, require
from marble_sweep.data.text import read_text


def read_corpus(path: str) -> str:
    """The text. Raises ValueError if it is missing, empty, or not UTF-8."""
    text = read_text(Path(path).expanduser(), "data.corpus_path")
    require(bool(text.strip()), "data.corpus_path", repr(path), "more than white space, and is empty")
    return text


def read_tokenizer(config: NotebookConfig) -> tuple[Tokenizer, str]:
    """The tokenizer and its JSON. Raises ValueError unless its ids are 0 … data.vocab_size - 1."""
    source = read_text(Path(config.tokenizer_path).expanduser(), "data.tokenizer_path")
    try:
        tokenizer = Tokenizer.from_str(source)
    except Exception as error:  # the library raises nothing narrower
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"data.tokenizer_path = '{config.tokenizer_path}': must be tokenizers JSON ({reason})"
        ) from None
    size = tokenizer.get_vocab_size()
    require(size == config.vocab_size, "data.vocab_size", config.vocab_size, f"{size}, the tokenizer's vocabulary")
    most = max(tokenizer.get_vocab().values())
    path, allowed = repr(config.tokenizer_path), f"a tokenizer with ids 0 to {size - 1}, and has {most}"
    require(most < size, "data.tokenizer_path", path, allowed)
    return tokenizer, source


def read_dead_mask(config: NotebookConfig) -> Tensor:
    """The mask (V,) bool. Raises ValueError if the file is not in the format, or its two tensors disagree."""
    path = Path(config.dead_mask_path).expanduser()

    def check(condition: bool, allowed: str) -> None:
        require(condition, "data.dead_mask_path", repr(config.dead_mask_path), allowed)

    try:
        tensors = load_tensors(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"data.dead_mask_path = '{path}': must be a safetensors file ({error})") from None
    check(
        {"dead_mask", "dead_indices"} <= tensors.keys(),
        f"a file with dead_mask and dead_indices, and has only {', '.join(sorted(tensors)) or 'a header'}",
    )
    shape, expected = tuple(tensors["dead_mask"].shape), (config.vocab_size,)
    check(shape == expected, f"a dead_mask of shape {expected}, and is {shape}")
    mask = tensors["dead_mask"].bool()
    agree = torch.equal(mask.nonzero().flatten(), tensors["dead_indices"].long().flatten().sort().values)
    check(agree, "a mask that agrees with dead_indices")
    return mask


def check_dead_mask(config: NotebookConfig, mask: Tensor, occurs: Tensor, tokenizer: Tokenizer) -> None:
    """Raise ValueError if `mask` (V,) marks a token that `occurs` (V,) in the training split."""
    wrong = (mask & occurs).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"data.dead_mask_path = '{config.dead_mask_path}': must mark only tokens that never occur in training, "
            f"and marks {len(wrong)} that do, such as {wrong[0]} ({tokenizer.id_to_token(wrong[0])!r})"
        )
