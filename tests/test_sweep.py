"""Sweeps: checked before they start, each job apart, resumed without doing anything twice."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import TINY, tiny_config

from marble_sweep.run import run
from marble_sweep.runs.status import (
    count_failures,
    find_run,
    latest,
    mark_start,
    read_metadata,
    run_directories,
)
from marble_sweep.sweeps import child
from marble_sweep.training.device import cpu_threads

GRID = "model.num_layers=0,1,2"


def command(sweep_dir: Path, *overrides: str) -> list[str]:
    words = [sys.executable, "-m", "marble_sweep", "--multirun", *TINY, *overrides]
    return [*words, f"hydra.sweep.dir={sweep_dir}"]


def sweep(sweep_dir: Path, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(sweep_dir, *overrides),
        capture_output=True,
        text=True,
        cwd=sweep_dir.parent,
        env=os.environ | environment,
        check=False,
    )


def rows(directory: Path) -> list[list[str]]:
    """metrics.csv without its timing column."""
    with (directory / "metrics.csv").open(newline="") as file:
        return [row[:-1] for row in csv.reader(file)]


def statuses(sweep_dir: Path) -> dict[str, str]:
    return {path.name: read_metadata(path)["status"] for path in run_directories(sweep_dir)}


def inodes(sweep_dir: Path) -> dict[str, tuple[int, int]]:
    """Which file each metrics.csv is: one that was written again is another."""
    found = {path.name: (path / "metrics.csv").stat() for path in run_directories(sweep_dir)}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sweep_dir = tmp_path_factory.mktemp("finished") / "sweep"
    long = tmp_path_factory.mktemp("x" * 50) / ("y" * 70)  # as on clusters: too long for the path of a socket
    long.mkdir()
    result = sweep(sweep_dir, GRID, TMPDIR=str(long))
    assert result.returncode == 0, result.stderr
    (sweep_dir / "stderr").write_text(result.stderr)
    return sweep_dir


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has no products to choose from")
def test_the_jobs_share_what_the_first_one_chose(finished: Path) -> None:
    chosen = {path.name: json.loads(path.read_text())["choice"] for path in (finished / "product_choices").iterdir()}
    assert chosen.keys() == {"matmul-16x1x64x8x16-bf16.json", "head-16x64-bf16.json"}
    for run_dir in run_directories(finished):
        assert read_metadata(run_dir)["products"] == {name.partition("-")[0]: chosen[name] for name in chosen}


def test_every_job_is_a_whole_run(finished: Path, tmp_path: Path) -> None:
    assert statuses(finished) == {"0": "finished", "1": "finished", "2": "finished"}
    with cpu_threads(read_metadata(finished / "2")["machine"]["num_threads"]):
        run(tiny_config("model.num_layers=2"), tmp_path / "single")
    assert rows(finished / "2") == rows(tmp_path / "single")
    assert {path.name for path in (finished / "2").iterdir()} == {path.name for path in (tmp_path / "single").iterdir()}


def test_what_is_told(finished: Path) -> None:
    told = (finished / "stderr").read_text()
    lines = [line.split() for line in told.splitlines() if "held-out loss" in line and "margin" in line]
    assert sorted(line[:2] for line in lines) == [["0", "0L16D"], ["1", "1L16D"], ["2", "2L16D"]]
    assert "3 finished" in told
    with (finished / "summary.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["num_layers"] for row in table] == ["0", "1", "2"]
    assert (finished / "compare.html").read_text(encoding="utf-8").startswith("<!")


@pytest.mark.slow
def test_a_finished_sweep_is_not_run_again_in_any_order(finished: Path) -> None:
    before = inodes(finished)
    assert sweep(finished, "model.num_layers=2,0,1").returncode == 0
    assert inodes(finished) == before


def in_place_of(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "config.yaml that is not UTF-8": lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe"),
    "config.yaml that is a folder": lambda run: in_place_of(run / "config.yaml", Path.mkdir),
    "config.yaml that is a pipe": lambda run: in_place_of(run / "config.yaml", os.mkfifo),
    "metadata.json that is a list": lambda run: (run / "metadata.json").write_text("[3]"),
    "metadata.json that is not UTF-8": lambda run: (run / "metadata.json").write_bytes(b"\xff\xfe"),
    "metadata.json that is a folder": lambda run: in_place_of(run / "metadata.json", Path.mkdir),
    "metadata.json without what it needs": lambda run: (run / "metadata.json").write_text(
        '{"corpus": [], "status": []}'
    ),
    "metadata.json without end": lambda run: (run / "metadata.json").write_text("[" * 100_000),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_is_passed_over_and_trained_beside(
    name: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    sweep_dir, config = Path(shutil.copytree(finished, tmp_path / "sweep")), tiny_config("model.num_layers=1")
    DAMAGE[name](sweep_dir / "1")
    (sweep_dir / "3").write_text("a file where a run might have been")
    mark_start(sweep_dir)
    assert count_failures(sweep_dir) == 0
    assert {path.name for path in latest(sweep_dir, None)} >= {"0", "2"}
    assert child.assign_run_dir(config, sweep_dir, 1) == (sweep_dir / "4", False)
    if name.startswith("config"):
        assert find_run(config, sweep_dir) == sweep_dir / "4"
        assert (
            capsys.readouterr().err
            == f"marble_sweep: {sweep_dir}/1/config.yaml cannot be read: this run is not reused\n"
        )
    else:
        assert read_metadata(sweep_dir / "1") in ({}, {"corpus": [], "status": []})
        assert f"the run in {sweep_dir / '1'} is not reused, its metadata.json is damaged" in caplog.text


@pytest.mark.slow
def test_new_jobs_of_an_old_sweep_get_free_directories(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "sweep")
    assert sweep(tmp_path / "sweep", "model.num_layers=3,1").returncode == 0
    assert statuses(tmp_path / "sweep") == dict.fromkeys("0123", "finished")
    assert "num_layers: 3" in (tmp_path / "sweep" / "3" / "config.yaml").read_text()


def test_changed_code_or_data_is_not_reused(finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config("model.num_layers=1")
    assert child.assign_run_dir(config, finished, 5) == (finished / "1", True)
    metadata = (finished / "1" / "metadata.json").read_text()
    for key, word in (("code_sha256", "code"), ("sha256", "data")):
        old = json.loads(metadata)
        (old if key == "code_sha256" else old["corpus"])[key] = "0" * 64
        (finished / "1" / "metadata.json").write_text(json.dumps(old))
        assert child.assign_run_dir(config, finished, 1) == (finished / "3", False)
        assert f"not reused, its {word} was 000000000000, now " in caplog.messages[-1]
        shutil.rmtree(finished / "3")
    (finished / "1" / "metadata.json").write_text(metadata)


def test_every_config_is_checked_before_the_first_job(tmp_path: Path) -> None:
    result = sweep(tmp_path / "sweep", "model.hidden_dim=8,16,24,32,40,48,50", "model.num_heads=8")
    assert result.returncode == 2
    assert result.stderr.startswith("marble_sweep: job 6 (")
    assert "model.hidden_dim=50" in result.stderr
    assert "): model.num_heads = 8: must be null or a divisor of model.hidden_dim = 50" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_failures_stop_no_other_job_and_are_run_again(tmp_path: Path) -> None:
    # More windows a batch than the corpus has: known only once the corpus is there.
    result = sweep(tmp_path / "sweep", "trainer.batch_size=8,100000,16")
    assert result.returncode == 1
    assert statuses(tmp_path / "sweep") == {"0": "finished", "1": "failed", "2": "finished"}
    assert "must have 1,600,000 tokens to train on (trainer." in read_metadata(tmp_path / "sweep" / "1")["reason"]
    last = result.stderr.splitlines()
    assert "2 finished, 1 failed" in last
    rerun = next(line for line in last if line.startswith("  python -m marble_sweep --multirun "))
    before = inodes_of(tmp_path / "sweep", "0", "2")
    again = subprocess.run([sys.executable, *rerun.split()[1:]], capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert inodes_of(tmp_path / "sweep", "0", "2") == before


@pytest.mark.slow
def test_failures_of_an_earlier_start_do_not_stop_a_sweep(tmp_path: Path) -> None:
    path = tmp_path / "late.txt"
    overrides = ("data=text", f"data.path={path}", "data.vocab_size=300", "data.val_fraction=0", "trainer.batch_size=4")
    words = ["--multirun", *[each for each in TINY if not each.startswith("data")], *overrides]
    words = [
        sys.executable,
        "-m",
        "marble_sweep",
        *words,
        "sweep.max_failures=1",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
    ]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 1
    path.write_text("now there is a text that was not there before\n" * 400)
    again = subprocess.run(words, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "FAILED" not in again.stderr
    assert "1 finished" in again.stderr


@pytest.mark.slow
def test_another_grid_in_an_old_sweep_is_counted_apart(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "sweep")
    result = sweep(tmp_path / "sweep", "seed=1", "trainer.batch_size=100000")
    assert result.returncode == 1
    assert "\n1 failed\n" in result.stderr


def test_two_jobs_of_the_same_config_are_refused(tmp_path: Path) -> None:
    result = sweep(tmp_path / "sweep", "seed=1,2,1")
    assert result.returncode == 2
    assert result.stderr == "marble_sweep: job 2: must differ from job 0, whose config is the same\n"


def inodes_of(sweep_dir: Path, *names: str) -> list[int]:
    return [(sweep_dir / name / "metrics.csv").stat().st_ino for name in names]


@pytest.mark.slow
def test_systematic_failures_end_a_sweep(tmp_path: Path) -> None:
    one_by_one = ("sweep.max_failures=2", "sweep.workers=1")
    result = sweep(tmp_path / "sweep", "trainer.batch_size=100000", "seed=0,1,2,3", *one_by_one)
    assert result.returncode == 1
    assert statuses(tmp_path / "sweep") == {"0": "failed", "1": "failed"}
    assert "2 failed, 2 to do" in result.stderr


@pytest.mark.slow
def test_a_killed_job_is_recorded_and_the_others_run(tmp_path: Path) -> None:
    words = command(tmp_path / "sweep", "seed=0,1", "trainer.total_steps=1500", "sweep.workers=1")
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "sweep" / "0" / "metrics.csv", process)
    os.kill(training_process(process.pid), signal.SIGKILL)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1, told
    assert statuses(tmp_path / "sweep") == {"0": "failed", "1": "finished"}
    assert "SIGKILL" in read_metadata(tmp_path / "sweep" / "0")["reason"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGTERM, signal.SIGKILL],
)
def test_an_interrupted_sweep_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    long = ("trainer.total_steps=300", "seed=0,1", "trainer.state_interval=0.3", "sweep.workers=1")
    process = subprocess.Popen(command(tmp_path / "sweep", *long), stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "sweep" / "0" / "metrics.csv", process)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert process.returncode == 130, told
        assert statuses(tmp_path / "sweep") == {"0": "interrupted"}
        assert "2 to do" in told
    wait_until_free(tmp_path / "sweep" / "0")
    result = sweep(tmp_path / "sweep", *long)
    assert result.returncode == 0, result.stderr
    run(tiny_config(*long[:1], "seed=0"), tmp_path / "unbroken")
    assert rows(tmp_path / "sweep" / "0") == rows(tmp_path / "unbroken")


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until the file has rows, or the process has ended."""
    while process.poll() is None and not (path.exists() and path.read_text().count("\n") > 1):
        time.sleep(0.02)


def wait_until_free(directory: Path) -> None:
    """Until no process holds the run: one whose sweep was killed saves its state and ends."""
    from filelock import FileLock

    with FileLock(directory / ".lock", timeout=30):
        pass


def training_process(pid: int) -> int:
    """The process that trains, grandchild of the sweep's: child of the fork server that it keeps."""
    listing = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    parents: dict[int, int] = {}
    for line in listing.splitlines()[1:]:
        child, parent = map(int, line.split())
        parents[child] = parent
    servers = [each for each, parent in parents.items() if parent == pid]
    return next(each for each, parent in parents.items() if parent in servers)
