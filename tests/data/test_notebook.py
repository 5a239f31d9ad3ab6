import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from marble_sweep.data.corpus import load_corpus
from marble_sweep.groups import NotebookConfig

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
        words = [WORDS[number] for number in corpus.val_tokens]
        assert corpus.val_bytes.tolist() == [len(f" {word}") for word in words[:-1]] + [len(f" {words[-1]}\n")]
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


@pytest.mark.parametrize("content", [b"", b"no safetensors at all"])
def test_mask_file_of_another_kind(config: NotebookConfig, content: bytes) -> None:
    Path(config.dead_mask_path).write_bytes(content)
    refuses(config, f"data.dead_mask_path = '{config.dead_mask_path}': must be a safetensors file (")


def save_words(config: NotebookConfig, vocabulary: dict[str, int], unknown: str | None = "dead") -> None:
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(config.tokenizer_path)


@pytest.mark.parametrize("size_of_mask", [8, 11])
def test_rows_beyond_the_tokenizer_are_dead(config: NotebookConfig, tmp_path: Path, size_of_mask: int) -> None:
    config.vocab_size = 11
    write_mask(tmp_path, dead_mask=torch.arange(size_of_mask) == 7, dead_indices=torch.tensor([7]))
    corpus = load_corpus(config)
    assert corpus.dead_mask.tolist() == [False] * 7 + [True] * 4
    assert corpus.tokenizer.decode([0, 9, 1]) == "the cat"


def test_tokenizer_with_ids_beyond_the_vocabulary(config: NotebookConfig) -> None:
    config.vocab_size = 6
    refuses(
        config,
        f"data.vocab_size = 6: must be >= 8: 'dead' of the tokenizer '{config.tokenizer_path}' has id 6",
    )


def test_ids_without_a_token_are_dead(config: NotebookConfig, caplog: pytest.LogCaptureFixture) -> None:
    save_words(config, {word: number for number, word in enumerate(WORDS[:6])} | {"dead": 7})
    assert load_corpus(config).dead_mask.tolist() == [False] * 6 + [True] * 2
    assert caplog.messages == [
        f"data.tokenizer_path = '{config.tokenizer_path}': id 6 has no token; such ids (1) are dead tokens"
    ]


def test_two_tokens_with_one_id(config: NotebookConfig) -> None:
    source = json.loads(Path(config.tokenizer_path).read_text())
    source["model"]["vocab"]["cats"] = 1
    Path(config.tokenizer_path).write_text(json.dumps(source))
    refuses(
        config,
        f"data.tokenizer_path = '{config.tokenizer_path}': "
        "must be a tokenizer with one token for each id, and 1 is both 'cat' and 'cats'",
    )


def test_a_piece_that_a_unigram_tokenizer_has_twice(config: NotebookConfig, caplog: pytest.LogCaptureFixture) -> None:
    pieces = [("<unk>", 0.0), *((f"▁{word}", -1.0) for word in [*WORDS[:6], "cat"])]
    tokenizer = Tokenizer(models.Unigram(pieces, 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.save(config.tokenizer_path)
    write_mask(Path(config.corpus_path).parent, dead_mask=torch.zeros(8), dead_indices=torch.zeros(0))
    corpus = load_corpus(config)
    assert corpus.dead_mask.tolist() == [False, False, True] + [False] * 5
    assert set(corpus.train_tokens.tolist()) == {0, 1, 3, 4, 5, 6, 7}
    assert "id 2 is '▁cat', which has another id as well; such ids (1) are dead tokens" in caplog.text


def test_a_special_token_beyond_the_vocabulary(config: NotebookConfig, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(config.tokenizer_path)
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 9)])
    tokenizer.save(config.tokenizer_path)
    refuses(
        config, f"data.vocab_size = 8: must be >= 10: the tokenizer '{config.tokenizer_path}' puts id 9 into the text"
    )
    config.vocab_size = 10
    write_mask(tmp_path, dead_mask=torch.arange(10) == 6, dead_indices=torch.tensor([6]))
    assert load_corpus(config).dead_mask.tolist() == [False] * 6 + [True, False, True, False]


@pytest.mark.parametrize("unknown", [None, "[UNK]"])
def test_a_word_that_the_tokenizer_cannot_encode(config: NotebookConfig, unknown: str | None) -> None:
    save_words(config, {word: number for number, word in enumerate(WORDS)}, unknown)
    Path(config.corpus_path).write_text("the cat\nsat on\na zebra or\ntwo")
    refuses(
        config,
        f"data.tokenizer_path = '{config.tokenizer_path}': must be a tokenizer for all of '{config.corpus_path}', "
        "and fails at 'zebra' in line 3 (WordLevel error: Missing [UNK] token from the vocabulary)",
    )


def test_saved_truncation_and_padding_leave_the_corpus_alone(config: NotebookConfig) -> None:
    before = load_corpus(config)
    tokenizer = Tokenizer.from_file(config.tokenizer_path)
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(pad_id=7, length=1000)
    tokenizer.save(config.tokenizer_path)
    corpus = load_corpus(config)
    assert torch.equal(corpus.train_tokens, before.train_tokens)
    assert corpus.sha256 == before.sha256


def test_text_that_gets_lost_is_said(config: NotebookConfig, caplog: pytest.LogCaptureFixture) -> None:
    with Path(config.corpus_path).open("a", encoding="utf-8") as file:
        file.write("☃ ☃ cat\n")
    phrase = "2 pieces of 2 characters unknown to the tokenizer (U+2603 SNOWMAN 2 times)"
    write_mask(Path(config.corpus_path).parent, dead_mask=torch.arange(8) >= 7, dead_indices=torch.tensor([7]))
    for _ in range(2):  # the second time from the cache
        assert load_corpus(config).description == f"notebook: {config.corpus_path}; {phrase}"
        assert caplog.messages == [f"data.corpus_path = '{config.corpus_path}': {phrase}"]
        caplog.clear()


def test_tokenizer_that_leaves_nothing(config: NotebookConfig) -> None:
    Tokenizer(models.BPE({"x": 0}, [])).save(config.tokenizer_path)
    refuses(config, f"data.tokenizer_path = '{config.tokenizer_path}': must be one that leaves some tokens")


@pytest.mark.parametrize("content", ["", "{}", "no JSON\nat all"])
def test_tokenizer_that_is_none(config: NotebookConfig, content: str) -> None:
    Path(config.tokenizer_path).write_text(content)
    refuses(config, f"data.tokenizer_path = '{config.tokenizer_path}': must be tokenizers JSON (")


@pytest.mark.parametrize("field", ["corpus_path", "tokenizer_path", "dead_mask_path"])
def test_missing_file(config: NotebookConfig, field: str) -> None:
    setattr(config, field, "/nowhere/at/all")
    refuses(config, f"data.{field} = '/nowhere/at/all': must be a readable file (No such file or directory)")


@pytest.mark.parametrize("field", ["corpus_path", "tokenizer_path", "dead_mask_path"])
def test_pipe_and_folder(config: NotebookConfig, field: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # to read it would wait for ever
    for name, reason in [("pipe", "Not a regular file"), ("", "Is a directory")]:
        path = str(tmp_path / name)
        setattr(config, field, path)
        refuses(config, f"data.{field} = '{path}': must be a readable file ({reason})")


def test_empty_corpus(config: NotebookConfig) -> None:
    Path(config.corpus_path).write_text(" \n")
    refuses(config, f"data.corpus_path = '{config.corpus_path}': must be more than white space, and is empty")


def test_corpus_that_is_not_utf8(config: NotebookConfig) -> None:
    Path(config.corpus_path).write_bytes(b"ab\xff")
    refuses(config, f"data.corpus_path = '{config.corpus_path}': must be UTF-8, and byte 2 is not")
