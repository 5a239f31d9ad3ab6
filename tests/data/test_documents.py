"""Borders of documents survive splitting, dropping and tokenization; training does not change."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from marble_sweep.data.cache import cache_dir
from marble_sweep.data.corpus import Corpus, load_corpus
from marble_sweep.data.documents import documents_of_windows, first_tokens, starts_in_bytes
from marble_sweep.groups import DataConfig, IIDConfig, TextConfig


@given(st.lists(st.text(max_size=8), min_size=1, max_size=6), st.data())
def test_first_tokens_are_those_that_begin_in_a_document(documents: list[str], data: st.DataObject) -> None:
    text = "".join(documents)
    encoded = text.encode()
    starts = [sum(map(len, documents[:number])) for number in range(len(documents))]
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(encoded) - 1)))) | {len(encoded)})
    lengths = np.diff([0, *(cut for cut in cuts if cut <= len(encoded))]).astype(np.int32)
    lengths = lengths[lengths > 0]
    owner = [number for number, document in enumerate(documents) for _ in document.encode()]
    owners = [owner[begin] for begin in (np.cumsum(lengths) - lengths).tolist()]  # of each token's first byte
    expected = [index for index, number in enumerate(owners) if index == 0 or number != owners[index - 1]]
    assert first_tokens(starts_in_bytes(text, starts), lengths).tolist() == expected


def test_a_window_belongs_to_the_document_that_holds_its_middle() -> None:
    firsts = torch.tensor([0, 3, 4, 11])
    assert documents_of_windows(firsts, torch.tensor([0, 1, 2, 3]), 4).tolist() == [0, 2, 2, 3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(40):
        words = rng.integers(0, 300, size=400)
        text = "\n\n".join(" ".join(f"é{word}" for word in words[at : at + 20]) for at in range(0, 400, 20))
        (tmp_path / f"{number:02}.txt").write_text(f"Chapter {number}\n\n{text}\n")
    return tmp_path


def load(folder: Path) -> Corpus:
    return load_corpus(TextConfig(path=str(folder), vocab_size=400, val_fraction=0.3))


def test_documents_begin_where_their_text_does(folder: Path) -> None:
    corpus = load(folder)
    assert corpus.val_documents is not None
    assert len(corpus.val_documents) > 5
    bounds = [*corpus.val_documents.tolist(), len(corpus.val_tokens)]
    for begin, end in zip(bounds, bounds[1:], strict=False):
        text = corpus.tokenizer.decode(corpus.val_tokens[begin:end].tolist())
        assert text.startswith("Chapter ")
        assert text.count("Chapter ") == 1


def test_a_cache_of_an_earlier_version_is_read_and_completed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = load(folder)
    tokenized = {path.name: path.stat().st_mtime_ns for path in cache_dir().glob("tokenized-*")}
    for path in cache_dir().glob("borders-*"):
        shutil.rmtree(path)
    caplog.clear()
    after = load(folder)
    assert not caplog.records
    assert {path.name: path.stat().st_mtime_ns for path in cache_dir().glob("tokenized-*")} == tokenized
    assert before.val_documents is not None
    assert after.val_documents is not None
    assert torch.equal(after.val_documents, before.val_documents)
    assert after.sha256 == before.sha256


@pytest.mark.parametrize("config", [IIDConfig(num_tokens=1000, vocab_size=20)])
def test_a_stream_has_no_documents(config: DataConfig) -> None:
    assert load_corpus(config).val_documents is None
