"""Workers as a launcher's jobs, which may have other working directories than the process that starts them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus

from marble_sweep import config as schema
from marble_sweep.hydra_app.compose import CONF
from marble_sweep.hydra_app.hydra_versions import composing_from
from marble_sweep.hydra_app.launched import WorkerJob, WorkerTask
from marble_sweep.searches.launched import Start
from marble_sweep.searches.worker import Ending
from marble_sweep.sweeps.workers import ONE

DIRECTORY = "multirun/a b${c}"  # relative, as the default is, and with what Hydra would read something into


class Launcher:
    """Keeps what it is asked to run."""

    def launch(self, jobs: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        self.jobs = jobs
        return [JobReturn(_return_value=Ending("settled", None, []), status=JobStatus.COMPLETED) for _ in jobs]


def test_workers_in_another_folder_keep_their_runs_in_the_sweep_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    schema.register_schemas()
    with composing_from(CONF):
        config = compose("config", [r'hydra.sweep.dir="multirun/a b\${c}"'], return_hydra_config=True)
    assert config.hydra.sweep.dir == DIRECTORY
    launcher, given = Launcher(), {}

    def instantiate(_: Plugins, **arguments: Any) -> Launcher:
        given.update(arguments)
        return launcher

    monkeypatch.setattr(Plugins, "instantiate_launcher", instantiate)
    context: Any = None
    task = WorkerTask(config, [], context, ONE)
    assert [ending.reason for ending in task.launch(Start("name", "study.log", 0)) if isinstance(ending, Ending)]
    job = given["task_function"]
    assert isinstance(job, WorkerJob)
    expected = str(tmp_path / DIRECTORY)
    assert job.task.config.hydra.sweep.dir == given["config"].hydra.sweep.dir == expected
    (overrides,) = launcher.jobs
    directory, _ = OverridesParser.create().parse_overrides(list(overrides))
    with composing_from(CONF):
        composed = compose("config", [str(directory.input_line)], return_hydra_config=True)
    assert composed.hydra.sweep.dir == expected
    assert config.hydra.sweep.dir == DIRECTORY  # commands are printed from it
