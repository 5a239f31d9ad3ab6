"""From a data config to tokens: every source ends up as one `Corpus`."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from tokenizers import Tokenizer
from torch import Tensor

from marble_sweep.config import (
    DataConfig,
    MarkovConfig,
    NotebookConfig,
    PydocsConfig,
    TextConfig,
    TokensConfig,
    require,
)
from marble_sweep.data import notebook, synthetic
from marble_sweep.data.cache import cached, content_key
from marble_sweep.data.pydocs import read_pydocs
from marble_sweep.data.split import split_documents
from marble_sweep.data.text import read_documents
from marble_sweep.data.tokenizer import encode, token_bytes, train_tokenizer
from marble_sweep.data.tokens import read_tokens


@dataclass(frozen=True)
class Corpus:
    """Tokens of the training and held-out splits, and what is known of them."""

    train_tokens: Tensor  # (num_train,) int32, CPU
    val_tokens: Tensor  # (num_val,) int32, CPU; empty where data.val_fraction = 0
    tokenizer: Tokenizer
    dead_mask: Tensor  # (V,) bool: never occurs in the training split
    token_bytes: Tensor  # (V,) int32: UTF-8 bytes a token stands for; 0 for synthetic sources
    description: str  # one line
    sha256: str  # of tokens, split, tokenizer and dead mask
    entropy_rate: float | None = None  # nats per token, of a synthetic source
    num_duplicates_dropped: int = 0  # held-out paragraphs that had a twin in training


def load_corpus(config: DataConfig) -> Corpus:
    """Load, or build and cache, the corpus a config describes. Raises ValueError for what cannot be used."""
    match config:
        case MarkovConfig():
            return _load_synthetic(config)
        case NotebookConfig():
            return _load_notebook(config)
        case TokensConfig():
            return _load_tokens(config)
        case PydocsConfig():
            documents, description = read_pydocs(config.packages)
            return _load_tokenized(config, config.dead_fraction, documents, f"pydocs: {description}")
        case TextConfig():
            documents = read_documents(config.path)
            description = f"text: {config.path}; {len(documents):,} file{'s' * (len(documents) > 1)}"
            return _load_tokenized(config, config.dead_fraction, documents, description)
    raise ValueError(f"data.name = {config.name}: must be one of pydocs, text, notebook, tokens, markov, iid")


def _load_synthetic(config: MarkovConfig) -> Corpus:
    stream, entropy_rate = synthetic.generate(config)
    train, val = _split_stream(stream, config.val_fraction)
    name = f"{config.name}: {config.num_live} live tokens, {config.branching} successors each"
    return _assemble(
        train,
        val,
        synthetic.word_tokenizer(config.vocab_size),
        _census(train, config.vocab_size),
        np.zeros(config.vocab_size, dtype=np.int32),
        f"{name}, seed {config.seed}; {entropy_rate:.4f} nats per token",
        entropy_rate=entropy_rate,
    )


def _load_notebook(config: NotebookConfig) -> Corpus:
    text = notebook.read_corpus(config.corpus_path)
    tokenizer, source = notebook.read_tokenizer(config)
    mask = notebook.read_dead_mask(config)

    def build() -> dict[str, bytes]:
        ids = np.array(tokenizer.encode(text).ids, dtype=np.int32)
        return {"tokens.safetensors": save_arrays({"tokens": ids})}

    key = content_key("notebook", _digest(text), _digest(source), tokenizers.__version__)
    stream = load_arrays(cached("notebook", key, build)["tokens.safetensors"])["tokens"]
    train, val = _split_stream(stream, config.val_fraction)
    notebook.check_dead_mask(config, mask, ~_census(train, config.vocab_size), tokenizer)
    return _assemble(train, val, tokenizer, mask, token_bytes(tokenizer), f"notebook: {config.corpus_path}")


def _load_tokens(config: TokensConfig) -> Corpus:
    stream = read_tokens(config)
    train, val = _split_stream(stream, config.val_fraction)
    return _assemble(
        train,
        val,
        synthetic.word_tokenizer(config.vocab_size),
        _census(train, config.vocab_size),
        np.zeros(config.vocab_size, dtype=np.int32),
        f"tokens: {config.path}",
    )


def _load_tokenized(config: DataConfig, dead_fraction: float, documents: dict[str, str], description: str) -> Corpus:
    def build() -> dict[str, bytes]:
        split = split_documents(documents, config.val_fraction)
        tokenizer = train_tokenizer(split.train, split.val, config.vocab_size, dead_fraction)
        tokens = {"train": encode(tokenizer, split.train), "val": encode(tokenizer, split.val)}
        return {
            "tokens.safetensors": save_arrays(tokens),
            "tokenizer.json": tokenizer.to_str().encode(),
            "split.json": json.dumps({"num_duplicates_dropped": split.num_duplicates_dropped}).encode(),
        }

    settings = [config.vocab_size, config.val_fraction, dead_fraction]
    key = content_key("tokenized", _digest(json.dumps(documents)), settings, tokenizers.__version__)
    files = cached("tokenized", key, build)
    tokens = load_arrays(files["tokens.safetensors"])
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    return _assemble(
        tokens["train"],
        tokens["val"],
        tokenizer,
        _census(tokens["train"], config.vocab_size),
        token_bytes(tokenizer),
        description,
        num_duplicates_dropped=json.loads(files["split.json"])["num_duplicates_dropped"],
    )


def _assemble(
    train: NDArray[np.int32],
    val: NDArray[np.int32],
    tokenizer: Tokenizer,
    dead_mask: Tensor,
    lengths: NDArray[np.int32],
    description: str,
    entropy_rate: float | None = None,
    num_duplicates_dropped: int = 0,
) -> Corpus:
    digest = hashlib.sha256(tokenizer.to_str().encode())
    for array in (np.array([len(train), len(val)]), train, val, dead_mask.numpy()):
        digest.update(array.tobytes())
    return Corpus(
        train_tokens=torch.tensor(train),
        val_tokens=torch.tensor(val),
        tokenizer=tokenizer,
        dead_mask=dead_mask,
        token_bytes=torch.tensor(lengths),
        description=description,
        sha256=digest.hexdigest(),
        entropy_rate=entropy_rate,
        num_duplicates_dropped=num_duplicates_dropped,
    )


def _census(train: NDArray[np.int32], vocab_size: int) -> Tensor:
    """(V,) bool: the tokens that never occur in the training split."""
    return torch.tensor(np.bincount(train, minlength=vocab_size) == 0)


def _split_stream(stream: NDArray[np.int32], val_fraction: float) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Hold out the tail of a token stream."""
    num_val = round(len(stream) * val_fraction)
    both = 0 < num_val < len(stream) or val_fraction == 0
    require(both, "data.val_fraction", val_fraction, f"0, or such that both sides get some of {len(stream)} tokens")
    return stream[: len(stream) - num_val], stream[len(stream) - num_val :]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
