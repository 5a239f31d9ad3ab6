import dataclasses
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from marble_sweep.data import corpus as corpus_module
from marble_sweep.data.corpus import load_corpus, require_enough
from marble_sweep.groups import DataConfig, PydocsConfig, TextConfig

Prose = Callable[..., str]


@pytest.fixture
def config(tmp_path: Path, prose: Prose) -> TextConfig:
    (tmp_path / "own.txt").write_text(prose(300, num_words=2000))
    return TextConfig(path=str(tmp_path / "own.txt"), vocab_size=600, dead_fraction=0.6)


def test_text(config: TextConfig) -> None:
    corpus = load_corpus(config)
    text = Path(config.path).read_text()
    ids = torch.cat([corpus.train_tokens, corpus.val_tokens]).tolist()
    assert corpus.tokenizer.decode(ids) == text
    held_out = corpus.tokenizer.decode(corpus.val_tokens.tolist())
    assert corpus.val_bytes.sum().item() == len(held_out.encode())
    assert corpus.train_tokens.dtype == corpus.val_tokens.dtype == corpus.val_bytes.dtype == torch.int32
    assert corpus.tokenizer.get_vocab_size() == len(corpus.dead_mask) == 600
    assert len(corpus.val_bytes) == len(corpus.val_tokens)
    assert 0.09 < len(held_out) / len(text) <= 0.1
    assert corpus.description == f"text: {config.path}; 1 file"
    assert corpus.entropy_rate is None
    assert corpus.num_duplicates_dropped == 0


def test_dead_mask_is_a_census_of_the_training_split(config: TextConfig) -> None:
    corpus = load_corpus(config)
    occurring = set(corpus.train_tokens.tolist())
    assert corpus.dead_mask.tolist() == [token not in occurring for token in range(600)]
    assert corpus.dead_mask.float().mean().item() == pytest.approx(0.6, abs=0.01)


def test_duplicates_are_counted(config: TextConfig, prose: Prose) -> None:
    text = Path(config.path).read_text()
    Path(config.path).write_text(text + "\n\n" + text.split("\n\n")[0])
    for _ in range(2):
        assert load_corpus(config).num_duplicates_dropped == 1


def test_everything_is_trained_on_at_zero(config: TextConfig) -> None:
    config.val_fraction = 0
    corpus = load_corpus(config)
    assert len(corpus.val_tokens) == 0
    assert corpus.tokenizer.decode(corpus.train_tokens.tolist()) == Path(config.path).read_text()


def test_warm_start_builds_nothing(config: TextConfig, cache: Path) -> None:
    """What is in the cache is taken, even where it is another corpus."""
    load_corpus(config)
    entries = {*cache.iterdir()}
    cold = load_corpus(dataclasses.replace(config, val_fraction=0.2))
    others = {*cache.iterdir()} - entries
    for entry, other in zip(sorted(entries), sorted(others), strict=True):  # borders, then tokens
        shutil.rmtree(entry)
        other.rename(entry)
    warm = load_corpus(config)
    assert {*cache.iterdir()} == entries
    assert warm.sha256 == cold.sha256
    assert torch.equal(warm.train_tokens, cold.train_tokens)
    assert torch.equal(warm.val_tokens, cold.val_tokens)
    assert torch.equal(warm.dead_mask, cold.dead_mask)
    assert warm.tokenizer.to_str() == cold.tokenizer.to_str()


@pytest.mark.parametrize("name", ["tokens.safetensors", "tokenizer.json", "split.json", "documents.safetensors"])
def test_damaged_cache_is_rebuilt(config: TextConfig, cache: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    cold = load_corpus(config)
    [entry] = [path for path in cache.iterdir() if (path / name).exists()]
    content = bytearray((entry / name).read_bytes())
    content[len(content) // 2] ^= 1
    (entry / name).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert load_corpus(config).sha256 == cold.sha256
    assert f"damaged and will be rebuilt ({name} has changed)" in caplog.text


@pytest.mark.parametrize(("field", "value"), [("vocab_size", 601), ("dead_fraction", 0.5), ("val_fraction", 0.2)])
def test_every_setting_makes_another_corpus(config: TextConfig, field: str, value: float) -> None:
    first = load_corpus(config).sha256
    setattr(config, field, value)
    assert load_corpus(config).sha256 != first


def test_place_of_the_text_makes_no_difference(config: TextConfig, tmp_path: Path, cache: Path) -> None:
    first = load_corpus(config)
    (tmp_path / "elsewhere").mkdir()
    moved = Path(config.path).rename(tmp_path / "elsewhere" / "own.txt")
    second = load_corpus(TextConfig(path=str(moved), vocab_size=600, dead_fraction=0.6))
    assert second.sha256 == first.sha256
    assert second.description == f"text: {moved}; 1 file"
    assert len(list(cache.iterdir())) == 2
    moved.write_text(moved.read_text() + " more")
    assert load_corpus(TextConfig(path=str(moved), vocab_size=600, dead_fraction=0.6)).sha256 != first.sha256


def test_pydocs_are_a_corpus_too(monkeypatch: pytest.MonkeyPatch, prose: Prose) -> None:
    documents = {f"module{n}": prose(10, seed=n) for n in range(30)}
    monkeypatch.setattr(
        corpus_module, "read_pydocs", lambda packages: (documents, f"stand-in for {packages}", "its hash")
    )
    corpus = load_corpus(PydocsConfig(packages=["numpy"], vocab_size=600, dead_fraction=0.6))
    assert corpus.description == "pydocs: stand-in for ['numpy']"
    assert len(corpus.val_tokens) > 0


def test_ten_bytes_are_too_few(tmp_path: Path) -> None:
    path = tmp_path / "tiny.txt"
    path.write_bytes(b"abcdefghij")
    with pytest.raises(ValueError, match=r"^data.path = ") as caught:
        load_corpus(TextConfig(path=str(path), vocab_size=300, val_fraction=0.01))
    assert str(caught.value) == (
        f"data.path = '{path}' (10 bytes of text): must be long enough for data.val_fraction = 0.01 to leave something "
        "on both sides; training needs trainer.batch_size x trainer.seq_len tokens, "
        "held out are at least trainer.seq_len"
    )
    corpus = load_corpus(TextConfig(path=str(path), vocab_size=300, val_fraction=0.2))
    require_enough(corpus, 2, 2)
    for batch_size, seq_len, needed in [(3, 3, "9 tokens"), (1, 4, "4 tokens")]:
        with pytest.raises(ValueError, match=r"^data.path = ") as caught:
            require_enough(corpus, batch_size, seq_len)
        assert str(caught.value) == (
            f"data.path = '{path}' (10 bytes of text): must have {needed} to train on (trainer.batch_size={batch_size} "
            f"x trainer.seq_len={seq_len}) and {seq_len} held out, and has 8 and 2"
        )
    everything = load_corpus(TextConfig(path=str(path), vocab_size=300, val_fraction=0))
    require_enough(everything, 2, 5)
    with pytest.raises(ValueError, match=r"^data.path = .* x trainer.seq_len=5\), and has 10$"):
        require_enough(everything, 3, 5)


HOSTILE = {
    "NUL characters": "a\x00b\x00\x00 c " * 200,
    "control characters": "".join(map(chr, range(32))) * 50 + "end",
    "bidi and zero width": "\u202eabc\u200b\u2066x\ufeff " * 100,
    "no characters": "\ufffe\uffff\U0010ffff " * 100,
    "old Mac's line ends": "one two\rthree\r" * 100,
    "one line": "xyz" * 1000,
    "white space at both ends": "\n" * 3000 + "word " * 200 + "\t" * 3000,
    "combining marks": "e" + "\u0301" * 3000,
    "added tokens of other tokenizers": "<s></s>[UNK]<|endoftext|> " * 100,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_any_utf8_is_a_text(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.txt").write_text(HOSTILE[kind], encoding="utf-8", newline="")
    corpus = load_corpus(TextConfig(path=str(tmp_path), vocab_size=300, val_fraction=0))
    assert corpus.tokenizer.decode(corpus.train_tokens.tolist()) == HOSTILE[kind]


def test_a_folder_of_names_that_are_not_utf8(tmp_path: Path, prose: Prose) -> None:
    for n in range(25):  # so many are split by their names
        (tmp_path / os.fsdecode(b"%d\xff.txt" % n)).write_text(prose(3, seed=n))
    corpus = load_corpus(TextConfig(path=str(tmp_path), vocab_size=300))
    assert corpus.description == f"text: {tmp_path}; 25 files"
    assert len(corpus.val_tokens) > 0
    with pytest.raises(ValueError, match=r"^data.path = '.*caf\\udce9': must be UTF-8 text"):  # config.yaml is UTF-8
        TextConfig(path=str(tmp_path / os.fsdecode(b"caf\xe9")))


def test_unknown_source() -> None:
    with pytest.raises(
        ValueError, match=r"^data.name = other: must be one of pydocs, text, notebook, tokens, markov, iid$"
    ):
        load_corpus(DataConfig(name="other"))
