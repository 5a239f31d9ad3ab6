"""The status is written last: whatever ends a run between its last step and that, the next start completes it."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import TINY, tiny_config

from marble_sweep.run import run
from marble_sweep.runs.status import is_done, read_metadata
from marble_sweep.sweeps import child

PLOTS = {"loss.png", "lattice.png", "hidden.png"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of one finished job, numbered 0."""
    sweep_dir = tmp_path_factory.mktemp("finished")
    assert run(tiny_config(), sweep_dir / "0", show=False) == "finished"
    return sweep_dir


def assert_complete(directory: Path, status: str = "finished") -> None:
    assert read_metadata(directory)["status"] == status
    assert json.loads((directory / "verdict.json").read_text())["criteria"]
    assert {path.name for path in (directory / "plots").iterdir()} == PLOTS
    assert not list(directory.rglob(".*.tmp"))


@pytest.mark.parametrize("status", ["finished", "running"])
@pytest.mark.parametrize("lost", ["verdict.json", "plots/hidden.png", "plots"])
def test_what_is_missing_is_written_without_training(status: str, lost: str, finished: Path, tmp_path: Path) -> None:
    """`finished` without its verdict or plots is what versions that wrote the status first left after a kill."""
    shutil.copytree(finished, tmp_path / "sweep")
    directory = tmp_path / "sweep" / "0"
    shutil.rmtree(directory / lost) if lost == "plots" else (directory / lost).unlink()
    metadata = read_metadata(directory)
    (directory / "metadata.json").write_text(json.dumps(metadata | {"status": status}))
    assert child.place(tiny_config(), tmp_path / "sweep", 0) == (directory, False)
    rows = (directory / "metrics.csv").read_bytes()
    assert run(tiny_config(), directory, resume=True, show=False) == "finished"
    assert (directory / "metrics.csv").read_bytes() == rows
    assert_complete(directory)
    assert child.place(tiny_config(), tmp_path / "sweep", 0) == (directory, True)
    kept = ("step", "final_loss", "last_evaluation", "n_checkpoints", "total_epochs", "train_seconds")
    assert {name: read_metadata(directory)[name] for name in kept} == {name: metadata[name] for name in kept}


def test_a_run_of_a_search_is_done_without_plots(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "sweep")
    shutil.rmtree(tmp_path / "sweep" / "0" / "plots")
    assert is_done(tmp_path / "sweep" / "0", tiny_config("trainer.num_evals=3", "certify.stop=true"))
    assert not is_done(tmp_path / "sweep" / "0", tiny_config())


def test_plots_that_cannot_be_written_leave_a_run_that_can_be_completed(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    (directory / "plots" / "lattice.png").mkdir(parents=True)  # a folder in a picture's place
    with pytest.raises(IsADirectoryError, match=r"plots/lattice\.png"):
        run(tiny_config(), directory, show=False)
    metadata = read_metadata(directory)
    assert metadata["status"] == "failed"
    assert "plots/lattice.png" in metadata["reason"]
    assert metadata["step"] == 40
    rows = (directory / "metrics.csv").read_bytes()
    (directory / "plots" / "lattice.png").rmdir()
    assert run(tiny_config(), directory, resume=True, show=False) == "finished"
    assert (directory / "metrics.csv").read_bytes() == rows
    assert_complete(directory)


def test_a_diverged_run_is_completed_without_training(tmp_path: Path) -> None:
    config = tiny_config("optimizer=sgd", "optimizer.lr=1e30", "precision=fp32", "trainer.checkpoint_interval=1")
    directory = tmp_path / "run"
    assert run(config, directory, show=False) == "diverged"
    before = {name: (directory / name).read_bytes() for name in ("metrics.csv", "model.safetensors", "evals.csv")}
    (directory / "verdict.json").unlink()
    assert run(config, directory, resume=True, show=False) == "diverged"
    assert {name: (directory / name).read_bytes() for name in before} == before
    assert_complete(directory, "diverged")


# Each appears, or is replaced, in this order once the last step is done.
ENDINGS = ["model.safetensors", "state.safetensors", "verdict.json", "plots/loss.png", "plots/hidden.png"]


@pytest.mark.parametrize(
    "name",
    [*(pytest.param(each, marks=pytest.mark.slow) for each in ENDINGS if each != "verdict.json"), "verdict.json"],
)
def test_killed_after_the_last_step(name: str, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    command = [sys.executable, "-m", "marble_sweep", *TINY, f"hydra.run.dir={directory}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rows = directory / "metrics.csv"
    while process.poll() is None and not (rows.exists() and rows.read_bytes().count(b"\n") == 41):
        time.sleep(0.001)
    path = directory / name
    last = path.stat().st_mtime_ns if path.exists() else None
    while process.poll() is None and (not path.exists() or path.stat().st_mtime_ns == last):
        pass
    time.sleep(random.Random(seed).choice([0, 0.001, 0.003]))
    process.kill()
    process.communicate()
    if read_metadata(directory)["status"] == "finished":
        assert_complete(directory)
    written = rows.read_bytes()
    assert run(tiny_config(), directory, resume=True, show=False) == "finished"
    if name not in ENDINGS[:2]:  # before, the state may still be that of an earlier step
        assert rows.read_bytes() == written
    assert rows.read_bytes().count(b"\n") == 41
    assert_complete(directory)
