import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from marble_sweep.config import NotebookConfig
from marble_sweep.data.corpus import load_corpus

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dead", "gone"]


@pytest.fixture
def config(tmp_path: Path) -> NotebookConfig:
    """A corpus of 80 known words under a vocabulary of 8, of which the last two never occur."""
    (tmp_path / "corpus.txt").write_text("the cat sat on a mat the cat sat on\n" * 8)
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="dead"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    write_mask(tmp_path, dead_mask=torch.arange(8) >= 6, dead_indices=torch.tensor([6, 7]))
    return NotebookConfig(
        corpus_path=str(tmp_path / "corpus.txt"),
        tokenizer_path=str(tmp_path / "tokenizer.json"),
        dead_mask_path=str(tmp_path / "mask.safetensors"),
        vocab_size=8,
    )


def write_mask(folder: Path, **tensors: torch.Tensor) -> None:
    save_file(tensors, folder / "mask.safetensors")


def refuses(config: NotebookConfig, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(complaint)}") as caught:
        load_corpus(config)
    assert "\n" not in str(caught.value)


def test_corpus_is_read_as_the_notebook_reads_it(config: NotebookConfig) -> None:
    for _ in range(2):  # the second time from the cache
        corpus = load_corpus(config)
        assert corpus.train_tokens.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3] * 7 + [0, 1]
        assert corpus.val_tokens.tolist() == [2, 3, 4, 5, 0, 1, 2, 3]
        assert corpus.dead_mask.tolist() == [False] * 6 + [True] * 2
        assert corpus.dead_mask.dtype == torch.bool
        assert corpus.token_bytes.tolist() == [len(word) for word in WORDS]
        assert corpus.description == f"notebook: {config.corpus_path}"


def test_everything_is_trained_on_at_zero(config: NotebookConfig) -> None:
    config.val_fraction = 0
    corpus = load_corpus(config)
    assert (len(corpus.train_tokens), len(corpus.val_tokens)) == (80, 0)


def test_mask_may_be_bytes_and_is_the_files_not_a_census(config: NotebookConfig, tmp_path: Path) -> None:
    write_mask(tmp_path, dead_mask=(torch.arange(8) == 7).to(torch.uint8), dead_indices=torch.tensor([7]))
    assert load_corpus(config).dead_mask.tolist() == [False] * 7 + [True]


def test_mask_that_marks_a_token_which_occurs(config: NotebookConfig, tmp_path: Path) -> None:
    write_mask(tmp_path, dead_mask=torch.arange(8) >= 4, dead_indices=torch.tensor([4, 5, 6, 7]))
    refuses(
        config,
        f"data.dead_mask_path = '{config.dead_mask_path}': must mark only tokens that never occur in training, "
        "and marks 2 that do, such as 4 ('a')",
    )


def test_mask_of_another_shape(config: NotebookConfig, tmp_path: Path) -> None:
    write_mask(tmp_path, dead_mask=torch.arange(9) >= 6, dead_indices=torch.tensor([6, 7, 8]))
    refuses(config, f"data.dead_mask_path = '{config.dead_mask_path}': must be a dead_mask of shape (8,), and is (9,)")


@pytest.mark.parametrize("indices", [[6], [5, 7], [5, 6, 7], []])
def test_mask_and_indices_that_disagree(config: NotebookConfig, tmp_path: Path, indices: list[int]) -> None:
    write_mask(tmp_path, dead_mask=torch.arange(8) >= 6, dead_indices=torch.tensor(indices, dtype=torch.int64))
    refuses(config, f"data.dead_mask_path = '{config.dead_mask_path}': must be a mask that agrees with dead_indices")


def test_mask_file_without_its_tensors(config: NotebookConfig, tmp_path: Path) -> None:
    write_mask(tmp_path, dead_mask=torch.arange(8) >= 6)
    refuses(
        config,
        f"data.dead_mask_path = '{config.dead_mask_path}': "
        "must be a file with dead_mask and dead_indices, and has only dead_mask",
    )


@pytest.mark.parametrize("content", [None, b"", b"no safetensors at all"])
def test_mask_file_that_cannot_be_read(config: NotebookConfig, content: bytes | None) -> None:
    Path(config.dead_mask_path).unlink()
    if content is not None:
        Path(config.dead_mask_path).write_bytes(content)
    refuses(config, f"data.dead_mask_path = '{config.dead_mask_path}': must be a safetensors file (")


def test_vocabulary_of_another_size(config: NotebookConfig) -> None:
    config.vocab_size = 10
    refuses(config, "data.vocab_size = 10: must be 8, the tokenizer's vocabulary")


def test_vocabulary_with_gaps(config: NotebookConfig) -> None:
    vocabulary = {word: number for number, word in enumerate(WORDS[:-1])} | {"gone": 9}
    Tokenizer(models.WordLevel(vocabulary, unk_token="dead")).save(config.tokenizer_path)
    refuses(
        config,
        f"data.tokenizer_path = '{config.tokenizer_path}': must be a tokenizer with ids 0 to 7, and has 9",
    )


@pytest.mark.parametrize("content", ["", "{}", "no JSON\nat all"])
def test_tokenizer_that_is_none(config: NotebookConfig, content: str) -> None:
    Path(config.tokenizer_path).write_text(content)
    refuses(config, f"data.tokenizer_path = '{config.tokenizer_path}': must be tokenizers JSON (")


@pytest.mark.parametrize("field", ["corpus_path", "tokenizer_path"])
def test_missing_file(config: NotebookConfig, field: str) -> None:
    setattr(config, field, "/nowhere/at/all")
    refuses(config, f"data.{field} = '/nowhere/at/all': must be a readable file (No such file or directory)")


def test_empty_corpus(config: NotebookConfig) -> None:
    Path(config.corpus_path).write_text(" \n")
    refuses(config, f"data.corpus_path = '{config.corpus_path}': must be more than white space, and is empty")


def test_corpus_that_is_not_utf8(config: NotebookConfig) -> None:
    Path(config.corpus_path).write_bytes(b"ab\xff")
    refuses(config, f"data.corpus_path = '{config.corpus_path}': must be UTF-8, and byte 2 is not")
