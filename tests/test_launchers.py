"""The same grid gives the same rows whoever launches the jobs: real joblib, submitit and Ray."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import TINY

LAUNCHERS = {
    "basic": [],
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra.launcher.timeout_min=5", "hydra.launcher.cpus_per_task=1"],
    "ray": ["+hydra.launcher.ray.init.num_cpus=2"],
}


def sweep(sweep_dir: Path, launcher: str) -> dict[str, list[str]]:
    """metrics.csv of every job, without the timing column."""
    words = [*TINY, "model.num_layers=0,1,2", "device.num_threads=1", f"hydra/launcher={launcher}"]
    words += [*LAUNCHERS[launcher], f"hydra.sweep.dir={sweep_dir}"]
    command = [sys.executable, "-m", "marble_sweep", "--multirun", *words]
    result = subprocess.run(command, capture_output=True, text=True, cwd=sweep_dir.parent, timeout=250, check=False)
    assert result.returncode == 0, result.stderr
    assert "3 finished" in result.stderr
    return {
        path.parent.name: [line.rpartition(",")[0] for line in path.read_text().splitlines()]
        for path in sweep_dir.glob("*/metrics.csv")
    }


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    rows = sweep(tmp_path_factory.mktemp("basic") / "sweep", "basic")
    assert sorted(rows) == ["0", "1", "2"]
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_failed_job_is_the_exit_code_under_every_launcher(launcher: str, tmp_path: Path) -> None:
    """Without hydra.sweep.dir, and although the page cannot be written."""
    words = [*TINY, "trainer.batch_size=8,100000", f"hydra/launcher={launcher}", *LAUNCHERS[launcher]]
    command = [sys.executable, "-m", "marble_sweep", "--multirun", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        while process.poll() is None and not list(tmp_path.glob("multirun/*/*/.started")):
            time.sleep(0.02)
        (started,) = tmp_path.glob("multirun/*/*/.started")
        (started.parent / "compare.html").mkdir()
        _, told = process.communicate(timeout=250)
    assert process.returncode == 1, told
    assert "1 finished, 1 failed" in told
    assert "To run what is failed (1):\n  python -m marble_sweep --multirun " in told
    assert [path.parent.name for path in sorted(tmp_path.glob("**/metadata.json"))] == ["0", "1"]
    assert {path.parents[1] for path in tmp_path.glob("**/metadata.json")} == {started.parent}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_every_launcher_gives_the_same_rows(launcher: str, basic: dict[str, list[str]], tmp_path: Path) -> None:
    assert sweep(tmp_path / "sweep", launcher) == basic
