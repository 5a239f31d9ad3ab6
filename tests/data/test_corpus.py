import logging
from pathlib import Path

import pytest
import torch

from marble_sweep.config import DataConfig, PydocsConfig, TextConfig
from marble_sweep.data import corpus as corpus_module
from marble_sweep.data.corpus import load_corpus


@pytest.fixture
def config(tmp_path: Path, prose) -> TextConfig:
    (tmp_path / "own.txt").write_text(prose(300, num_words=2000))
    return TextConfig(path=str(tmp_path / "own.txt"), vocab_size=600, dead_fraction=0.6)


def test_text(config: TextConfig) -> None:
    corpus = load_corpus(config)
    text = Path(config.path).read_text()
    ids = torch.cat([corpus.train_tokens, corpus.val_tokens]).tolist()
    assert corpus.tokenizer.decode(ids) == text
    assert corpus.token_bytes[ids].sum().item() == len(text.encode())
    assert corpus.train_tokens.dtype == corpus.val_tokens.dtype == corpus.token_bytes.dtype == torch.int32
    assert corpus.tokenizer.get_vocab_size() == len(corpus.dead_mask) == len(corpus.token_bytes) == 600
    assert 0.09 < len(corpus.tokenizer.decode(corpus.val_tokens.tolist())) / len(text) <= 0.1
    assert corpus.description == f"text: {config.path}; 1 file"
    assert corpus.entropy_rate is None
    assert corpus.num_duplicates_dropped == 0


def test_dead_mask_is_a_census_of_the_training_split(config: TextConfig) -> None:
    corpus = load_corpus(config)
    occurring = set(corpus.train_tokens.tolist())
    assert corpus.dead_mask.tolist() == [token not in occurring for token in range(600)]
    assert corpus.dead_mask.float().mean().item() == pytest.approx(0.6, abs=0.01)


def test_duplicates_are_counted(config: TextConfig, prose) -> None:
    text = Path(config.path).read_text()
    Path(config.path).write_text(text + "\n\n" + text.split("\n\n")[0])
    for _ in range(2):
        assert load_corpus(config).num_duplicates_dropped == 1


def test_everything_is_trained_on_at_zero(config: TextConfig) -> None:
    config.val_fraction = 0
    corpus = load_corpus(config)
    assert len(corpus.val_tokens) == 0
    assert corpus.tokenizer.decode(corpus.train_tokens.tolist()) == Path(config.path).read_text()


def test_warm_start_builds_nothing(config: TextConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    cold = load_corpus(config)
    monkeypatch.delattr(corpus_module, "train_tokenizer")
    monkeypatch.delattr(corpus_module, "encode")
    monkeypatch.delattr(corpus_module, "split_documents")
    warm = load_corpus(config)
    assert warm.sha256 == cold.sha256
    assert torch.equal(warm.train_tokens, cold.train_tokens)
    assert torch.equal(warm.val_tokens, cold.val_tokens)
    assert torch.equal(warm.dead_mask, cold.dead_mask)
    assert warm.tokenizer.to_str() == cold.tokenizer.to_str()


@pytest.mark.parametrize("name", ["tokens.safetensors", "tokenizer.json", "split.json"])
def test_damaged_cache_is_rebuilt(config: TextConfig, cache: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    cold = load_corpus(config)
    [entry] = cache.iterdir()
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
    assert len(list(cache.iterdir())) == 1
    moved.write_text(moved.read_text() + " more")
    assert load_corpus(TextConfig(path=str(moved), vocab_size=600, dead_fraction=0.6)).sha256 != first.sha256


def test_pydocs_are_a_corpus_too(monkeypatch: pytest.MonkeyPatch, prose) -> None:
    documents = {f"module{n}": prose(10, seed=n) for n in range(30)}
    monkeypatch.setattr(corpus_module, "read_pydocs", lambda packages: (documents, f"stand-in for {packages}"))
    corpus = load_corpus(PydocsConfig(packages=["numpy"], vocab_size=600, dead_fraction=0.6))
    assert corpus.description == "pydocs: stand-in for ['numpy']"
    assert len(corpus.val_tokens) > 0


def test_unknown_source() -> None:
    with pytest.raises(ValueError, match=r"^data.name = other: must be one of pydocs, text, notebook, markov, iid$"):
        load_corpus(DataConfig(name="other"))
