"""Records made of HDF5 files, and safetensors files made of records: bit for bit, in bounded memory."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from marble_sweep.record import hdf5
from marble_sweep.record.command import main
from marble_sweep.record.reader import Record
from marble_sweep.record.store import Contents, RecordStore


def bits(num_steps: int, dtype: str = "uint16") -> Any:
    generator = np.random.default_rng(0)
    return generator.integers(0, np.iinfo(dtype).max, (num_steps, 7, 3), dtype, endpoint=True)


def write_hdf5(path: Path, **datasets: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
    return path


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_what_is_imported_is_what_was_in_the_file(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hdf5, "READ_BYTES", 7 * 3 * 2 * 10)  # several reads
    weights = bits(53, dtype)
    source = write_hdf5(tmp_path / "W.h5", W=weights, dead_mask=np.arange(7) < 2)
    assert main(["import", str(source), str(tmp_path / "run")]) == 0
    output = capsys.readouterr()
    assert output.out == f"{tmp_path / 'run' / 'record'}\n"
    assert "53/53" in output.err
    record = Record.open(tmp_path / "run")
    assert (record.kind, record.steps.tolist(), record.dead_mask.sum()) == ("full", [*range(53)], 2)
    assert np.array_equal(np.concatenate([block for _, block in record.blocks()]), weights)
    assert main(["import", str(source), str(tmp_path / "run")]) == 2
    assert "must be one without a record; this one has one" in capsys.readouterr().err


def test_dead_tokens_of_a_file_of_their_own(tmp_path: Path) -> None:
    source = write_hdf5(tmp_path / "W.h5", W=bits(2))
    save_file({"dead_mask": np.arange(7) == 3, "dead_indices": np.array([3])}, tmp_path / "mask.safetensors")
    arguments = ["import", str(source), str(tmp_path / "run"), "--dead-mask", str(tmp_path / "mask.safetensors")]
    assert main(arguments) == 0
    assert np.flatnonzero(Record.open(tmp_path / "run").dead_mask).tolist() == [3]


@pytest.mark.parametrize(
    ("datasets", "line"),
    [
        ({"W": np.zeros((2, 7, 3), np.float16)}, r"W\.h5: must have W \(steps, V, D\), bits of bfloat16 as uint16"),
        ({"W": bits(2)[0]}, r"must have W \(steps, V, D\)"),
        ({"w": bits(2)}, r"must have W \(steps, V, D\)"),
        (
            {"W": bits(2), "dead_mask": np.zeros(8, np.bool_)},
            r"dead_mask = bool \(8,\): must be bool, of the 7 tokens of W",
        ),
    ],
)
def test_other_files_are_refused_in_a_line(
    datasets: dict[str, Any], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", str(write_hdf5(tmp_path / "W.h5", **datasets)), str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(line, error), error
    assert not (tmp_path / "run").exists()
    (tmp_path / "W.txt").write_text("no")
    assert main(["import", str(tmp_path / "W.txt"), str(tmp_path / "run")]) == 2
    assert "W.txt: must be an HDF5 file" in capsys.readouterr().err


def test_an_import_that_was_killed_begins_anew(tmp_path: Path) -> None:
    source = write_hdf5(tmp_path / "W.h5", W=bits(5))
    (tmp_path / "run" / ".record.new" / "W").mkdir(parents=True)
    assert main(["import", str(source), str(tmp_path / "run")]) == 0
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["record"]


@pytest.mark.parametrize("kind", ["full", "dead"])
@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
def test_what_is_exported_is_the_record(kind: str, stored: str, tmp_path: Path) -> None:
    weights = bits(40, "uint16" if stored == "bfloat16" else "uint32")
    shares = np.arange(78, dtype=np.float32).reshape(39, 2)
    norms = np.random.default_rng(1).random((39, 7, 4), np.float32)
    contents = Contents(kind, np.arange(7), np.arange(7) < 3, 3, stored, intended=("a", "b"))
    store = RecordStore(tmp_path / "run" / "record", contents)
    for step in range(40):
        values = {"h_mean": np.full(3, step, np.float32), "intended": shares[step - 1]} if step else {}
        if kind == "dead" and step:
            values["norms"] = norms[step - 1]
        store.append(step, weights=weights[step] if kind == "full" else None, values=values)
    store.commit()
    path = tmp_path / "record.safetensors"
    assert main(["export", str(tmp_path / "run"), str(path)]) == 0
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"intended": '["a", "b"]'}
        if kind == "full":
            assert file.get_tensor("W").dtype == (torch.uint16 if stored == "bfloat16" else torch.float32)
    if kind == "full":
        assert np.array_equal(tensors["W"].view(weights.dtype), weights)
    else:
        assert np.array_equal(tensors["norms"], norms)
    assert np.array_equal(tensors["intended"], shares)
    assert tensors["steps"].tolist() == [*range(40)]
    assert (tensors["h_mean"][:, 0] == np.arange(1, 40)).all()
    assert (tensors["token_ids"].tolist(), tensors["dead_mask"].sum()) == ([*range(7)], 3)


def test_a_directory_without_a_record_is_a_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "marble_sweep.record", "export", str(tmp_path), str(tmp_path / "x.safetensors")]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("marble_sweep.record: ")
    assert result.stderr.count("\n") == 1
