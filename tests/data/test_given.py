"""Tokenizers that were made elsewhere: the bytes their tokens stand for, and the text they lose."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import compose_config
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from marble_sweep.data.corpus import load_corpus
from marble_sweep.data.given import Encoded, encode_given, what_got_lost
from marble_sweep.groups import NotebookConfig
from marble_sweep.run import run

LINE = "Ein Käse für 3 €, 🙂 naïve café…  zwei Wörter"
SAMPLE = [LINE, "the cat sat on the mat", "größer, schöner, weiter: Übung"] * 20


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SAMPLE, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(SAMPLE, trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    vocabulary = {"<unk>": 0, "<s>": 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    for piece in ["▁", *"abcdefghijklmnopqrstuvwxyz", "th", "the", "▁the"]:
        vocabulary[piece] = len(vocabulary)
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def added_token() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("Käse", normalized=False), AddedToken("…", rstrip=True)])
    tokenizer.add_special_tokens(["€"])
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        SAMPLE, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return tokenizer


def dropping() -> Tokenizer:
    """It has no unknown token and knows no letter beyond ASCII, and no word ends for it."""
    vocabulary = {piece: number for number, piece in enumerate([*"abcdefghijklmnopqrstuvwxyz ", "th", "the"])}
    return Tokenizer(models.BPE(vocabulary, [("t", "h"), ("th", "e")]))


KINDS = [byte_level, unigram, byte_fallback, added_token, word_piece, dropping]
TOKENIZERS = {make.__name__: make() for make in KINDS}
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    st.text(st.sampled_from("the cat\n\r\t  €üÜ🙂…é\u0301ﬁ\x00\u200b"), min_size=1),
    st.lists(st.sampled_from(["Käse", "…", " ", "€", "the", "ü", "<s>"]), min_size=1).map("".join),
)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=40, deadline=None)
@given(text=TEXTS)
def test_bytes_add_up_to_those_of_the_text(kind: str, text: str) -> None:
    encoded = encode_given(TOKENIZERS[kind], text)
    assert encoded.ids.tolist() == TOKENIZERS[kind].encode(text).ids
    assert encoded.num_bytes.min(initial=0) >= 0
    assert encoded.num_bytes.sum() == (len(text.encode()) if len(encoded.ids) else 0)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=40, deadline=None)
@given(text=TEXTS)
def test_bytes_lie_where_the_text_does(kind: str, text: str) -> None:
    """More text behind it leaves the bytes of its own tokens as they are."""
    tokenizer = TOKENIZERS[kind]
    text += "a"  # white space or dropped characters at the end would belong to the token behind them
    own = tokenizer.encode(text, add_special_tokens=False).ids
    both = encode_given(tokenizer, f"{text} the")
    start = len(tokenizer.encode("", add_special_tokens=True).ids) > 0  # [CLS] or <s>
    ids = both.ids[start : start + len(own)].tolist()
    assume(ids == own)
    assert both.num_bytes[: start + len(own)].sum() == len(text.encode())


def write(folder: Path, tokenizer: Tokenizer, text: str) -> NotebookConfig:
    (folder / "corpus.txt").write_text(text, encoding="utf-8", newline="")
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    nothing = {"dead_mask": torch.zeros(size, dtype=torch.bool), "dead_indices": torch.zeros(0, dtype=torch.int64)}
    save_file(nothing, folder / "mask.safetensors")
    return NotebookConfig(
        corpus_path=str(folder / "corpus.txt"),
        tokenizer_path=str(folder / "tokenizer.json"),
        dead_mask_path=str(folder / "mask.safetensors"),
        vocab_size=size,
        val_fraction=0.5,
    )


@pytest.mark.parametrize("make", KINDS)
def test_bytes_of_the_held_out_text(make: Callable[[], Tokenizer], tmp_path: Path) -> None:
    tokenizer = make()
    tokenizer.post_processor = processors.ByteLevel()  # no special tokens, so that half the tokens are half the lines
    corpus = load_corpus(write(tmp_path, tokenizer, "\n".join([LINE] * 100) + "\n"))
    assert len(corpus.val_bytes) == len(corpus.val_tokens)
    assert corpus.val_bytes.dtype == torch.int32
    # A line break may belong to the line before it or to the one behind it.
    assert abs(corpus.val_bytes.sum().item() - 50 * len(f"{LINE}\n".encode())) <= 1


@pytest.mark.parametrize(
    ("kind", "text", "tokens", "num_bytes"),
    [
        ("byte_fallback", "the €", ["<s>", "▁the", "▁", "<0xE2>", "<0x82>", "<0xAC>"], [0, 3, 1, 3, 0, 0]),
        ("dropping", "☃☃the☃a", ["the", "a"], [9, 4]),
        ("dropping", "a☃th☃e☃☃ b", ["a", "the", " ", "b"], [1, 9, 7, 1]),
        ("word_piece", "  ☃ the \n", ["[CLS]", "[UNK]", "the", "[SEP]"], [0, 5, 4, 2]),
    ],
)
def test_where_the_bytes_go(kind: str, text: str, tokens: list[str], num_bytes: list[int]) -> None:
    encoded = encode_given(TOKENIZERS[kind], text)
    assert [TOKENIZERS[kind].id_to_token(number) for number in encoded.ids] == tokens
    assert encoded.num_bytes.tolist() == num_bytes


def lost(tokenizer: Tokenizer, text: str) -> tuple[dict[str, int], dict[str, int], list[str]]:
    encoded = encode_given(tokenizer, text)
    return encoded.dropped, encoded.unknown, what_got_lost(encoded)


def test_dropped_characters_are_counted_and_named() -> None:
    assert lost(TOKENIZERS["dropping"], "the cat ☃ß☃☃ \n") == (
        {"☃": 3, "\n": 1, "ß": 1},
        {},
        [
            "5 characters dropped by the tokenizer (U+2603 SNOWMAN 3 times, U+000A 1 times, "
            "U+00DF LATIN SMALL LETTER SHARP S 1 times)"
        ],
    )


def test_a_character_of_which_only_some_bytes_are_dropped() -> None:
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {"Ĥ"})
    tokenizer = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert lost(tokenizer, "2 € and 3 €") == (
        {"€": 2},
        {},
        ["2 characters dropped by the tokenizer (U+20AC EURO SIGN 2 times)"],
    )


def test_unknown_text_is_counted_and_named() -> None:
    assert lost(TOKENIZERS["word_piece"], "the ☃☃ the ☃☃ \u4e00") == (
        {},
        {"☃☃": 2, "\u4e00": 1},
        [
            "3 pieces of 5 characters unknown to the tokenizer ('\\u2603\\u2603' 2 times, "
            "U+4E00 CJK UNIFIED IDEOGRAPH-4E00 1 times)"
        ],
    )
    assert lost(TOKENIZERS["unigram"], "the ☃ the")[1] == {"☃": 1}


def test_what_a_normaliser_removes_is_dropped() -> None:
    tokenizer = word_piece()
    assert lost(tokenizer, "the\x00 cat\x07\x07")[0] == {"\x07": 2, "\x00": 1}
    tokenizer.normalizer = normalizers.Replace("at", "")
    assert lost(tokenizer, "the cat")[0] == {}  # each of its characters is known


def test_tokenizers_that_know_all_lose_nothing() -> None:
    for kind in ("byte_level", "byte_fallback", "added_token"):
        assert lost(TOKENIZERS[kind], LINE) == ({}, {}, [])


def test_many_kinds_of_loss_are_not_all_named() -> None:
    nothing = np.zeros(0, dtype=np.int32)
    encoded = Encoded(nothing, nothing, {chr(0x3040 + n): 9 for n in range(1, 8)}, {"x" * 30: 1})
    dropped, unknown = what_got_lost(encoded)
    assert dropped.startswith("63 characters dropped by the tokenizer (U+3041 HIRAGANA LETTER SMALL A 9 times, ")
    assert dropped.endswith("U+3045 HIRAGANA LETTER SMALL U 9 times, …)")
    assert unknown == "1 pieces of 30 characters unknown to the tokenizer ('xxxxxxxxxxxxxxxxxxxx...' 1 times)"


def test_bits_per_byte_of_a_run_are_those_of_its_text(tmp_path: Path) -> None:
    words = ["die", "Maus", "frißt", "größere", "Käse", "für", "drei", "€"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="die"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    data = write(tmp_path, tokenizer, "\n".join([" ".join(words)] * 100))
    paths = [f"data.{name}={getattr(data, name)}" for name in ("corpus_path", "tokenizer_path", "dead_mask_path")]
    config = compose_config(
        *["data=notebook", *paths, "data.vocab_size=8", "data.val_fraction=0.5", "model=0L64D", "trainer.seq_len=8"],
        *["trainer.batch_size=8", "trainer.total_steps=1", "trainer.eval_windows=20"],
        *["trainer.num_evals=1", "certify.stop=true"],  # no plots
    )
    run(config, tmp_path / "run", show=False)
    [row] = pd.read_csv(tmp_path / "run" / "evals.csv").to_dict("records")
    # 20 windows of one line each; the first word of each is context alone.
    nats, num_bytes = 20 * 7 * row["val_loss"], 20 * len(f" {' '.join(words[1:])}".encode())
    assert row["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-8)  # nine digits in the file
