"""What ids made elsewhere stand for: a tokenizer of theirs, or a JSON file that maps them to texts or original ids."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from marble_sweep.checks import CheckError, require, wrong_value
from marble_sweep.data.notebook import read_tokenizer
from marble_sweep.data.synthetic import word_tokenizer
from marble_sweep.data.text import read_text
from marble_sweep.groups import MAX_VOCAB, TokensConfig

NAME = "data.mapping_path"
SCORE = -1.0  # of every piece: the fewest pieces then spell a text
SPACE = "▁"  # what sentencepiece writes for a space

Mapping = dict[int, str] | dict[int, int]  # an id to its text, or to the id that it had


def read_names(config: TokensConfig) -> tuple[Tokenizer, NDArray[np.bool_] | None]:
    """A tokenizer that names the ids, and which ids it has (V,); None where nothing says so.

    Raises CheckError for a tokenizer or a mapping that cannot be theirs.
    """
    if config.mapping_path is not None:
        mapping = read_mapping(config, config.mapping_path)
        return mapped_tokenizer(config, config.mapping_path, mapping), _mask(config, mapping)
    if config.tokenizer_path is not None:
        tokenizer, _ = read_tokenizer(config.tokenizer_path, config.vocab_size)
        return tokenizer, _mask(config, tokenizer.get_vocab().values())
    return word_tokenizer(config.vocab_size), None


def _mask(config: TokensConfig, ids: Any) -> NDArray[np.bool_]:
    mask = np.zeros(config.vocab_size, dtype=bool)
    mask[[*ids]] = True
    return mask


def read_mapping(config: TokensConfig, path: str) -> Mapping:
    """The entries of the file: an object {id: …}, or a list by id. Raises CheckError for the first that cannot be."""
    try:
        pairs = json.loads(read_text(Path(path), NAME), object_pairs_hook=list)  # which keeps what is there twice
    except (ValueError, RecursionError) as error:
        raise wrong_value(NAME, repr(path), f"JSON ({' '.join(str(error).split())})") from None
    is_object = isinstance(pairs, list) and all(isinstance(pair, tuple) for pair in pairs)
    allowed = "an object {id: text} or {id: original id}, or a list of texts or original ids"
    require(isinstance(pairs, list) and len(pairs) > 0, NAME, repr(path), allowed)
    kind = type(pairs[0][1] if is_object else pairs[0])
    mapping: dict[int, Any] = {}
    for number, (key, value) in enumerate(pairs if is_object else enumerate(pairs)):
        place = f"entry {number:,} of {len(pairs):,} in {path}"
        is_id = str(key).isascii() and str(key).isdecimal()
        if not is_id or kind not in (str, int) or type(value) is not kind or (kind is int and value < 0):
            raise CheckError(f"{NAME} = {path!r}: must be {allowed}: {place} is {_shown(key, value)}", NAME)
        if int(key) >= config.vocab_size:
            allowed = f"above every id: {place} is {_shown(key, value)}"
            raise wrong_value("data.vocab_size", config.vocab_size, allowed)
        if int(key) in mapping:
            raise CheckError(f"{NAME} = {path!r}: must have every id once: {place} is {key} again", NAME)
        mapping[int(key)] = value
    return mapping


def _shown(key: object, value: object) -> str:
    return f"{key}: {json.dumps(value)[:60]}"


def mapped_tokenizer(config: TokensConfig, path: str, mapping: Mapping) -> Tokenizer:
    """A tokenizer of the texts in a mapping, or of those that data.tokenizer_path has for the original ids."""
    texts = {number: value for number, value in mapping.items() if isinstance(value, str)}
    if texts:
        allowed = "null where data.mapping_path has texts"
        require(config.tokenizer_path is None, "data.tokenizer_path", config.tokenizer_path, allowed)
        return tokenizer_of_texts(texts)
    originals = {number: value for number, value in mapping.items() if isinstance(value, int)}
    owners: dict[int, int] = {}
    for number, original in originals.items():
        if original in owners:
            allowed = f"such that no two ids are the same original: {owners[original]} and {number} are both {original}"
            raise wrong_value(NAME, repr(path), allowed)
        owners[original] = number
    if config.tokenizer_path is None:
        return tokenizer_of_originals(originals)
    given, _ = read_tokenizer(config.tokenizer_path, MAX_VOCAB)
    for number, original in originals.items():
        piece = given.id_to_token(original)
        if piece is None:
            allowed = f"of the ids of {config.tokenizer_path!r}: {number} is {original} there, which it has not"
            raise wrong_value(NAME, repr(path), allowed)
        text = piece.replace(SPACE, " ") if SPACE in piece else given.decode([original], skip_special_tokens=False)
        texts[number] = text or piece
    return tokenizer_of_texts(texts)


def tokenizer_of_originals(originals: dict[int, int]) -> Tokenizer:
    """A tokenizer that names ids by those that they had, as t50256."""
    names = {f"t{original}": number for number, original in originals.items()}
    tokenizer = Tokenizer(models.WordLevel(names, unk_token=next(iter(names))))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def tokenizer_of_texts(texts: dict[int, str]) -> Tokenizer:
    """A tokenizer whose tokens are these texts, which decoding joins; encoding takes the fewest that spell a text.

    Characters that none of them spells become token 0. An id without a text, or with an empty one, is <id>.
    """
    pieces = [(texts.get(number) or f"<{number}>", SCORE) for number in range(max(texts) + 1)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer
