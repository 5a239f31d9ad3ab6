"""Byte-level BPE with a share of the vocabulary that never occurs in the corpus."""

import json
import logging
import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from marble_sweep.groups import NUM_BYTES

# Blocks of 64 characters that share all bytes but the last: every token of a text in such a block
# holds those bytes, so no text without the block's characters can ever produce one.
UNUSED_BLOCKS = {
    "Cherokee": 0x13C0,
    "Canadian syllabics": 0x1400,
    "Ethiopic": 0x1200,
    "Vai": 0xA500,
    "Yi": 0xA000,
}
BLOCK = 64  # characters

MIN_FREQUENCY = 2  # of a pair of tokens, to become one
MAX_ROUNDS = 50  # of the search for the number of trained entries; real text of some MB takes three
PIECE = 32_768  # characters encoded at once
GROUP = 64  # pieces encoded in parallel: bounds the memory

# Each merge goes over the whole of every word that has it: one word of a million letters would take hours to train on.
MAX_WORD = 1_000  # letters, digits, signs or white space in a row
LONG_WORD = re.compile(rf"(?<![^ \n])[^ \n]{{{MAX_WORD},}}|(?<!\s)\s{{{MAX_WORD},}}")  # or several without space
PARTS = "|".join(rf"{kind}{{{MAX_WORD}}}" for kind in (r"\p{L}", r"\p{N}", r"[^\s\p{L}\p{N}]", r"\s"))

# No token of a byte-level pre-tokenizer crosses such a position, so cutting there changes nothing.
BREAK = re.compile(r"(?<=\S)(?=[ \n]\S)")

logger = logging.getLogger(__name__)


def load_tokenizer(source: str) -> Tokenizer:
    """A tokenizer from its JSON, set to encode all of a text and nothing else.

    Published files often have truncation, padding or dropout switched on for somebody else's training.
    """
    tokenizer = Tokenizer.from_str(source)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if isinstance(tokenizer.model, models.BPE) and tokenizer.model.dropout:
        tokenizer.model.dropout = None
    return tokenizer


def train_tokenizer(train: str, val: str, vocab_size: int, dead_fraction: float) -> Tokenizer:
    """A tokenizer of exactly `vocab_size` entries of which about `dead_fraction` do not occur in `train`.

    Entries are the bytes, merges trained on `train`, then merges trained on a generated text in a script that
    neither split uses; their numbers are adjusted until enough entries are dead. A corpus too small to fill its part
    leaves more dead entries than asked for, which is logged. Decoding gives back the encoded text, whatever it is.
    Raises ValueError if the corpus uses all of these scripts.
    """
    logger.info("training a tokenizer of %d entries on %d characters", vocab_size, len(train))
    cut = _has_long_word(train) or _has_long_word(val)
    if cut:
        logger.warning("more than %d letters, digits, signs or spaces in a row are tokenized in parts", MAX_WORD)
    trained = _train_merges(pieces(train), vocab_size, MIN_FREQUENCY, cut=cut)
    generated = _train_merges(_generate_text(_unused_block(train + val), vocab_size), vocab_size, 1)
    max_live = len(_vocabulary(trained, vocab_size))
    target = round(vocab_size * dead_fraction)
    num_live = max(NUM_BYTES, min(max_live, vocab_size - target))
    for _ in range(MAX_ROUNDS):
        tokenizer = _join(trained, generated, num_live, vocab_size, cut=cut)
        num_dead = int((np.bincount(encode(tokenizer, train), minlength=vocab_size) == 0).sum())
        # Some entries are dead because longer ones absorbed them: make up for those.
        next_live = max(NUM_BYTES, min(max_live, num_live + num_dead - target))
        if abs(next_live - num_live) <= vocab_size // 1000:
            break
        num_live = next_live
    share = num_dead / vocab_size
    logger.info("%d of %d tokens never occur in training (%.1f %%)", num_dead, vocab_size, 100 * share)
    if abs(share - dead_fraction) > 0.01:
        logger.warning(
            "data.dead_fraction = %g: %.3f is the nearest this corpus allows (%d of %d entries filled)",
            *(dead_fraction, share, num_live, vocab_size),
        )
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> NDArray[np.int32]:
    """Token ids (num_tokens,) of a text of any length, the same as if it were encoded at once."""
    parts = list(pieces(text))
    ids = [np.zeros(0, dtype=np.int32)]
    for start in range(0, len(parts), GROUP):
        encodings = tokenizer.encode_batch_fast(parts[start : start + GROUP])
        ids += [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
    return np.concatenate(ids)


def byte_lengths(tokenizer: Tokenizer) -> NDArray[np.int32]:
    """(V,) bytes that each token of a byte-level tokenizer stands for."""
    lengths = np.zeros(tokenizer.get_vocab_size(), dtype=np.int32)
    for token, number in tokenizer.get_vocab().items():
        lengths[number] = len(token)  # every byte is spelt as one character
    return lengths


def pieces(text: str) -> Iterator[str]:
    """Cut a text into pieces of about PIECE characters that are tokenized as within the whole text."""
    start = 0
    while start < len(text):
        match = BREAK.search(text, start + PIECE)
        end = match.start() if match else len(text)
        yield text[start:end]
        start = end


def _has_long_word(text: str) -> bool:
    parts = _parts()
    return any(len(parts.pre_tokenize_str(run[0])) > 1 for run in LONG_WORD.finditer(text))


def _parts() -> pre_tokenizers.Split:
    """Cuts what is longer than MAX_WORD into words of that length, and nothing else."""
    return pre_tokenizers.Split(Regex(PARTS), "isolated")


def _unused_block(text: str) -> str:
    """The letters of the first block that does not occur in the text."""
    for first in UNUSED_BLOCKS.values():
        block = [chr(code) for code in range(first, first + BLOCK)]
        if not re.search(f"[{block[0]}-{block[-1]}]", text):
            return "".join(character for character in block if character.isalpha())
    raise ValueError(f"data: the text must leave one of these scripts unused: {', '.join(UNUSED_BLOCKS)}")


def _generate_text(letters: str, num_words: int) -> list[str]:
    """Random words with frequencies proportional to 1 / rank: BPE finds at least `num_words` merges in them."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 10, size=num_words)
    words = ["".join(rng.choice(list(letters), size=length)) for length in lengths]
    return [" ".join([word] * (1 + num_words // (10 * rank))) for rank, word in enumerate(words, start=1)]


def _train_merges(
    texts: Iterator[str] | list[str], vocab_size: int, min_frequency: int, *, cut: bool = False
) -> list[tuple[str, str]]:
    """Merges in the order in which BPE makes them; a smaller vocabulary has the first of them."""
    tokenizer = _byte_level(Tokenizer(models.BPE()), cut=cut)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return [(first, second) for first, second in json.loads(tokenizer.to_str())["model"]["merges"]]


def _vocabulary(merges: list[tuple[str, str]], max_size: int) -> dict[str, int]:
    """Ids of the bytes and then of the merges, up to `max_size` entries."""
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for first, second in merges:
        if len(vocabulary) < max_size:
            vocabulary.setdefault(first + second, len(vocabulary))
    return vocabulary


def _join(
    trained: list[tuple[str, str]], generated: list[tuple[str, str]], num_trained: int, vocab_size: int, *, cut: bool
) -> Tokenizer:
    """A tokenizer whose first `num_trained` entries are bytes and `trained` merges, the others `generated` ones."""
    live = _vocabulary(trained, num_trained)
    merges = [(first, second) for first, second in trained if first + second in live]
    vocabulary = dict(live)
    for first, second in generated:
        if len(vocabulary) < vocab_size:
            vocabulary[first + second] = len(vocabulary)
            merges.append((first, second))
    return _byte_level(Tokenizer(models.BPE(vocab=vocabulary, merges=merges)), cut=cut)


def _byte_level(tokenizer: Tokenizer, *, cut: bool) -> Tokenizer:
    """Words split as by GPT-2; `cut` limits their length to MAX_WORD and leaves shorter words as they are."""
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([_parts(), words]) if cut else words
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
