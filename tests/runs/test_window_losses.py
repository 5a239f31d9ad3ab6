"""What a run keeps of every held-out window, and what is read back of it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import tiny_config, train_only
from opened import interrupted_as_it_writes
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from marble_sweep.data.corpus import load_corpus
from marble_sweep.data.held_out import choose_windows
from marble_sweep.runs.damage import DamageError
from marble_sweep.runs.window_losses import HeldOut, read_documents, read_window_losses, write_windows

BOTH = ("window_losses.csv", "windows.csv")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("unbroken") / "run"
    assert train_only(tiny_config("trainer.eval_windows=50"), directory) == "finished"
    return directory


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """The same run, interrupted at step 20, after its second evaluation."""
    directory = tmp_path / "run"
    with interrupted_as_it_writes("checkpoints.safetensors", 2):  # the first is of the start
        assert train_only(tiny_config("trainer.eval_windows=50"), directory) == "interrupted"
    return directory


def test_every_evaluation_is_there_window_by_window(unbroken: Path) -> None:
    losses = pd.read_csv(unbroken / "window_losses.csv", index_col="step")
    evals = pd.read_csv(unbroken / "evals.csv", index_col="step")
    assert losses.index.tolist() == evals.index.tolist() == [10, 20, 30, 40]
    config = tiny_config()
    numbers, _ = choose_windows("all", len(load_corpus(config.data).val_tokens), None, config.trainer.seq_len, 50)
    assert losses.columns.astype(int).tolist() == numbers.tolist()
    # Both files have nine significant digits of the same float64 numbers.
    np.testing.assert_allclose(losses.mean(axis=1), evals["val_loss"], rtol=1e-8)
    for step in losses.index:
        read = read_window_losses(unbroken, step)
        assert read is not None
        assert read.losses.tolist() == losses.loc[step].tolist()
    assert read_window_losses(unbroken, 4) is None  # of 40, these are the first digit
    assert read_documents(unbroken, ",".join(losses.columns)) is None


def test_a_resumed_run_has_no_gap_and_no_row_twice(unbroken: Path, interrupted: Path) -> None:
    with (interrupted / "window_losses.csv").open("a") as file:
        file.write("30,1,2,3\n40,")  # of a process that was killed after the state was saved
    assert train_only(tiny_config("trainer.eval_windows=50"), interrupted, resume=True) == "finished"
    for name in BOTH:
        assert (interrupted / name).read_bytes() == (unbroken / name).read_bytes()


def test_a_changed_row_is_refused_as_that_of_other_files_is(interrupted: Path) -> None:
    path = interrupted / "window_losses.csv"
    content = path.read_bytes()
    path.write_bytes(content[:-2] + (b"8\n" if content.endswith(b"7\n") else b"7\n"))
    with pytest.raises(ValueError, match=r"window_losses\.csv: must be as it was when the state was saved"):
        train_only(tiny_config("trainer.eval_windows=50"), interrupted, resume=True)


@pytest.mark.parametrize("earlier", [True, False])
def test_a_run_without_the_file_goes_on_and_has_later_evaluations(interrupted: Path, earlier: bool) -> None:
    for name in BOTH:
        (interrupted / name).unlink()
    if earlier:  # nor does the state of an earlier version know of it
        path = interrupted / "state.safetensors"
        with safe_open(path, "pt") as file:
            info = json.loads(file.metadata()["info"])
        del info["rows"]["window_losses.csv"]
        save_file(load_file(path), path, {"info": json.dumps(info)})
    config = tiny_config("trainer.eval_windows=50")
    with interrupted_as_it_writes("model.safetensors", 2):  # once as it starts, then at step 40
        train_only(config, interrupted, resume=True)
    assert pd.read_csv(interrupted / "window_losses.csv")["step"].tolist() == [30, 40]
    train_only(config, interrupted, resume=True)
    assert pd.read_csv(interrupted / "window_losses.csv")["step"].tolist() == [30, 40]
    assert len(read_window_losses(interrupted, 40).losses) == 50  # type: ignore[union-attr]


def test_documents_are_kept(tmp_path: Path) -> None:
    write_windows(tmp_path / "windows.csv", HeldOut(np.array([0, 3, 9]), np.array([0, 0, 4])))
    assert read_documents(tmp_path, "0,3,9").tolist() == [0, 0, 4]  # type: ignore[union-attr]
    assert pd.read_csv(tmp_path / "windows.csv")["window"].tolist() == [0, 3, 9]
    write_windows(tmp_path / "windows.csv", HeldOut(np.array([0, 3, 9]), None))
    assert read_documents(tmp_path, "0,3,9") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "window\n1\n",
        f"window,document\n1,{10**30}\n",
        "window,document\n1,x\n",
        "window,document\n1,\n2,3\n",
        "window,document\n4,3\n",
    ],
)
def test_windows_that_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "windows.csv").write_text(text)
    with pytest.raises(DamageError):
        read_documents(tmp_path, "1,2" if "\n2" in text else "1")


@pytest.mark.parametrize("row", [b"20,1,2,3", b"20,1,,3,4", b"20,1,2,inf,4", b"20,1,2,x,4", b"20,\xff,2,3,4"])
def test_a_row_that_is_none(row: bytes, tmp_path: Path) -> None:
    (tmp_path / "window_losses.csv").write_bytes(b"step,0,1,2,3\n10,1,2,3,4\n" + row + b"\n")
    assert read_window_losses(tmp_path, 10).losses.tolist() == [1, 2, 3, 4]  # type: ignore[union-attr]
    with pytest.raises(DamageError, match="step 20: must be"):
        read_window_losses(tmp_path, 20)


@pytest.mark.parametrize("text", [b"", b"step", b"step,x\n", b"\0" * 99, b"loss,0,1\n"])
def test_a_header_that_is_none(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "window_losses.csv").write_bytes(text)
    with pytest.raises(DamageError, match="line 1"):
        read_window_losses(tmp_path, 20)


def test_half_a_last_row_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "window_losses.csv").write_bytes(b"step,0,1\n10,1,2\n20,1,2")
    assert read_window_losses(tmp_path, 20) is None


def test_what_is_not_held_out_has_no_windows(tmp_path: Path) -> None:
    train_only(tiny_config("data.val_fraction=0", "trainer.total_steps=2"), tmp_path / "run")
    assert not (tmp_path / "run" / "windows.csv").exists()
    assert (tmp_path / "run" / "window_losses.csv").read_text() == "step\n"
