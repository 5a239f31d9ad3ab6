"""What ids stand for: a tokenizer, or a mapping to texts or to original ids; and what kinds of dead ids there are."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_config
from tokenizers import Tokenizer, models

from marble_sweep.data import corpus as corpus_module
from marble_sweep.data import tokens as tokens_module
from marble_sweep.data.corpus import load_corpus
from marble_sweep.groups import TokensConfig
from marble_sweep.metadata import describe_corpus, header
from marble_sweep.run import claimed, prepare

VOCAB = 12
IDS = np.tile(np.arange(6), 20)  # of the training part; ids 6 and 7 come behind it


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    np.concatenate([IDS, [6, 7] * 6]).astype("<u2").tofile(tmp_path / "ids.bin")
    return {"path": str(tmp_path / "ids.bin"), "vocab_size": VOCAB, "val_fraction": 1 / 11}


def written(tmp_path: Path, mapping: object) -> str:
    (tmp_path / "mapping.json").write_text(json.dumps(mapping))
    return str(tmp_path / "mapping.json")


def byte_level(tmp_path: Path, *pieces: str) -> str:
    """A tokenizer of these pieces, as GPT-2's spells them."""
    from tokenizers import decoders, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token=pieces[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


TEXTS = ["Once", " upon", " a", " time", ".", " the", " end", "<pad>"]


def test_texts_by_id_can_be_read_and_written(given: dict[str, Any], tmp_path: Path) -> None:
    for mapping in (TEXTS, {str(number): text for number, text in enumerate(TEXTS)}):
        corpus = load_corpus(TokensConfig(**given, mapping_path=written(tmp_path, mapping)))
        assert corpus.tokenizer.decode([0, 1, 2, 3, 4]) == "Once upon a time."
        assert corpus.tokenizer.encode("Once upon a time.").ids == [0, 1, 2, 3, 4]
        assert corpus.dead_kinds == {"unseen": 2, "phantom": 4}


def test_a_text_that_is_there_twice_or_empty_is_readable(given: dict[str, Any], tmp_path: Path) -> None:
    corpus = load_corpus(
        TokensConfig(**given, mapping_path=written(tmp_path, ["�", "�", "", " a", "b", "c", "d", "e"]))
    )
    assert corpus.tokenizer.decode([0, 1, 2, 3]) == "��<2> a"


def test_original_ids_are_named_by_number_or_by_their_tokenizer(given: dict[str, Any], tmp_path: Path) -> None:
    mapping = {str(number): 2 * number for number in range(8)}
    corpus = load_corpus(TokensConfig(**given, mapping_path=written(tmp_path, mapping)))
    assert corpus.tokenizer.decode([1, 3]) == "t2 t6"
    assert corpus.tokenizer.encode("t2 t6").ids == [1, 3]
    pieces = [f"Ġw{number}" for number in range(15)]
    settings = given | {"tokenizer_path": byte_level(tmp_path, *pieces)}
    corpus = load_corpus(TokensConfig(**settings, mapping_path=written(tmp_path, mapping)))
    assert corpus.tokenizer.decode([1, 3]) == " w2 w6"
    assert corpus.dead_kinds == {"unseen": 2, "phantom": 4}


def test_a_tokenizer_of_the_ids_themselves(given: dict[str, Any], tmp_path: Path) -> None:
    path = byte_level(tmp_path, *(f"w{number}" for number in range(10)))
    corpus = load_corpus(TokensConfig(**given, tokenizer_path=path))
    assert corpus.tokenizer.decode([3]) == "w3"
    assert corpus.dead_kinds == {"unseen": 4, "phantom": 2}


def test_without_names_it_is_said_which_dead_ids_are_held_out(given: dict[str, Any]) -> None:
    corpus = load_corpus(TokensConfig(**given))
    assert corpus.dead_kinds == {"in the held-out part alone": 2, "nowhere in the ids": 4}
    assert describe_corpus(corpus)["dead_kinds"] == corpus.dead_kinds
    assert describe_corpus(load_corpus(tiny_config().data))["dead_kinds"] == {}


def test_the_header_says_how_many_are_of_each_kind(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = TokensConfig(**given, mapping_path=written(tmp_path, TEXTS))
    config = replace(tiny_config("trainer.batch_size=1", "trainer.seq_len=6"), data=data)

    def shown(directory: Path) -> str:
        with claimed(directory, config, resume=False), contextlib.ExitStack() as stack:
            _, metadata = prepare(config, directory, stack, resume=False, show=False, shared=None)
        return header(metadata, 1, None)

    text = shown(tmp_path / "loaded")
    assert "12 tokens: 6 live, 6 dead (2 unseen, 4 phantom)\n" in text
    assert "Note" not in text
    for where in (corpus_module, tokens_module):
        monkeypatch.setattr(where, "MAX_LOADED", 60)
        monkeypatch.setattr(where, "NUM_SAMPLED", 50)
    monkeypatch.setattr(tokens_module, "SAMPLE_BLOCKS", 2)
    assert "Note        baselines are counted on 50 of the training tokens" in shown(tmp_path / "mapped")


def refused(config: TokensConfig) -> str:
    with pytest.raises(ValueError, match="must ") as caught:
        load_corpus(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_hole_in_a_mapping_is_named_with_the_place_where_it_is_needed(given: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path, {str(number): "x" for number in range(8) if number != 4})
    assert refused(TokensConfig(**given, mapping_path=path)) == (
        f"data.mapping_path = {path}: must have every id that occurs: number 4 of 132 in {given['path']} is 4, "
        "which it has not"
    )
    path = byte_level(tmp_path, *(f"w{number}" for number in range(7)))
    said = refused(TokensConfig(**given, tokenizer_path=path))
    assert said.startswith(f"data.tokenizer_path = {path}: must have every id that occurs: number 121 of 132 in ")
    assert said.endswith(" is 7, which it has not")


@pytest.mark.parametrize(
    ("mapping", "line"),
    [
        (3, "must be an object {id: text}"),
        ({}, "must be an object {id: text}"),
        ({"a": "x"}, 'entry 0 of 1 in PATH is a: "x"'),
        ({"0": "x", "1": 5}, "entry 1 of 2 in PATH is 1: 5"),
        ({"0": "x", "1": None}, "entry 1 of 2 in PATH is 1: null"),
        ([True], "entry 0 of 1 in PATH is 0: true"),
        ([-5], "entry 0 of 1 in PATH is 0: -5"),
        ({"0": "x", "00": "y"}, "must have every id once: entry 1 of 2 in PATH is 00 again"),
        ({"0": 5, "12": 6}, "data.vocab_size = 12: must be above every id: entry 1 of 2 in PATH is 12: 6"),
        ({"0": 5, "7": 5}, "must be such that no two ids are the same original: 0 and 7 are both 5"),
    ],
)
def test_what_is_wrong_in_a_mapping_is_named(mapping: object, line: str, given: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path, mapping)
    said = refused(TokensConfig(**given, mapping_path=path))
    assert line.replace("PATH", path) in said


def test_what_does_not_fit_together_is_named(given: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, "a", "b")
    settings = given | {"tokenizer_path": tokenizer}
    said = refused(TokensConfig(**settings, mapping_path=written(tmp_path, TEXTS)))
    assert said.endswith("must be null where data.mapping_path has texts")
    said = refused(TokensConfig(**settings, mapping_path=written(tmp_path, [0, 1, 2])))
    assert said.endswith(f"must be of the ids of {tokenizer!r}: 2 is 2 there, which it has not")
    (tmp_path / "mapping.json").write_text("{")
    assert "must be JSON (" in refused(TokensConfig(**given, mapping_path=str(tmp_path / "mapping.json")))
