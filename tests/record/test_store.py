"""What is appended to a record is what is read back, also after kills in the middle of a write and after truncation."""

import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr

from marble_sweep.checks import CheckError
from marble_sweep.record import growing
from marble_sweep.record import store as store_module
from marble_sweep.record.growing import MAX_CHUNK_ROWS
from marble_sweep.record.reader import Record
from marble_sweep.record.store import WEIGHTS_BYTES, Contents, RecordStore

VOCAB, DIM = 12, 3
KEYFRAME_INTERVAL = 256  # shorter than that of real records
LONG = KEYFRAME_INTERVAL + 60  # several chunks, and a second keyframe


@pytest.fixture(autouse=True)
def short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "KEYFRAME_INTERVAL", KEYFRAME_INTERVAL)


def contents(kind: str = "full", bits: str = "bfloat16", every: int = 1, rows: int = VOCAB) -> Contents:
    return Contents(kind, np.arange(VOCAB)[:rows], np.arange(VOCAB) % 3 == 0, DIM, bits, every, ("lost", "decay"))


def motion(num_steps: int, bits: str = "bfloat16", rows: int = VOCAB) -> Any:
    """Random bits that mostly stay, of all kinds, NaN and both zeros among them: (num_steps + 1, rows, DIM)."""
    generator = np.random.default_rng(0)
    dtype: Any = np.dtype(np.uint16 if bits == "bfloat16" else np.uint32)
    weights = generator.integers(0, np.iinfo(dtype).max, (num_steps + 1, rows, DIM), dtype, endpoint=True)
    for before, after in zip(weights, weights[1:], strict=False):
        stays = generator.random(after.shape) < 0.7
        after[stays] = before[stays]
    return weights


def means(step: int) -> dict[str, npt.NDArray[np.float32]]:
    return {"h_mean": np.array([step, -step, 1 / step], np.float32)}


def append(store: RecordStore, weights: Any, first: int, last: int) -> None:
    """Steps `first` to `last` of weights that are there for every step."""
    for step in range(first, last + 1):
        recorded = weights[step] if step % store.contents.every == 0 else None
        store.append(step, weights=recorded, values=means(step) if step else None)


def read(run_dir: Path) -> tuple[Any, Any]:
    blocks = [*Record.open(run_dir).blocks()]
    return np.concatenate([steps for steps, _ in blocks]), np.concatenate([bits for _, bits in blocks])


@pytest.mark.parametrize("bits", ["bfloat16", "float32"])
@pytest.mark.parametrize("every", [1, 3])
def test_every_recorded_step_comes_back_bit_for_bit(every: int, bits: str, tmp_path: Path) -> None:
    weights = motion(LONG, bits)
    store = RecordStore(tmp_path / "record", contents(bits=bits, every=every))
    append(store, weights, 0, LONG)
    store.commit()
    steps, read_bits = read(tmp_path)
    assert steps.tolist() == list(range(0, LONG + 1, every))
    assert read_bits.dtype == weights.dtype
    assert np.array_equal(read_bits, weights[::every])
    record = Record.open(tmp_path)
    assert np.array_equal(record.steps, steps)
    assert np.array_equal(record.weights([7, 2]), weights[::every][:, [7, 2]])
    assert np.array_equal(record.h_mean, np.stack([means(step)["h_mean"] for step in range(1, LONG + 1)]))
    assert (record.kind, record.every, record.last_step) == ("full", every, LONG)
    assert record.norms is None
    assert record.intended is None
    assert np.array_equal(record.dead_mask, np.arange(VOCAB) % 3 == 0)


def test_others_read_it_with_zarr_alone(tmp_path: Path) -> None:
    """By the three lines of docs/record.md."""
    weights = motion(LONG)
    store = RecordStore(tmp_path / "record", contents())
    append(store, weights, 0, LONG)
    store.commit()
    text = (Path(__file__).resolve().parents[2] / "docs" / "record.md").read_text()
    (lines,) = re.findall(r"```python\n(coded = .*?)```", text, re.S)
    for first, last in ((0, KEYFRAME_INTERVAL), (KEYFRAME_INTERVAL, LONG + 1)):
        names: dict[str, Any] = {"np": np, "zarr": zarr, "first": first, "last": last}
        exec(lines.replace("RUN_DIR", str(tmp_path)), names)
        assert names["bits"].dtype == np.uint16
        assert np.array_equal(names["bits"], weights[first:last])


@pytest.mark.parametrize("until", [1, 17, KEYFRAME_INTERVAL - 1, KEYFRAME_INTERVAL, LONG - 5])
@pytest.mark.parametrize("every", [1, 4])
def test_a_record_goes_on_after_any_step_as_if_it_had_never_stopped(until: int, every: int, tmp_path: Path) -> None:
    weights = motion(LONG)
    store = RecordStore(tmp_path / "record", contents(every=every))
    append(store, weights, 0, LONG - 3)
    store.commit()
    resumed = RecordStore.resume(tmp_path / "record", contents(every=every), until)
    assert resumed.last_weights is not None
    assert np.array_equal(resumed.last_weights, weights[until // every * every])
    assert np.array_equal(read(tmp_path)[1], weights[: until + 1 : every])  # nothing later is left
    append(resumed, weights, until + 1, LONG)
    resumed.commit()
    assert np.array_equal(read(tmp_path)[1], weights[::every])
    assert np.array_equal(Record.open(tmp_path).h_mean[:, 0], np.arange(1, LONG + 1))


@pytest.mark.parametrize("until", [5, LONG - 2])
def test_a_record_is_cut_while_it_is_written(until: int, tmp_path: Path) -> None:
    """As where the loss turns out to have been NaN a few steps ago."""
    weights = motion(LONG)
    store = RecordStore(tmp_path / "record", contents())
    append(store, weights, 0, LONG)
    store.truncate(until)
    append(store, weights, until + 1, until + 2)
    store.commit()
    assert np.array_equal(read(tmp_path)[1], weights[: until + 3])


def test_only_a_step_that_fills_a_chunk_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps between recorded ones fill none, also right after the record was brought up to date."""
    monkeypatch.setattr(store_module, "MAX_WEIGHTS_ROWS", 16)
    commits, commit = [], RecordStore.commit

    def counting(store: RecordStore) -> None:
        commits.append(store.last_step)
        commit(store)

    monkeypatch.setattr(RecordStore, "commit", counting)
    weights, store = motion(100), RecordStore(tmp_path / "record", contents(every=3))
    append(store, weights, 0, 10)
    store.commit()
    append(store, weights, 11, 100)
    assert commits == [10, 45, 93]  # rows 15 and 31
    assert Record.open(tmp_path).last_step == 93


def test_norms_and_shares_have_a_row_a_step(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "record", contents("dead", rows=4))
    generator, last = np.random.default_rng(0), MAX_CHUNK_ROWS + 70
    norms = generator.random((last, 4, 4), np.float32)
    store.append(0)
    for step in range(1, last + 1):
        shares = np.array([step / 2, 0], np.float32)
        store.append(step, values=means(step) | {"norms": norms[step - 1], "intended": shares})
    store.commit()
    record = Record.open(tmp_path)
    assert record.norms is not None
    assert record.intended is not None
    assert np.array_equal(record.norms, norms)
    blocks = [*record.norm_blocks()]
    assert len(blocks) > 1
    assert np.array_equal(np.concatenate([steps for steps, _ in blocks]), np.arange(1, last + 1))
    assert np.array_equal(np.concatenate([block for _, block in blocks]), norms)
    assert record.intended["lost"].loc[9] == 4.5
    assert record.intended.index.tolist() == [*range(1, last + 1)]
    with pytest.raises(CheckError, match=r"record: must have weights, which recorder=dead does not record"):
        next(record.blocks())


def test_a_kill_leaves_what_was_committed(tmp_path: Path) -> None:
    """A process of its own, killed by SIGKILL in the midst of a later chunk, its temporary file left behind."""
    code = (
        "import os, signal, sys; sys.path[:0] = sys.argv[2:]; from pathlib import Path\n"
        "from test_store import *; store_module.KEYFRAME_INTERVAL = KEYFRAME_INTERVAL\n"
        "store = RecordStore(Path(sys.argv[1]) / 'record', contents()); weights = motion(LONG)\n"
        "append(store, weights, 0, 100); store.commit(); append(store, weights, 101, LONG)\n"
        "store.arrays['W'].write(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    words = [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)]
    assert subprocess.run(words, check=False).returncode == -9
    weights = motion(LONG)
    (tmp_path / "record" / "W" / "c" / "0" / "0.0123456789abcdef.partial").write_bytes(b"half")
    read_steps, read_bits = read(tmp_path)
    assert len(read_steps) >= 101
    assert np.array_equal(read_bits, weights[: len(read_steps)])
    resumed = RecordStore.resume(tmp_path / "record", contents(), 100)
    assert not [*tmp_path.rglob("*.partial")]
    append(resumed, weights, 101, LONG)
    resumed.commit()
    assert np.array_equal(read(tmp_path)[1], weights)


def test_what_is_no_record_of_the_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CheckError, match="record: must be there, as a run with recorder=full, tracers or dead leaves it"
    ):
        Record.open(tmp_path)
    store = RecordStore(tmp_path / "record", contents())
    append(store, motion(30), 0, 30)
    store.commit()
    with pytest.raises(CheckError, match="every = 1: must be 2, as in this run"):
        RecordStore.resume(tmp_path / "record", contents(every=2), 4)
    with pytest.raises(CheckError, match="must hold the steps up to 31: W has 31 of 32"):
        RecordStore.resume(tmp_path / "record", contents(), 31)
    with pytest.raises(CheckError, match=r"token = 40: must be one of the 12 that .*record has"):
        Record.open(tmp_path).weights([40])
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.rmtree(tmp_path / "record" / "h_mean")
    (tmp_path / "record" / "h_mean").symlink_to(outside)
    with pytest.raises(CheckError, match="h_mean: must be an ordinary folder"):
        RecordStore.resume(tmp_path / "record", contents(), 20)


@pytest.mark.parametrize("kind", ["full", "dead"])
def test_a_file_that_is_missing_is_named(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any of them, also where all that it holds are zeros, as Zarr would read it without the file."""
    monkeypatch.setattr(growing, "CHUNK_BYTES", 4000)  # several files, also side by side
    rows, last = VOCAB if kind == "full" else 1, 260
    of_run = Contents(kind, np.arange(rows), np.zeros(VOCAB, np.bool_), DIM, "bfloat16", intended=("lost", "decay"))
    store = RecordStore(tmp_path / "record", of_run)
    values = {"h_mean": np.zeros(DIM, np.float32), "intended": np.zeros(2, np.float32)}
    values |= {"norms": np.zeros((rows, 4), np.float32)} if kind == "dead" else {}
    weights = np.zeros((rows, DIM), np.uint16) if kind == "full" else None
    for step in range(last + 1):
        store.append(step, weights=weights, hidden=np.zeros((2, 5, DIM), np.float32), values=values if step else None)
    store.commit()
    assert Record.open(tmp_path).last_step == last
    files = sorted(path for path in store.path.glob("*/c/**/*") if path.is_file())
    assert len(files) >= 20
    for path in files:
        path.rename(tmp_path / "missing")
        line = f"^{path}: must be there, with some of the .* rows of {path.relative_to(store.path).parts[0]}$"
        for reading in (Record.open, lambda run_dir: RecordStore.resume(run_dir / "record", of_run, last)):
            with pytest.raises(CheckError, match=line):
                reading(tmp_path)
        (tmp_path / "missing").rename(path)
    names = sorted(path.name for path in store.path.iterdir() if path.is_dir())
    own = {"W"} if kind == "full" else {"norms"}
    assert {*names} == {"dead_mask", "h_mean", "hidden", "intended", "steps", "token_ids"} | own
    for name in names:
        shutil.move(store.path / name, tmp_path)
        with pytest.raises(CheckError, match=f"record/{name}/zarr.json: must be there, as a part of this record"):
            Record.open(tmp_path)
        shutil.move(tmp_path / name, store.path)


@pytest.mark.parametrize("arrays", [5, None, "abc", [1], [["a"]], ["../../x"], [""]])
def test_a_list_of_arrays_that_is_none_is_refused(arrays: object, tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "record", contents())
    store.append(0, weights=np.zeros((VOCAB, DIM), np.uint16))
    store.commit()
    store.group.attrs["arrays"] = arrays
    with pytest.raises(CheckError, match=r"record: arrays = .*: must be a list of names$"):
        Record.open(tmp_path)


@pytest.mark.slow
def test_memory_is_bounded_whatever_the_length(tmp_path: Path) -> None:
    """Peaks of what numpy allocates, while a record of 64 MB, and one four times as long, are written and read."""
    peaks: dict[str, list[int]] = {"written": [], "read": []}
    for num_steps in (250, 1000):
        path = tmp_path / f"{num_steps}"
        weights = np.random.default_rng(0).integers(0, 4, (2000, 64), np.uint16)
        tracemalloc.start()
        store = RecordStore(
            path / "record", Contents("full", np.arange(2000), np.zeros(2000, np.bool_), 64, "bfloat16")
        )
        for step in range(num_steps + 1):
            weights[step % 2000] += 1
            store.append(step, weights=weights)
        store.commit()
        peaks["written"].append(tracemalloc.get_traced_memory()[1])
        del store
        tracemalloc.reset_peak()
        assert sum(len(steps) for steps, _ in Record.open(path).blocks()) == num_steps + 1
        peaks["read"].append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    for name, (shorter, longer) in peaks.items():
        assert longer < 1.1 * shorter < 5 * WEIGHTS_BYTES, name


def test_reading_needs_no_torch() -> None:
    code = "import sys, marble_sweep.record.reader; assert not {'torch', 'zarr', 'hydra', 'omegaconf'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
