"""What ids stand for, and which no text can produce: planted in tokenizers of several kinds."""

from pathlib import Path

import pytest
import torch
from census_files import census_of, write
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from marble_sweep.census.vocabulary import (
    FRAGMENT,
    NO,
    NO_ENTRY,
    YES,
    num_tokens,
    produced,
    read_tokenizer,
    token_text,
)
from marble_sweep.checks import CheckError

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level(merges: list[tuple[str, str]], phantoms: list[str]) -> Tokenizer:
    """All bytes, the merged tokens, and entries that no merge leads to."""
    names = [*BYTES, *("".join(pair) for pair in merges), *phantoms]
    tokenizer = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def token_ids(tokenizer: Tokenizer, *names: str) -> list[int]:
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[name] for name in names]


def verdicts(tokenizer: Tokenizer, *names: str) -> list[str]:
    return produced(tokenizer, token_ids(tokenizer, *names))


def test_byte_pairs() -> None:
    # à is the bytes C3 A0 in UTF-8, spelt Ã and a sign for A0.
    a0 = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("à")[0][0][1]
    tokenizer = byte_level([("h", "e"), ("Ġ", "he"), ("Ã", a0)], ["xyz", "Ġxyz", f"{a0}Ã"])
    assert verdicts(tokenizer, "he", "Ġhe", f"Ã{a0}", "q") == [YES] * 4
    assert verdicts(tokenizer, "xyz", "Ġxyz") == [NO] * 2
    assert verdicts(tokenizer, "Ã") == [FRAGMENT], "the first half of a character"
    assert verdicts(tokenizer, f"{a0}Ã") == [NO], "its two bytes are never merged, whatever stands around them"
    assert produced(tokenizer, [num_tokens(tokenizer)]) == [NO_ENTRY]
    assert [token_text(tokenizer, token) for token in token_ids(tokenizer, "Ġhe", f"Ã{a0}", "Ã")] == [" he", "à", "Ã"]


def test_added_tokens_are_produced_by_their_text() -> None:
    tokenizer = byte_level([], ["xyz"])
    tokenizer.add_special_tokens([AddedToken("<|end|>")])
    assert verdicts(tokenizer, "<|end|>") == [YES]
    assert num_tokens(tokenizer) == len(BYTES) + 2


def test_tokens_at_the_start_of_a_word_and_inside_it() -> None:
    vocab = {"<unk>": 0, "▁": 1, "t": 2, "o": 3, "▁t": 4, "to": 5, "▁to": 6, "▁oto": 7, ".": 8}
    merges = [("▁", "t"), ("t", "o"), ("▁t", "o")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    assert verdicts(tokenizer, "▁to", "to", "o") == [YES] * 3, "to stands behind a sign, not alone"
    assert verdicts(tokenizer, "▁oto") == [NO]


def test_word_pieces() -> None:
    vocab = {"[UNK]": 0, "a": 1, "##b": 2, "##bc": 3, "abx": 4, "##c": 5}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    assert verdicts(tokenizer, "a", "##b", "##bc") == [YES] * 3


# ------------------------------------------------------------------- in the census


def test_phantoms_in_a_black_hole(tmp_path: Path) -> None:
    tokenizer = byte_level([("h", "e")], ["xyz", "zyx"])
    num_rows = num_tokens(tokenizer) + 3
    weights = torch.randn(num_rows, 8, generator=torch.Generator().manual_seed(0))
    weights[-5:] = weights[-6] = 1  # xyz and zyx, three rows beyond, and he
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = write(tmp_path / "model.safetensors", weights.bfloat16())
    for given in (None, tmp_path / "tokenizer.json", tmp_path):
        census = census_of(path, given)
        assert census.tokens["produced"].tolist() == [YES, NO, NO, *[NO_ENTRY] * 3]
        assert census.tokens["text"].tolist() == ["he", "xyz", "zyx", "", "", ""]
        assert census.summary["num_never_produced"] == 5
        assert census.summary["num_tokens"] == num_rows - 3
        shown = str(census)
        assert "3 rows beyond them" in shown
        assert "no text produces 5 of the 6 tokens" in shown
        assert "256 'he', 257 'xyz', 258 'zyx' …" in shown


def test_a_tokenizer_must_fit(tmp_path: Path) -> None:
    byte_level([], ["xyz"]).save(str(tmp_path / "tokenizer.json"))
    path = write(tmp_path / "model.safetensors", torch.ones(256, 4))
    with pytest.raises(CheckError, match=r"^tokenizer = 257 tokens: must be one of at most 256, the embedding's rows$"):
        census_of(path)
    (tmp_path / "tokenizer.json").write_text('{"model": {\n}}')
    with pytest.raises(CheckError, match=r"tokenizer.json: must be a tokenizer.json \(.*\)$"):
        census_of(path)
    with pytest.raises(CheckError, match=r"no.json: must be a tokenizer.json or a folder with one$"):
        read_tokenizer(tmp_path / "no.json")
