"""A database that is away during a search: workers wait, and report what they finish once it is back."""

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from helpers import TINY
from optuna.trial import FrozenTrial, TrialState
from postgresql import Server

from marble_sweep.runs.status import DONE, read_metadata, run_directories
from marble_sweep.searches.storage import open_storage
from marble_sweep.searches.study import records

TIMEOUT = 3  # seconds without a heartbeat after which a trial is stale
OUTAGE = 8  # seconds
SEARCH = (
    "hydra/sweeper=smallest",
    *TINY,
    "model.num_layers=0,1",
    "model.hidden_dim=2,3",
    "trainer.total_steps=1500",
    "certify.threshold=0.1",  # nothing reaches it: every size is trained to the end
    "trainer.num_evals=2",
    "search.confirm_seeds=3",
    "search.study=outage",
    f"search.worker_timeout={TIMEOUT}",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        yield server
        if server.process.poll() is None:
            server.stop()


def start(url: str, sweep_dir: Path, log: Path, *overrides: str) -> subprocess.Popen[bytes]:
    words = [*SEARCH, f"search.storage={url}", *overrides, f"hydra.sweep.dir={sweep_dir}"]
    with log.open("wb") as file:
        return subprocess.Popen([sys.executable, "-m", "marble_sweep", "--multirun", *words], stderr=file)


def trials(url: str) -> list[FrozenTrial]:
    with closing(open_storage(url)) as storage:
        return optuna.load_study(storage=storage, study_name="outage").get_trials()


def wait_for_steps(run_dirs: list[Path], workers: list[subprocess.Popen[bytes]]) -> None:
    """Wait until all runs are training, or a worker has ended."""
    while all(worker.poll() is None for worker in workers):
        if all((run_dir / "metrics.csv").exists() for run_dir in run_dirs):
            return
        time.sleep(0.05)


def test_two_workers_outlast_an_outage_and_a_restart(server: Server, tmp_path: Path) -> None:
    url, sweep_dir, logs = server.create("outage"), tmp_path / "search", [tmp_path / "0.log", tmp_path / "1.log"]
    workers = [start(url, sweep_dir, log) for log in logs]
    try:
        wait_for_steps([sweep_dir / "0", sweep_dir / "1"], workers)
        server.stop()
        time.sleep(OUTAGE)
        server.start()
        time.sleep(TIMEOUT)
        server.stop()  # and restarted at once: all open connections are broken
        server.start()
        codes = [worker.wait(240) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    printed = [log.read_text() for log in logs]
    assert codes == [0, 0], "\n".join(printed)
    for text in printed:
        assert "Traceback" not in text, text
        assert text.count("search.storage does not answer (") == text.count("search.storage answers again, after ")
        assert "search.storage does not answer (" in text
    planned = [trial for trial in trials(url) if "plan" in trial.user_attrs]
    # No trial became stale, nothing was trained twice, and the end of every run was reported.
    assert {trial.state for trial in planned} <= {TrialState.COMPLETE, TrialState.PRUNED}
    with closing(open_storage(url)) as storage:
        tried = records(optuna.load_study(storage=storage, study_name="outage"))
    assert Counter((record.size, record.recipe, record.seed) for record in tried).most_common(1)[0][1] == 1
    statuses = [read_metadata(path)["status"] for path in run_directories(sweep_dir)]
    assert len(statuses) == len(planned)
    assert set(statuses) <= set(DONE)


def test_a_finished_run_is_reported_on_the_next_start(server: Server, tmp_path: Path) -> None:
    url, sweep_dir, log = server.create("outage"), tmp_path / "search", tmp_path / "log"
    worker = start(url, sweep_dir, log, "search.storage_patience=2", "search.n_trials=1")
    wait_for_steps([sweep_dir / "0"], [worker])
    server.stop()
    assert worker.wait(120) == 2
    lines = log.read_text().splitlines()
    assert "Traceback" not in log.read_text(), log.read_text()
    line = f"marble_sweep: search.storage = {url}: must answer within search.storage_patience = 2 seconds: "
    assert lines[-1].startswith(line)
    assert [line for line in lines if line.startswith("marble_sweep:")] == [lines[-1]]
    assert read_metadata(sweep_dir / "0")["status"] in DONE
    rows = (sweep_dir / "0" / "metrics.csv").stat()

    server.start()
    (stale,) = trials(url)
    assert stale.state == TrialState.RUNNING
    worker = start(url, sweep_dir, log, "search.n_trials=1")
    assert worker.wait(120) == 0, log.read_text()
    stale, retry = [trial for trial in trials(url) if "plan" in trial.user_attrs]
    assert (stale.state, retry.user_attrs["plan"]["reason"]) == (TrialState.FAIL, "retry")
    assert retry.user_attrs["outcome"] in ("below", "undecided", "pruned")
    assert retry.user_attrs["result"]["directory"] == str(sweep_dir / "0")
    assert [path.name for path in run_directories(sweep_dir)] == ["0"]
    assert os.path.samestat((sweep_dir / "0" / "metrics.csv").stat(), rows)
    assert (sweep_dir / "0" / "metrics.csv").stat().st_mtime_ns == rows.st_mtime_ns
