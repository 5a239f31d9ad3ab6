import logging

import numpy as np
import pytest
from data.conftest import Prose
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from marble_sweep.data import tokenizer as module
from marble_sweep.data.tokenizer import (
    MAX_WORD,
    UNUSED_BLOCKS,
    byte_lengths,
    encode,
    load_tokenizer,
    pieces,
    train_tokenizer,
)

CHEROKEE = "".join(chr(code) for code in range(0x13C0, 0x1400))


@pytest.fixture(scope="module")
def corpus(prose: Prose) -> str:
    return prose(400, num_words=3000)


@pytest.fixture(scope="module")
def trained(corpus: str) -> Tokenizer:
    return train_tokenizer(corpus, "", 1000, 0.37)


TEXTS = st.one_of(
    st.text(),
    st.text(st.sampled_from(CHEROKEE + " \n")),
    st.text(st.sampled_from("🙂👩\u200d👩\u200d👧é\x00\x07\x1f\x7f\t\r\n  ab'")),
)


SPACED = "ab  \n\n\t'.é"


@pytest.fixture(scope="module")
def spaced() -> Tokenizer:
    """A tokenizer with merges of all kinds of white space."""
    text = "".join(np.random.default_rng(0).choice(list(SPACED), size=20_000))
    return train_tokenizer(text, "", 600, 0.5)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_round_trip_is_exact_for_any_text(trained: Tokenizer, text: str) -> None:
    ids = trained.encode(text).ids
    assert trained.decode(ids) == text
    assert byte_lengths(trained)[ids].sum() == len(text.encode())


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from(SPACED)))
def test_pieces_are_encoded_as_the_whole_is(spaced: Tokenizer, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", 3)
        patch.setattr(module, "GROUP", 2)
        assert "".join(pieces(text)) == text
        assert encode(spaced, text).tolist() == spaced.encode(text).ids


def test_pieces_are_cut(corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 1000)
    lengths = [len(piece) for piece in pieces(corpus)]
    assert len(lengths) > 50
    assert max(lengths) < 1100


@pytest.mark.parametrize("dead_fraction", [0.37, 0.6, 0.9])
def test_vocabulary_and_dead_share_are_as_asked(corpus: str, dead_fraction: float) -> None:
    tokenizer = train_tokenizer(corpus, "", 2000, dead_fraction)
    assert sorted(tokenizer.get_vocab().values()) == list(range(2000))
    occurs = np.isin(np.arange(2000), encode(tokenizer, corpus))
    assert 1 - occurs.mean() == pytest.approx(dead_fraction, abs=0.01)


def test_training_is_deterministic(corpus: str, trained: Tokenizer) -> None:
    assert train_tokenizer(corpus, "", 1000, 0.37).to_str() == trained.to_str()


def test_live_entries_are_what_a_smaller_vocabulary_would_have(corpus: str) -> None:
    every = module._vocabulary(module._train_merges([corpus], 1000, 2), 1000)
    fewer = module._vocabulary(module._train_merges([corpus], 500, 2), 500)
    assert fewer == {token: number for token, number in every.items() if number < 500}


def test_corpus_too_small_for_its_share(prose: Prose, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = train_tokenizer(prose(20), "", 4000, 0.37)
    assert tokenizer.get_vocab_size() == 4000
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.text.count("data.dead_fraction = 0.37: 0.") == 1


def test_smallest_vocabulary_is_the_bytes(corpus: str, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = train_tokenizer(corpus, "", 256, 0.37)
    assert tokenizer.decode(tokenizer.encode("any text ☃").ids) == "any text ☃"
    assert caplog.records[-1].levelno == logging.WARNING


def test_generated_script_is_one_that_neither_split_uses(corpus: str) -> None:
    first, second = list(UNUSED_BLOCKS.values())[:2]
    for train, val in [(corpus + chr(first + 3), ""), (corpus, chr(first + 3))]:
        tokenizer = train_tokenizer(train, val, 1000, 0.6)
        spelt = tokenizer.decode(list(range(990, 1000)))
        assert any(second <= ord(character) < second + 64 for character in spelt)
        assert not any(first <= ord(character) < first + 64 for character in spelt)


def test_generated_entries_cannot_occur_in_any_other_text(corpus: str) -> None:
    tokenizer = train_tokenizer(corpus, "", 1000, 0.6)
    own = set(tokenizer.encode(CHEROKEE * 2).ids)
    # All characters of two and three bytes but those of the block itself.
    others = "".join(chr(code) for code in range(0x80, 0xD800) if chr(code) not in CHEROKEE)
    used = set(tokenizer.encode(others).ids) | set(encode(tokenizer, corpus).tolist())
    generated = {number for token, number in tokenizer.get_vocab().items() if token.startswith("áı")}
    assert len(generated) > 200
    assert generated & own
    assert not generated & used


def test_blocks_share_all_bytes_but_the_last() -> None:
    for first in UNUSED_BLOCKS.values():
        characters = [chr(code) for code in range(first, first + 64)]
        assert len({character.encode()[:-1] for character in characters}) == 1
        assert sum(character.isalpha() for character in characters) > 30


def test_corpus_that_uses_every_script() -> None:
    text = "".join(map(chr, UNUSED_BLOCKS.values()))
    with pytest.raises(ValueError, match=r"^data: the text must leave one of these scripts unused: Cherokee, .*, Yi$"):
        train_tokenizer(text, "", 300, 0.37)


@pytest.mark.parametrize("unit", ["ACGT", "-", " ", "語", "1234567890"])
def test_long_words_are_tokenized_in_parts(prose: Prose, unit: str, caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    run = "".join(rng.choice(list(unit), size=4 * MAX_WORD + 7))
    text = f"{prose(20)} {run} {prose(20)}"
    tokenizer = train_tokenizer(text, "", 300, 0.1)
    said = "more than 1000 letters, digits, signs or spaces in a row are tokenized in parts"
    assert caplog.messages[0] == said
    ids = encode(tokenizer, text).tolist()
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text).ids == ids
    words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert max(map(len, words)) <= 3 * MAX_WORD  # a character has up to three bytes here


@pytest.mark.parametrize("run", ["x" * MAX_WORD, "-" * MAX_WORD, "ab1-" * MAX_WORD, " \n" * (MAX_WORD // 2 - 1)])
def test_shorter_words_are_left_alone(prose: Prose, run: str) -> None:
    tokenizer = train_tokenizer(f"{prose(20)} {run} {prose(20)}", "", 300, 0.1)
    assert isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)


def test_a_saved_tokenizer_encodes_all_and_nothing_else() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], dropout=0.9))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=300)
    for _ in range(2):  # padding alone, and dropout, would already show
        assert load_tokenizer(tokenizer.to_str()).encode("ab" * 100).ids == [2] * 100
