"""What a job returns to a sweeper that wants a number."""

import json
import math
from pathlib import Path
from typing import Any

import hydra
import pytest
from helpers import TINY
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from omegaconf import DictConfig

from marble_sweep.config import OBJECTIVES
from marble_sweep.hydra_app import main as cli
from marble_sweep.hydra_app.callbacks import started_sweeps
from marble_sweep.hydra_app.compose import CONF
from marble_sweep.hydra_app.hydra_versions import MAIN_ARGUMENTS
from marble_sweep.runs.status import read_metadata


def sweep(sweep_dir: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> list[Any]:
    """A sweep in this process; returns what its jobs hand to Hydra, and so to the sweeper."""
    values = []

    def job(config: DictConfig) -> Any:
        values.append(cli.job(config))
        return values[-1]

    words = ["marble_sweep", "--multirun", *TINY, *overrides, f"hydra.sweep.dir={sweep_dir}"]
    monkeypatch.setattr("sys.argv", words)
    state = Singleton.get_state()
    try:
        with started_sweeps() as sweeps:
            hydra.main(**MAIN_ARGUMENTS, config_path=str(CONF), config_name="config")(job)()
        assert [each.conclude(interrupted=False) for each in sweeps] == [0]
    finally:
        GlobalHydra.instance().clear()
        Singleton.set_state(state)
    return values


@pytest.mark.slow
def test_a_job_returns_its_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    returned = sweep(tmp_path / "sweep", monkeypatch, "objective=n_params", "model.num_layers=0,1", "sweep.workers=1")
    assert returned == [read_metadata(tmp_path / "sweep" / name)["n_params"] for name in "01"]
    assert returned[0] < returned[1]
    assert all(isinstance(value, float) for value in returned)


def test_objectives_are_of_the_last_evaluation(tmp_path: Path) -> None:
    metadata = '{"status": "finished", "n_params": 7, "last_evaluation": {"val_loss": 3.5, "unigram_margin": 0.25}}'
    (tmp_path / "metadata.json").write_text(metadata)
    assert [cli.objective(name, tmp_path) for name in OBJECTIVES] == [3.5, 0.25, 7.0]
    best = {"unigram_margin": 0.25, "tempered_margin": 0.2, "all_tempered_margin": 0.3}  # the margin that decides
    last = {"val_loss": 3.5, **best}
    (tmp_path / "metadata.json").write_text(json.dumps({"status": "finished", "n_params": 7, "last_evaluation": last}))
    assert cli.objective("val_margin", tmp_path) == 0.3


def test_a_job_that_failed_has_no_objective(tmp_path: Path) -> None:
    assert math.isnan(cli.objective("val_loss", None))
    (tmp_path / "metadata.json").write_text('{"status": "failed", "reason": "boom"}')
    assert all(math.isnan(cli.objective(name, tmp_path)) for name in OBJECTIVES)
