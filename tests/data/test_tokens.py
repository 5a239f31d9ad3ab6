"""Ids made elsewhere: every format gives the same corpus, loaded or on the disk, and what is wrong is named."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_config, train_only
from numpy.typing import NDArray
from safetensors.numpy import save_file

from marble_sweep.data import corpus as corpus_module
from marble_sweep.data import tokens as module
from marble_sweep.data.batches import Batches, eval_windows, windows
from marble_sweep.data.corpus import Corpus, load_corpus
from marble_sweep.data.tokens import MappedWindows, TokenStream
from marble_sweep.groups import TokensConfig

VOCAB, LIVE = 50, 40
IDS = np.random.default_rng(0).integers(0, LIVE, (300, 8))


def save_arrow(folder: Path, *columns: Any, name: str = "input_ids") -> Path:
    """A folder as save_to_disk of `datasets` leaves it: a file of one record batch for each column."""
    pa = pytest.importorskip("pyarrow")
    folder.mkdir()
    names = [f"data-{number:05d}-of-{len(columns):05d}.arrow" for number in range(len(columns))]
    for file, column in zip(names, columns, strict=True):
        batch = pa.record_batch([column], names=[name])
        with pa.OSFile(str(folder / file), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as stream:
            stream.write_batch(batch.slice(0, len(batch) // 3))
            stream.write_batch(batch.slice(len(batch) // 3))  # which begins in the midst of its buffers
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": file} for file in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def raw(path: Path, dtype: str) -> Path:
    IDS.astype(dtype).tofile(path)
    return path


def npy(path: Path, ids: NDArray[Any]) -> Path:
    np.save(path, ids)
    return path


def safetensors(path: Path, ids: NDArray[Any]) -> Path:
    save_file({"others": np.ones(3, np.float32), "tokens": ids}, path)
    return path


def arrow(kind: str) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        folder = folder / "set"
        pa = pytest.importorskip("pyarrow")
        halves = IDS[:100], IDS[100:]
        types = {
            "lists": pa.list_(pa.int64()),
            "large lists": pa.large_list(pa.uint16()),
            "lists of one length": pa.list_(pa.int32(), 8),
        }
        if kind == "numbers":
            return save_arrow(folder, *(pa.array(half.ravel(), pa.int16()) for half in halves), name="tokens")
        return save_arrow(folder, *(pa.array(half.tolist(), types[kind]) for half in halves))

    return save


FORMATS: dict[str, Callable[[Path], Path]] = {
    "uint16": lambda folder: raw(folder / "ids.bin", "<u2"),
    "uint32": lambda folder: raw(folder / "ids.bin", "<u4"),
    "npy": lambda folder: npy(folder / "ids.npy", IDS.ravel().astype(np.uint8)),
    "rows in npy": lambda folder: npy(folder / "ids.npy", IDS),
    "safetensors": lambda folder: safetensors(folder / "ids.safetensors", IDS.ravel()),
    "rows in safetensors": lambda folder: safetensors(folder / "any name", IDS.astype(np.uint16)),
    **{f"arrow {kind}": arrow(kind) for kind in ("lists", "large lists", "lists of one length", "numbers")},
}


def config_of(path: Path, **settings: Any) -> TokensConfig:
    given: dict[str, Any] = {"path": str(path), "vocab_size": VOCAB} | settings
    return TokensConfig(**given)


@pytest.fixture(params=["in memory", "on the disk"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Streams are long from 512 ids on, or short."""
    if request.param == "on the disk":
        for where in (module, corpus_module):
            monkeypatch.setattr(where, "MAX_LOADED", 512)
        monkeypatch.setattr(module, "BLOCK", 100)
    return str(request.param)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_the_same_corpus_wherever_it_lies(kind: str, place: str, tmp_path: Path) -> None:
    dtype = kind if kind.startswith("uint") else "uint16"
    corpus = load_corpus(config_of(FORMATS[kind](tmp_path), dtype=dtype))
    assert isinstance(corpus.train, TokenStream) is (place == "on the disk")
    assert corpus.train_tokens.tolist() == IDS.ravel()[:2160].tolist()
    assert corpus.val_tokens.tolist() == IDS.ravel()[2160:].tolist()
    assert corpus.train_tokens.dtype == torch.int32
    assert corpus.dead_mask.nonzero().flatten().tolist() == list(range(LIVE, VOCAB))
    assert corpus.val_bytes.tolist() == [0] * 240
    # As the version before had it: of the tokenizer, the split, and the ids as int32.
    assert corpus.sha256 == "c6f7a5f0751429f19ed2b192cdb0e9c868fefd960f62432ec000064695956420"


def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[Corpus, Corpus]:
    config = config_of(FORMATS["uint16"](tmp_path), **settings)
    loaded = load_corpus(config)
    for where in (module, corpus_module):
        monkeypatch.setattr(where, "MAX_LOADED", 512)
    return loaded, load_corpus(config)


def test_windows_and_batches_on_the_disk_are_those_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, mapped = both(tmp_path, monkeypatch)
    in_memory, on_disk = windows(loaded.train, 7), windows(mapped.train, 7)
    assert isinstance(on_disk, MappedWindows)
    assert on_disk.shape == in_memory.shape
    assert torch.equal(on_disk[torch.tensor([3, 0, 307])], in_memory[torch.tensor([3, 0, 307])])
    assert torch.equal(eval_windows(mapped.val, 7, 5), eval_windows(loaded.val, 7, 5))
    first, second = Batches(in_memory, 4, seed=1), Batches(on_disk.to(torch.device("cpu")), 4, seed=1)
    for _ in range(first.steps_per_epoch + 3):
        batch = next(second)
        assert torch.equal(batch, next(first))
        assert batch.dtype == torch.int64


def test_a_stream_in_pieces_is_read_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 50)
    whole = np.arange(100)
    stream = TokenStream([whole[:3], whole[3:3], whole[3:60].astype(np.uint8), whole[60:]])
    for start in range(100):
        for stop in range(start, 101, 7):
            assert stream.read(start, stop).tolist() == whole[start:stop].tolist()
            assert stream.part(start, stop).read(0, stop - start).tolist() == whole[start:stop].tolist()
    blocks = [(start, ids) for start, ids in stream.blocks() if len(ids)]
    assert [start for start, _ in blocks] == [0, 3, 50, 60]
    assert np.array_equal(np.concatenate([ids for _, ids in blocks]), whole)


def test_a_long_stream_is_sampled_in_blocks_all_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NUM_SAMPLED", 512)
    sample = TokenStream([np.arange(10_240)]).sample()
    assert sample.tolist() == [start + offset for start in range(0, 10_240, 40) for offset in (0, 1)]
    assert len(TokenStream([np.arange(512)]).sample()) == 512


def test_a_run_from_the_disk_is_a_run_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = config_of(FORMATS["uint16"](tmp_path), val_fraction=0.2)
    config = replace(tiny_config("trainer.total_steps=4", "trainer.num_evals=1"), data=data)
    train_only(config, tmp_path / "loaded")
    for where in (module, corpus_module):
        monkeypatch.setattr(where, "MAX_LOADED", 512)
    train_only(config, tmp_path / "mapped")
    shown = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("loaded", "mapped")]
    losses = [[line.rsplit(",", 1)[0] for line in lines] for lines in shown]  # the last column is the speed
    assert losses[0] == losses[1]
    assert (tmp_path / "loaded" / "evals.csv").read_text() == (tmp_path / "mapped" / "evals.csv").read_text()


def test_a_long_stream_is_scanned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, mapped = both(tmp_path, monkeypatch)
    monkeypatch.setattr(corpus_module, "scan", lambda *arguments: pytest.fail("it was scanned again"))
    assert load_corpus(config_of(tmp_path / "ids.bin")).sha256 == mapped.sha256
    raw(tmp_path / "ids.bin", "<u2")  # the same size, and other times
    with pytest.raises(pytest.fail.Exception, match="scanned again"):
        load_corpus(config_of(tmp_path / "ids.bin"))


# --------------------------------------------------------------------------- what is wrong


def refused(config: TokensConfig) -> str:
    with pytest.raises(ValueError, match="must be") as caught:
        load_corpus(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_ids_are_named_with_the_place_of_the_first(tmp_path: Path, place: str) -> None:
    ids = IDS.ravel().copy()
    ids[[1234, 2000]] = [70, 71]
    path = npy(tmp_path / "ids.npy", ids)
    assert refused(config_of(path)) == (
        f"data.vocab_size = 50: must be above every id: number 1234 of 2400 in {path} is 70"
    )
    ids[777] = -3
    npy(path, ids)
    assert refused(config_of(path)) == f"data.path = {path}: must be of ids >= 0: number 777 of 2400 in {path} is -3"
    ids[777] = 2**40
    assert "number 777 of 2400" in refused(config_of(npy(path, ids)))


def test_a_number_that_is_cut_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ids.bin"
    path.write_bytes(bytes(4001))
    assert refused(config_of(path)) == (
        f"data.path = {path}: must be of whole uint16 numbers (data.dtype): it has 4,001 bytes, and of number 2,000, "
        "from byte 4,000 on, only 1 of 2"
    )
    assert "of number 1,000, from byte 4,000 on, only 1 of 4" in refused(config_of(path, dtype="uint32"))
    with pytest.raises(ValueError, match=r"data.dtype = int8: must be one of uint16, uint32$"):
        config_of(path, dtype="int8")


@pytest.mark.parametrize(
    ("name", "write", "line"),
    [
        ("none.bin", None, "a .bin, .npy or safetensors file of ids, or a folder"),
        ("empty.bin", lambda path: path.write_bytes(b""), "long enough for data.val_fraction"),
        ("half.npy", lambda path: path.write_bytes(b"\x93NUMPY\x01"), "a whole .npy file of numbers ("),
        ("floats.npy", lambda path: np.save(path, np.ones(3)), "its array is (3,) float64"),
        ("columns.npy", lambda path: np.save(path, np.asfortranarray(IDS)), "in C order"),
        ("cubes.npy", lambda path: np.save(path, IDS.reshape(3, 100, 8)), "its array is (3, 100, 8) int64"),
        ("a.safetensors", lambda path: save_file({"ids": IDS}, path), "a file with `tokens`; it has ids"),
        ("b.safetensors", lambda path: save_file({"tokens": np.ones(3, np.float32)}, path), "`tokens` is (3,) F32"),
        ("c.safetensors", lambda path: path.write_bytes(bytes(9)), "a whole safetensors file ("),
        ("folder", lambda path: path.mkdir(), "its state.json must name the data files"),
    ],
)
def test_what_holds_no_ids_is_named(name: str, write: Callable[[Path], Any] | None, line: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if write is not None:
        write(path)
    said = refused(config_of(path))
    assert said.startswith("data.path = ")
    assert line in said


def test_what_is_wrong_in_an_arrow_folder_is_named(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    other = save_arrow(tmp_path / "other", pa.array(["a", "b"]), name="text")
    assert "one with a column input_ids or tokens; it has text" in refused(config_of(other))
    text = save_arrow(tmp_path / "text", pa.array([["a"], ["b"]]))
    assert "whole numbers, or lists of them, in column input_ids; it holds list<item: string>" in refused(
        config_of(text)
    )
    holes = save_arrow(tmp_path / "holes", pa.array([[1, 2], [3], [4, None, 5]]))
    assert "with an id at every place: number 4 of its column input_ids is null" in refused(config_of(holes))
    missing = save_arrow(tmp_path / "missing", pa.array([[1, 2], None, [3]]))
    assert "with a list in every row: row 1 of its column input_ids is null" in refused(config_of(missing))
    fields = save_arrow(tmp_path / "fields", pa.array([{"a": 1}, {"a": 2}]))
    assert "whole numbers, or lists of them, in column input_ids; it holds struct<a: int64>" in refused(
        config_of(fields)
    )
    [file] = (holes / "state.json").parent.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:40])
    assert "a whole Arrow file in the stream format" in refused(config_of(holes))
    (tmp_path / "dataset_dict.json").write_text("{}")
    assert refused(config_of(tmp_path)).endswith(
        "the folder of one split of the data set; it has fields, holes, missing, other, text"
    )
