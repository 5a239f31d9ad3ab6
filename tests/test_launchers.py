"""The same grid gives the same rows whoever launches the jobs: real joblib, submitit and Ray."""

import subprocess
import sys
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
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_every_launcher_gives_the_same_rows(launcher: str, basic: dict[str, list[str]], tmp_path: Path) -> None:
    assert sweep(tmp_path / "sweep", launcher) == basic
