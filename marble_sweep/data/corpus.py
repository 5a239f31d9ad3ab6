"""From a data config to tokens: every source becomes one `Corpus`."""

import functools
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from tokenizers import Tokenizer
from torch import Tensor

from marble_sweep.checks import CheckError, require, wrong_value
from marble_sweep.data import notebook, synthetic
from marble_sweep.data.cache import cached, content_key
from marble_sweep.data.documents import first_tokens, starts_in_bytes
from marble_sweep.data.given import Encoded, what_got_lost
from marble_sweep.data.pydocs import read_pydocs
from marble_sweep.data.split import Split, require_both_sides, split_documents
from marble_sweep.data.text import printable, read_documents
from marble_sweep.data.token_files import open_pieces
from marble_sweep.data.token_names import read_names
from marble_sweep.data.tokenizer import byte_lengths, encode, load_tokenizer, train_tokenizer
from marble_sweep.data.tokens import (
    MAX_LOADED,
    NUM_SAMPLED,
    Occurring,
    Tokens,
    TokenStream,
    all_of,
    require_named,
    scan,
)
from marble_sweep.groups import DataConfig, MarkovConfig, NotebookConfig, PydocsConfig, TextConfig, TokensConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """Tokens of the training and held-out splits, and what is known of them."""

    train: Tokens  # (num_train,) int32, CPU, or on the disk
    val: Tokens  # (num_val,) likewise; empty where data.val_fraction = 0
    tokenizer: Tokenizer
    dead_mask: Tensor  # (V,) bool: tokens that never occur in the training split
    val_bytes: Tensor  # (num_val,) int32: UTF-8 bytes that each held-out token stands for; 0 for synthetic sources
    description: str  # one line
    origin: str  # the setting that names the source, its value and the source's size, for error messages
    sha256: str  # of tokens, split, tokenizer and dead mask
    entropy_rate: float | None = None  # nats per token, of a synthetic source
    num_duplicates_dropped: int = 0  # held-out paragraphs that had a twin in training
    val_documents: Tensor | None = None  # (num_documents,) int64: the first held-out token of each; None: unknown
    dead_kinds: dict[str, int] = field(default_factory=dict)  # of ids made elsewhere: how many dead ones are of a kind

    @property
    def train_tokens(self) -> Tensor:
        """All training tokens in memory, (num_train,) int32."""
        return all_of(self.train)

    @property
    def num_sampled(self) -> int | None:
        """The number of training tokens that baselines are counted on; None: all of them."""
        return NUM_SAMPLED if isinstance(self.train, TokenStream) and len(self.train) > NUM_SAMPLED else None

    @property
    def val_tokens(self) -> Tensor:
        """All held-out tokens in memory, (num_val,) int32."""
        return all_of(self.val)


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
            documents, description, digest = read_pydocs(config.packages)
            origin = f"data.packages = {list(config.packages)}"
            return _load_tokenized(config, config.dead_fraction, documents, digest, f"pydocs: {description}", origin)
        case TextConfig():
            documents = read_documents(config.path)
            description = f"text: {printable(config.path)}; {len(documents):,} file{'s' * (len(documents) > 1)}"
            origin = f"data.path = {config.path!r} ({_size(*documents.values())})"
            digest = _digest(json.dumps(documents))
            return _load_tokenized(config, config.dead_fraction, documents, digest, description, origin)
    raise wrong_value("data.name", config.name, "one of pydocs, text, notebook, tokens, markov, iid")


def require_enough(corpus: Corpus, batch_size: int, seq_len: int) -> None:
    """Raise ValueError for a corpus that does not fill one batch, or one held-out window where text is held out."""
    num_train, num_val = len(corpus.train), len(corpus.val)
    if num_train // seq_len >= batch_size and (num_val >= seq_len or num_val == 0):
        return
    needed = (
        f"{batch_size * seq_len:,} tokens to train on (trainer.batch_size={batch_size} x trainer.seq_len={seq_len})"
    )
    if num_val:
        raise CheckError(
            f"{corpus.origin}: must have {needed} and {seq_len:,} held out, and has {num_train:,} and {num_val:,}"
        )
    raise CheckError(f"{corpus.origin}: must have {needed}, and has {num_train:,}")


def _load_synthetic(config: MarkovConfig) -> Corpus:
    stream, entropy_rate = synthetic.generate(config)
    origin = f"data.num_tokens = {config.num_tokens}"
    train, val = _split_stream(stream, config.val_fraction, origin)
    name = f"{config.name}: {config.num_live} live tokens, {config.branching} successors each"
    return _assemble(
        train,
        val,
        synthetic.word_tokenizer(config.vocab_size),
        _census(train, config.vocab_size),
        np.zeros(len(val), dtype=np.int32),
        f"{name}, seed {config.seed}; {entropy_rate:.4f} nats per token",
        origin,
        entropy_rate=entropy_rate,
    )


def _load_notebook(config: NotebookConfig) -> Corpus:
    text = notebook.read_corpus(config.corpus_path)
    tokenizer, source = notebook.read_tokenizer(config.tokenizer_path, config.vocab_size)

    def build() -> dict[str, bytes]:
        encoded = notebook.encode_corpus(config, tokenizer, text)
        arrays = {"ids": encoded.ids, "num_bytes": encoded.num_bytes}
        lost = {"dropped": encoded.dropped, "unknown": encoded.unknown}
        return {"tokens.safetensors": save_arrays(arrays), "lost.json": json.dumps(lost).encode()}

    key = content_key("notebook", _digest(text), _digest(source), tokenizers.__version__)
    files = cached("notebook", key, build)
    arrays = load_arrays(files["tokens.safetensors"])
    encoded = Encoded(arrays["ids"], arrays["num_bytes"], **json.loads(files["lost.json"]))
    require(len(encoded.ids) > 0, "data.tokenizer_path", repr(config.tokenizer_path), "one that leaves some tokens")
    mask = notebook.read_dead_mask(config, notebook.rows_without_token(config, tokenizer, encoded.ids))
    origin = f"data.corpus_path = {config.corpus_path!r} ({_size(text)})"
    train, val = _split_stream(encoded.ids, config.val_fraction, origin)
    notebook.check_dead_mask(config, mask, ~_census(train, config.vocab_size), tokenizer)
    lost = what_got_lost(encoded)
    for phrase in lost:
        logger.warning("data.corpus_path = %r: %s", config.corpus_path, phrase)
    description = "; ".join([f"notebook: {printable(config.corpus_path)}", *lost])
    return _assemble(train, val, tokenizer, mask, encoded.num_bytes[len(train) :], description, origin)


def _load_tokens(config: TokensConfig) -> Corpus:
    """Of a long stream nothing is loaded: it is checked, counted and hashed once, and windows are read as they come."""
    tokenizer, named = read_names(config)
    pieces, files = open_pieces(config)
    stream, origin = TokenStream(pieces), f"data.path = {config.path!r}"
    num_val = round(len(stream) * config.val_fraction)
    num_train = len(stream) - num_val
    is_long = len(stream) > MAX_LOADED

    def build() -> dict[str, bytes]:
        digest = _digest_of_split(tokenizer, num_train, num_val)
        occurring = scan(config, stream, num_train, digest)
        digest.update((~occurring.in_training).tobytes())
        arrays = {name: mask.view(np.uint8) for name, mask in vars(occurring).items()}
        return {"occurring.safetensors": save_arrays(arrays), "sha256": digest.hexdigest().encode()}

    key = content_key(
        "tokens", _versions(files), config.dtype, config.vocab_size, num_train, _digest(tokenizer.to_str())
    )
    found = cached("tokens", key, build) if is_long else build()
    masks = load_arrays(found["occurring.safetensors"])
    occurring = Occurring(**{name: mask.astype(bool) for name, mask in masks.items()})
    require_both_sides(0 < num_val < len(stream) or config.val_fraction == 0, origin, config.val_fraction)
    if named is not None:
        require_named(config, stream, named, occurring.in_training | occurring.held_out)
    train, val = stream.part(0, num_train), stream.part(num_train, len(stream))
    return Corpus(
        train=train if is_long else train.read_all(),
        val=val if is_long else val.read_all(),
        tokenizer=tokenizer,
        dead_mask=torch.from_numpy(~occurring.in_training),
        val_bytes=torch.zeros(1, dtype=torch.int32).expand(num_val),  # no text: no memory for it either
        description=f"tokens: {printable(config.path)}; {len(stream):,} ids",
        origin=origin,
        sha256=found["sha256"].decode(),
        dead_kinds=_dead_kinds(occurring, named),
    )


def _versions(files: list[Path]) -> list[list[object]]:
    """What changes whenever a file's content does: its change time cannot be set, as that of its modification can."""
    stats = [path.stat() for path in files]
    return [
        [str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        for path, stat in zip(files, stats, strict=True)
    ]


def _dead_kinds(occurring: Occurring, named: NDArray[np.bool_] | None) -> dict[str, int]:
    """How many dead ids have a token in the tokenizer or the mapping and how many have none, where there is one."""
    dead = ~occurring.in_training
    if named is None:
        return {
            "in the held-out part alone": int((dead & occurring.held_out).sum()),
            "nowhere in the ids": int((dead & ~occurring.held_out).sum()),
        }
    return {"unseen": int((dead & named).sum()), "phantom": int((dead & ~named).sum())}


def _load_tokenized(
    config: DataConfig, dead_fraction: float, documents: dict[str, str], digest: str, description: str, origin: str
) -> Corpus:
    """`digest` is the SHA-256 of the documents as JSON."""

    @functools.cache
    def split() -> Split:
        return split_documents(documents, config.val_fraction, origin)

    def build() -> dict[str, bytes]:
        text = split()
        tokenizer = train_tokenizer(text.train, text.val, config.vocab_size, dead_fraction)
        tokens = {"train": encode(tokenizer, text.train), "val": encode(tokenizer, text.val)}
        return {
            "tokens.safetensors": save_arrays(tokens),
            "tokenizer.json": tokenizer.to_str().encode(),
            "split.json": json.dumps({"num_duplicates_dropped": text.num_duplicates_dropped}).encode(),
        }

    settings = [config.vocab_size, config.val_fraction, dead_fraction]
    key = content_key("tokenized", digest, settings, tokenizers.__version__)
    files = cached("tokenized", key, build)
    tokens = load_arrays(files["tokens.safetensors"])
    tokenizer = load_tokenizer(files["tokenizer.json"].decode())
    val_bytes = byte_lengths(tokenizer)[tokens["val"]]
    return _assemble(
        tokens["train"],
        tokens["val"],
        tokenizer,
        _census(tokens["train"], config.vocab_size),
        val_bytes,
        description,
        origin,
        num_duplicates_dropped=json.loads(files["split.json"])["num_duplicates_dropped"],
        val_documents=_find_documents(split, content_key("borders", digest, config.val_fraction), val_bytes),
    )


def _find_documents(split: Callable[[], Split], key: str, val_bytes: NDArray[np.int32]) -> Tensor:
    """The first token of each held-out document, (num_documents,); `val_bytes` (num_val,) are those of each token.

    They have a cache entry of their own, so that tokens which an earlier version left in the cache stay of use.
    """

    def build() -> dict[str, bytes]:
        return {"documents.safetensors": save_arrays({"byte_starts": starts_in_bytes(split().val, split().val_starts)})}

    byte_starts = load_arrays(cached("borders", key, build)["documents.safetensors"])["byte_starts"]
    return torch.tensor(first_tokens(byte_starts, val_bytes))


def _assemble(
    train: NDArray[np.int32],
    val: NDArray[np.int32],
    tokenizer: Tokenizer,
    dead_mask: Tensor,
    val_bytes: NDArray[np.int32],
    description: str,
    origin: str,
    entropy_rate: float | None = None,
    num_duplicates_dropped: int = 0,
    val_documents: Tensor | None = None,
) -> Corpus:
    digest = _digest_of_split(tokenizer, len(train), len(val))
    for array in (train, val, dead_mask.numpy()):
        digest.update(array.tobytes())
    return Corpus(
        train=torch.tensor(train),
        val=torch.tensor(val),
        tokenizer=tokenizer,
        dead_mask=dead_mask,
        val_bytes=torch.tensor(val_bytes),
        description=description,
        origin=origin,
        sha256=digest.hexdigest(),
        entropy_rate=entropy_rate,
        num_duplicates_dropped=num_duplicates_dropped,
        val_documents=val_documents,
    )


def _digest_of_split(tokenizer: Tokenizer, num_train: int, num_val: int) -> "hashlib._Hash":
    """A corpus's digest as it begins; then come its training and held-out tokens (int32) and its dead mask."""
    digest = hashlib.sha256(tokenizer.to_str().encode())
    digest.update(np.array([num_train, num_val]).tobytes())
    return digest


def _census(train: NDArray[np.int32], vocab_size: int) -> Tensor:
    """(V,) bool: the tokens that never occur in the training split."""
    return torch.tensor(np.bincount(train, minlength=vocab_size) == 0)


def _split_stream(
    stream: NDArray[np.int32], val_fraction: float, origin: str
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Hold out the tail of a token stream."""
    num_val = round(len(stream) * val_fraction)
    require_both_sides(0 < num_val < len(stream) or val_fraction == 0, origin, val_fraction)
    return stream[: len(stream) - num_val], stream[len(stream) - num_val :]


def _size(*texts: str) -> str:
    return f"{sum(len(text.encode()) for text in texts):,} bytes of text"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
