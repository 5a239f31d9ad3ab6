"""Four worker processes on one study: one of them is killed during a trial, and nothing is lost or done twice."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from postgresql import Server

from marble_sweep.runs.files import lock_directory
from marble_sweep.runs.status import DONE, read_metadata, run_directories
from marble_sweep.searches.storage import PatientStorage, open_storage
from marble_sweep.searches.study import PLAN, WORKER, records

NUM_WORKERS = 4
PATIENCE = 120  # seconds
STUDY = "shared"
SIZES_TO_REFUTE = ("0L2D", "1L2D")  # smaller than the answer, 0L3D: the search cannot do without them
SEARCH = (
    "hydra/sweeper=smallest",
    "data=markov",
    "data.vocab_size=64",
    "data.num_tokens=20000",
    "model.num_layers=0,1",
    "model.hidden_dim=range(2,5)",
    "trainer.total_steps=200",
    "trainer.batch_size=8",
    "trainer.seq_len=16",
    "trainer.checkpoint_interval=10",  # rows reach the disk early, long before the run ends
    "trainer.num_evals=2",
    "search.confirm_seeds=2",
    f"search.study={STUDY}",
    "search.worker_timeout=5",
)
STATES = {
    "certified": TrialState.COMPLETE,
    "below": TrialState.COMPLETE,
    "undecided": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "stale": TrialState.FAIL,
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


# ---------------------------------------------------------------------- PostgreSQL


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        yield server
        server.stop()


@pytest.fixture
def database(postgresql: Server, request: pytest.FixtureRequest) -> str:
    """The URL of a new, empty database."""
    return postgresql.create(f"test_{abs(hash(request.node.name))}")


# ------------------------------------------------------------------------- workers


def start(storage: str, sweep_dir: Path, log: Path, *overrides: str) -> subprocess.Popen[bytes]:
    words = [*SEARCH, f"search.storage={storage}", *overrides, f"hydra.sweep.dir={sweep_dir}"]
    with log.open("wb") as file:
        return subprocess.Popen([sys.executable, "-m", "marble_sweep", "--multirun", *words], stderr=file)


OPENED: list[PatientStorage] = []


@pytest.fixture(autouse=True)
def _closing() -> Iterator[None]:
    """Close the databases that a test has opened."""
    yield
    while OPENED:
        OPENED.pop().close()


def load(storage: str) -> optuna.Study:
    """The study. Raises KeyError where it has not begun."""
    OPENED.append(open_storage(storage))
    return optuna.load_study(storage=OPENED[-1], study_name=STUDY)


def wait_for_victim(storage: str, workers: list[subprocess.Popen[bytes]], sweep_dirs: list[Path]) -> tuple[int, int]:
    """Stop a worker that trains a size no other worker has tried; returns its place and its trial's number.

    When this returns, its training process is at work: stopping the worker does not stop it.
    """
    give_up = time.monotonic() + PATIENCE
    while all(worker.poll() is None for worker in workers):
        time.sleep(0.2)
        with contextlib.suppress(KeyError):  # there is no study yet
            study = load(storage)
            break
    while any(worker.poll() is None for worker in workers) and time.monotonic() < give_up:
        trials = [trial for trial in study.get_trials() if WORKER in trial.user_attrs]  # set last
        sizes = Counter(trial.user_attrs["size"] for trial in trials)
        for trial in trials:
            size = trial.user_attrs["size"]
            if trial.state != TrialState.RUNNING or size not in SIZES_TO_REFUTE or sizes[size] > 1:
                continue
            place = next(
                at for at, worker in enumerate(workers) if str(worker.pid) == trial.user_attrs[WORKER].split()[1]
            )
            run = sweep_dirs[place] / str(trial.number)
            if not (run / "config.yaml").exists():
                continue  # its training process may not have been started
            pid = workers[place].pid
            os.kill(pid, signal.SIGSTOP)
            if study.get_trials()[trial.number].state == TrialState.RUNNING:
                while not has_rows(run / "metrics.csv") and time.monotonic() < give_up:
                    time.sleep(0.005)
                return place, trial.number
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.02)
    raise AssertionError("no worker trained a size that the search cannot do without")


def has_rows(path: Path) -> bool:
    return path.exists() and path.read_text().count("\n") > 1


def work(
    storage: str, sweep_dirs: list[Path], logs: Path, *overrides: str
) -> tuple[list[FrozenTrial], FrozenTrial, list[str]]:
    """Run all workers and kill one; returns the trials, the killed worker's last one, and what the others printed."""
    workers = [
        start(storage, sweep_dir, logs / f"{place}.log", *overrides) for place, sweep_dir in enumerate(sweep_dirs)
    ]
    try:
        place, number = wait_for_victim(storage, workers, sweep_dirs)
        workers[place].kill()
        for worker in workers:
            worker.wait(2 * PATIENCE)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    lock_directory(sweep_dirs[place] / str(number), "the killed run, which ends by itself").release()
    printed = [(logs / f"{worker}.log").read_text() for worker in range(NUM_WORKERS)]
    codes = [worker.returncode for worker in workers]
    assert codes == [-signal.SIGKILL if worker == place else 0 for worker in range(NUM_WORKERS)], "\n".join(printed)
    assert "Traceback" not in "".join(printed), "\n".join(printed)
    trials = load(storage).get_trials()
    return trials, trials[number], [text for worker, text in enumerate(printed) if worker != place]


def check(storage: str, trials: list[FrozenTrial], killed: FrozenTrial, sweep_dirs: list[Path]) -> FrozenTrial:
    """Check what holds for every way to share a study. Returns the retry of the killed worker's trial."""
    tried = records(load(storage))
    for record in tried:
        assert trials[record.number].state == STATES[record.outcome], record
    assert {trial.state for trial in trials if PLAN not in trial.user_attrs} <= {TrialState.FAIL}  # withdrawn

    kept = [(record.size, record.recipe, record.seed) for record in tried if record.outcome != "stale"]
    assert Counter(kept).most_common(1)[0][1] == 1
    plan = killed.user_attrs[PLAN]
    assert killed.state == TrialState.FAIL
    assert "outcome" not in killed.user_attrs
    (again,) = [
        record for record in tried if (record.size, record.seed) == (plan["size"], 0) and record.number > killed.number
    ][:1]
    assert list(again.recipe) == plan["recipe"]
    assert trials[again.number].user_attrs[PLAN]["reason"] == "retry"
    assert again.outcome in ("below", "undecided", "pruned")

    runs = [path for sweep_dir in set(sweep_dirs) for path in run_directories(sweep_dir)]
    ended = Counter((path / "config.yaml").read_text() for path in runs if read_metadata(path)["status"] in DONE)
    assert ended.most_common(1)[0][1] == 1
    assert sum(ended.values()) == len(kept)
    return trials[again.number]


def answer(printed: str) -> str:
    """The lines with the answer, without its cost and directory."""
    lines = printed.splitlines()
    first = next(
        place for place, line in enumerate(lines) if line.startswith(("The smallest certified size", "Nothing is cert"))
    )
    return "\n".join(lines[first : first + 3])


def test_a_journal_and_one_directory(tmp_path: Path) -> None:
    sweep_dirs = [tmp_path / "search"] * NUM_WORKERS
    storage = str(tmp_path / "study.log")
    trials, killed, printed = work(storage, sweep_dirs, tmp_path)
    again = check(storage, trials, killed, sweep_dirs)
    assert len(set(map(answer, printed))) == 1
    assert "0L3D" in answer(printed[0])
    # The killed worker's run was continued in its directory, to its end.
    assert Path(again.user_attrs["result"]["directory"]) == tmp_path / "search" / str(killed.number)
    ends = {"below": "finished", "undecided": "finished", "pruned": "pruned"}
    assert read_metadata(Path(again.user_attrs["result"]["directory"]))["status"] == ends[again.user_attrs["outcome"]]


def test_a_journal_and_a_directory_each(tmp_path: Path) -> None:
    sweep_dirs = [tmp_path / f"search{place}" for place in range(NUM_WORKERS)]
    storage = str(tmp_path / "study.log")
    trials, killed, printed = work(storage, sweep_dirs, tmp_path)
    check(storage, trials, killed, sweep_dirs)
    assert len(set(map(answer, printed))) == 1


def test_a_database_and_one_directory(database: str, tmp_path: Path) -> None:
    sweep_dirs = [tmp_path / "search"] * NUM_WORKERS
    trials, killed, printed = work(database, sweep_dirs, tmp_path)
    check(database, trials, killed, sweep_dirs)
    assert len(set(map(answer, printed))) == 1


def test_trials_are_counted_over_all_workers(database: str, tmp_path: Path) -> None:
    """A stale trial is retried even when search.n_trials have begun."""
    sweep_dirs = [tmp_path / "search"] * NUM_WORKERS
    trials, killed, printed = work(database, sweep_dirs, tmp_path, "search.n_trials=6")
    check(database, trials, killed, sweep_dirs)
    assert len([record for record in records(load(database)) if record.outcome != "stale"]) == 6
    assert len(set(map(answer, printed))) == 1
    assert all("search.n_trials is used up after 6 trials" in text for text in printed)
