"""Encoding with a tokenizer that the user brings: the tokens, their bytes, and what gets lost.

Such a tokenizer may normalise, drop characters, add special tokens, or need several tokens for one character.
The bytes are therefore counted in the text itself, between the places where one token ends and the next one does.
"""

import json
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

NO_TOKEN = "<a character without a token>"
MAX_NAMED = 5  # characters or pieces that got lost
MAX_SHOWN = 20  # characters of one piece


@dataclass(frozen=True)
class Encoded:
    ids: NDArray[np.int32]  # (num_tokens,)
    num_bytes: NDArray[np.int32]  # (num_tokens,) UTF-8 bytes each token stands for; their sum is the whole text
    dropped: dict[str, int]  # characters that leave no token, and how often; the most frequent first
    unknown: dict[str, int]  # pieces of text that become the unknown token, and how often


def encode_given(tokenizer: Tokenizer, text: str) -> Encoded:
    """Raises Exception, as the library does, for text that the tokenizer has no token for and cannot drop."""
    encoding = tokenizer.encode(text)
    ids, ends = np.array(encoding.ids, dtype=np.int32), _ends(encoding)
    model = json.loads(tokenizer.to_str())["model"]
    dropped, unknown = Counter[str](), Counter[str]()
    if model["type"] == "BPE" and model["unk_token"] is None:
        with_unknown = _with_unknown_token(tokenizer)
        seen = with_unknown.encode(text)
        is_dropped = np.array(seen.ids) == with_unknown.token_to_id(NO_TOKEN)
        if is_dropped.any():
            # A byte-level tokenizer may drop several bytes of one character.
            spans = {span for span, lost in zip(seen.offsets, is_dropped, strict=True) if lost}
            dropped.update(text[start:end] for start, end in spans)
            ends = _ends_beside(encoding, seen, is_dropped, model["continuing_subword_prefix"] or "")
    elif (unknown_id := _unknown_id(tokenizer, model)) is not None:
        spans = {span for span, token in zip(encoding.offsets, encoding.ids, strict=True) if token == unknown_id}
        unknown.update(text[start:end].strip() or text[start:end] for start, end in spans)
    dropped.update({character: text.count(character) for character in _removed(tokenizer, text)})
    return Encoded(ids, count_bytes(text, ends), _sorted(dropped), _sorted(unknown))


def count_bytes(text: str, ends: NDArray[np.int64]) -> NDArray[np.int32]:
    """UTF-8 bytes of each token (num_tokens,), given the characters `ends` (num_tokens,) at which they end.

    Text between two tokens counts to the second, text after the last token to the last.
    Of several tokens that share a character, the first gets it.
    """
    if len(ends) == 0:
        return np.zeros(0, dtype=np.int32)
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    bytes_before = np.concatenate([[0], np.cumsum(widths)])
    ends = np.maximum.accumulate(np.append(ends[:-1], len(text)))  # special tokens say that they end at 0
    return np.diff(bytes_before[ends], prepend=0).astype(np.int32)


def what_got_lost(encoded: Encoded) -> list[str]:
    """A phrase for each way in which text gets lost; empty where the tokenizer knows all of it."""
    phrases = []
    if encoded.dropped:
        num_dropped = sum(encoded.dropped.values())
        phrases.append(f"{num_dropped:,} characters dropped by the tokenizer ({_most_frequent(encoded.dropped)})")
    if encoded.unknown:
        num_pieces = sum(encoded.unknown.values())
        num_characters = sum(len(piece) * number for piece, number in encoded.unknown.items())
        phrases.append(
            f"{num_pieces:,} pieces of {num_characters:,} characters unknown to the tokenizer "
            f"({_most_frequent(encoded.unknown)})"
        )
    return phrases


def _sorted(counts: Counter[str]) -> dict[str, int]:
    """The most frequent first, equally frequent ones in alphabetical order."""
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _most_frequent(pieces: dict[str, int]) -> str:
    shown = [f"{_printable(piece)} {number:,} times" for piece, number in list(pieces.items())[:MAX_NAMED]]
    return ", ".join(shown) + (", …" if len(pieces) > MAX_NAMED else "")


def _printable(piece: str) -> str:
    """A character by number and name, a longer piece quoted in ASCII: safe to print on any terminal."""
    if len(piece) == 1:
        return f"U+{ord(piece):04X} {unicodedata.name(piece, '')}".strip()
    return ascii(piece[:MAX_SHOWN] + ("..." if len(piece) > MAX_SHOWN else ""))


def _ends(encoding: Encoding) -> NDArray[np.int64]:
    return np.array([end for _, end in encoding.offsets], dtype=np.int64)


def _removed(tokenizer: Tokenizer, text: str) -> set[str]:
    """The characters that are removed before the model, as by a normaliser; white space does not count."""

    def remains(character: str) -> bool:
        if tokenizer.normalizer is not None:
            character = tokenizer.normalizer.normalize_str(character)
        if tokenizer.pre_tokenizer is None:
            return bool(character)
        return bool(tokenizer.pre_tokenizer.pre_tokenize_str(character))

    known = tokenizer.get_vocab()
    characters = {character for character in set(text) if not character.isspace() and character not in known}
    return {character for character in characters if not remains(character)}


def _unknown_id(tokenizer: Tokenizer, model: dict[str, Any]) -> int | None:
    unknown_id: int | None = (
        model["unk_id"] if model["type"] == "Unigram" else tokenizer.token_to_id(model["unk_token"] or "")
    )
    return unknown_id


def _with_unknown_token(tokenizer: Tokenizer) -> Tokenizer:
    """The same BPE tokenizer, but with a token where it would drop a character."""
    settings = json.loads(tokenizer.to_str())
    vocabulary = settings["model"]["vocab"]
    vocabulary[NO_TOKEN] = max(vocabulary.values(), default=-1) + 1
    settings["model"] |= {"unk_token": NO_TOKEN, "fuse_unk": False}
    return Tokenizer.from_str(json.dumps(settings))


def _ends_beside(encoding: Encoding, seen: Encoding, is_dropped: NDArray[np.bool_], prefix: str) -> NDArray[np.int64]:
    """The ends of the tokens of `encoding`, whose own offsets are wrong after a dropped character.

    `seen` has the right ones, but may be cut differently. Both spell the same symbols in the same order.
    """
    spelt = np.cumsum([len(token.removeprefix(prefix)) for token in encoding.tokens])
    known = ~is_dropped
    seen_spelt = np.cumsum([len(token.removeprefix(prefix)) for token in np.array(seen.tokens)[known]])
    seen_ends = np.maximum.accumulate(_ends(seen)[known])
    return np.interp(spelt, np.append(0, seen_spelt), np.append(0, seen_ends)).astype(np.int64)
