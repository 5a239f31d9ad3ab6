"""One search by real joblib, submitit, Ray and Slurm: the answer of one worker alone, nothing lost, nothing twice."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from slurm import Cluster
from studies import free_address

from marble_sweep.runs import layout
from marble_sweep.runs.status import DONE, read_metadata, run_directories
from marble_sweep.searches.storage import open_storage
from marble_sweep.searches.study import WORKER, records

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
    "trainer.num_evals=2",
    "search.confirm_seeds=2",
    "device.num_threads=1",
    "device.matmul=float32",
    "device.head=float32",
    "precision=fp32",
)
SUBMITIT = ("hydra.launcher.timeout_min=10", "hydra.launcher.cpus_per_task=1")
PATIENCE = 500  # seconds
NUM_WORKERS = 4
SEED = 7  # of when workers are killed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def command(sweep_dir: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "marble_sweep", "--multirun", *SEARCH, *overrides, f"hydra.sweep.dir={sweep_dir}"]


def search(sweep_dir: Path, *overrides: str, environment: dict[str, str] | None = None) -> str:
    """Search to the end; returns what was said."""
    words = command(sweep_dir, *overrides)
    result = subprocess.run(
        words, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=sweep_dir.parent, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


def summary(sweep_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((sweep_dir / layout.SEARCH).read_text())
    return content | content["thresholds"][0]


def answer(sweep_dir: Path) -> dict[str, Any]:
    """What does not depend on which worker did what. With the same products also the numbers are the same."""
    found = summary(sweep_dir)
    assert found["ended"] == "settled"
    kept = ("size", "params", "seed", "confirmed", "confirming_seeds", "val_loss", "margin", "step")
    return {key: found["answer"][key] for key in kept}


@contextlib.contextmanager
def load(sweep_dir: Path, database: str | None) -> Iterator[optuna.Study]:
    """The study in the sweep directory: in a journal, or in a database."""
    address = str(sweep_dir / layout.JOURNAL) if database is None else f"sqlite:///{sweep_dir / database}"
    with contextlib.closing(open_storage(address)) as storage:
        yield optuna.load_study(study_name="smallest", storage=storage)


def check(sweep_dir: Path, database: str | None = None) -> None:
    """Nothing was lost, and nothing trained twice."""
    with load(sweep_dir, database) as study:
        tried = records(study)
    kept = [(record.size, record.recipe, record.seed) for record in tried if record.outcome != "stale"]
    assert Counter(kept).most_common(1)[0][1] == 1
    assert not [record for record in tried if record.outcome == "running"]
    runs = run_directories(sweep_dir)
    ended = Counter((path / "config.yaml").read_text() for path in runs if read_metadata(path).get("status") in DONE)
    assert ended.most_common(1)[0][1] == 1
    # A run may have ended before its worker died, and nothing may have depended on it afterwards.
    lost = {(record.size, record.recipe, record.seed) for record in tried} - set(kept)
    assert len(kept) <= sum(ended.values()) <= len(kept) + len(lost)
    assert summary(sweep_dir)["trials"] == len(kept) + len(lost)


def number_of_workers(sweep_dir: Path, database: str | None = None) -> int:
    with load(sweep_dir, database) as study:
        trials = study.get_trials()
    return len({trial.user_attrs[WORKER] for trial in trials if WORKER in trial.user_attrs})


def check_all_worked(sweep_dir: Path, number: int, database: str | None = None) -> None:
    assert number_of_workers(sweep_dir, database) == number
    assert len(list(sweep_dir.glob(f"{layout.WORKERS}/*/{layout.WORKER_LOG}"))) == number


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The answer of a single worker."""
    sweep_dir = tmp_path_factory.mktemp("alone") / "search"
    search(sweep_dir, "sweep.workers=1")
    return answer(sweep_dir)


@pytest.mark.parametrize(("launcher", "options"), [("joblib", ()), ("submitit_local", SUBMITIT)])
def test_workers_on_this_machine(launcher: str, options: Sequence[str], alone: dict[str, Any], tmp_path: Path) -> None:
    sweep_dir = tmp_path / "search"
    said = search(sweep_dir, f"hydra/launcher={launcher}", *options, "sweep.workers=2")
    assert "2 trials at a time, 1 CPU thread each\n" in said
    assert answer(sweep_dir) == alone
    check(sweep_dir)
    check_all_worked(sweep_dir, 2)


def test_workers_of_a_served_study(alone: dict[str, Any], tmp_path: Path) -> None:
    sweep_dir = tmp_path / "search"
    search(sweep_dir, "hydra/launcher=joblib", "sweep.workers=2", f"search.serve={free_address()}")
    assert answer(sweep_dir) == alone
    check(sweep_dir, layout.DATABASE)
    check_all_worked(sweep_dir, 2, layout.DATABASE)


def test_a_served_search_goes_on_after_its_killed_parent(alone: dict[str, Any], tmp_path: Path) -> None:
    """Workers that outlive it reach the next start at the same address, and hear there that they are to stop."""
    sweep_dir = tmp_path / "search"
    given = ["hydra/launcher=submitit_local", *SUBMITIT, "sweep.workers=2", f"search.serve={free_address()}"]
    with subprocess.Popen(command(sweep_dir, *given), stderr=subprocess.DEVNULL, cwd=tmp_path) as process:
        wait_for(lambda: len(list(sweep_dir.glob("*/metrics.csv"))) > 2, process)
        process.kill()
    said = search(sweep_dir, *given, "search.worker_timeout=20")
    assert "Workers of an earlier start may still be at work: they are told to stop" in said
    assert answer(sweep_dir) == alone
    check(sweep_dir, layout.DATABASE)


def test_ray_on_two_nodes(alone: dict[str, Any], tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster as RayCluster

    cluster = RayCluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        sweep_dir = tmp_path / "search"
        given = [f"hydra.launcher.ray.init.address='{cluster.address}'"]
        given.append("+hydra.launcher.ray.init.object_store_memory=null")  # which the launcher sets, and a cluster has
        search(sweep_dir, "hydra/launcher=ray", *given, "sweep.workers=2")
        assert answer(sweep_dir) == alone
        check(sweep_dir)
        check_all_worked(sweep_dir, 2)
    finally:
        cluster.shutdown()


@contextlib.contextmanager
def node_with_its_own_disk(cluster: Any, folder: Path) -> Iterator[None]:
    """A node of Ray that shares all but one folder with this machine: there it has an empty one."""
    number = number_of_nodes(cluster)
    mount = 'mount -t tmpfs none "$0" && exec "$@"'
    ray = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        f"--address={cluster.address}",
        "--num-cpus=1",
        "--block",
    ]
    unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, str(folder), *ray]
    patient = os.environ | {"RAY_raylet_start_wait_time_s": str(PATIENCE)}
    with subprocess.Popen(unshare, stdout=subprocess.DEVNULL, env=patient) as node:
        try:
            wait_for(lambda: number_of_nodes(cluster) > number, node)
            yield
        finally:
            node.terminate()


def number_of_nodes(cluster: Any) -> int:
    return sum(node["Alive"] for node in cluster.global_state.node_table())


@contextlib.contextmanager
def two_nodes(disk: Path) -> Iterator[list[str]]:
    """Two nodes of Ray that each have an empty folder in place of `disk`; yields the settings of a search on them."""
    if subprocess.run(["unshare", "--mount", "--map-root-user", "true"], check=False).returncode:
        pytest.skip("needs a kernel that lets a process mount a file system of its own")
    from ray.cluster_utils import Cluster as RayCluster

    disk.mkdir(exist_ok=True)
    cluster = RayCluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        with node_with_its_own_disk(cluster, disk), node_with_its_own_disk(cluster, disk):
            given = ["hydra/launcher=ray", f"hydra.launcher.ray.init.address='{cluster.address}'", "sweep.workers=2"]
            yield [*given, "+hydra.launcher.ray.init.object_store_memory=null", f"search.serve={free_address()}"]
    finally:
        cluster.shutdown()


def test_workers_with_a_disk_of_their_own_send_their_runs_home(alone: dict[str, Any], tmp_path: Path) -> None:
    sweep_dir = tmp_path / "disk" / "search"
    with two_nodes(tmp_path / "disk") as given:
        search(sweep_dir, *given)
    assert answer(sweep_dir) == alone
    check(sweep_dir, layout.DATABASE)
    assert number_of_workers(sweep_dir, layout.DATABASE) == 2
    assert (sweep_dir / layout.PAGE).exists()
    assert not list(sweep_dir.glob(f"{layout.WORKERS}/*/{layout.WORKER_LOG}"))  # they stay where they were


def test_an_interrupted_trial_goes_on_on_another_disk_with_the_run_that_came_home(tmp_path: Path) -> None:
    """The loss comes so near to the threshold that the trial is given up late."""
    sweep_dir = tmp_path / "disk" / "search"
    long = ("trainer.total_steps=20000", "trainer.num_evals=9", "certify.threshold=2.5", "search.n_trials=1")
    with two_nodes(tmp_path / "disk") as given:
        # What is started in the background would not hear Ctrl-C; and Ray has its own answer to SIGTERM.
        words = ["env", "--default-signal=INT", *command(sweep_dir, *given, *long)]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
            wait_for(partial(has_evaluation, sweep_dir), process)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130, said
    assert [run.name for run in run_directories(sweep_dir)] == ["0"]
    before = read_metadata(sweep_dir / "0")
    assert before["status"] == "interrupted"
    assert before["step"] > 0
    with two_nodes(tmp_path / "disk") as given:
        said = search(sweep_dir, *given, *long)
    assert f"Trial 1 continues run 0, which came home at step {before['step']}\n" in said
    assert [run.name for run in run_directories(sweep_dir)] == ["0"]
    steps = (sweep_dir / "0" / layout.METRICS).read_text().splitlines()
    assert len(steps) == 1 + read_metadata(sweep_dir / "0")["step"]
    assert read_metadata(sweep_dir / "0")["status"] in DONE


def has_evaluation(sweep_dir: Path) -> bool:
    """Whether the first trial has reported one. Its files are out of reach."""
    if not (sweep_dir / layout.WORKERS_START).exists():
        return False
    with load(sweep_dir, layout.DATABASE) as study:
        return any(trial.intermediate_values for trial in study.get_trials())


def test_an_array_of_slurm(alone: dict[str, Any], tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(Path(folder), cores=2)
        try:
            sweep_dir = tmp_path / "search"
            given = ["hydra/launcher=submitit_slurm", *SUBMITIT, "sweep.workers=2"]
            search(sweep_dir, *given, environment=cluster.environment)
        finally:
            cluster.stop()
    assert answer(sweep_dir) == alone
    check(sweep_dir)
    check_all_worked(sweep_dir, 2)


def test_a_signal_stops_workers_that_do_not_hear_it(alone: dict[str, Any], tmp_path: Path) -> None:
    """submitit's jobs are in groups of their own: a signal reaches the process that watches alone."""
    sweep_dir = tmp_path / "search"
    given = ["hydra/launcher=submitit_local", *SUBMITIT, "sweep.workers=2"]
    with subprocess.Popen(command(sweep_dir, *given), stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        wait_for(lambda: len(list(sweep_dir.glob("*/metrics.csv"))) > 2, process)
        process.terminate()  # as Ctrl-C does, which a process in the background would not hear
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, said
    assert "To go on:\n  python -m marble_sweep --multirun" in said
    assert summary(sweep_dir)["ended"] == "interrupted"
    assert "running" not in summary(sweep_dir)["outcomes"]
    search(sweep_dir, *given)
    assert answer(sweep_dir) == alone
    check(sweep_dir)


def has_more_runs(sweep_dir: Path, number: int) -> bool:
    return len(list(sweep_dir.glob("*/config.yaml"))) > number


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[Any]") -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_two_of_four_plain_workers_are_killed_at_random(alone: dict[str, Any], tmp_path: Path) -> None:
    """SIGKILL reaches a worker wherever it happens to be: between trials, in one, or while it writes to the journal."""
    sweep_dir, chance = tmp_path / "search", random.Random(SEED)
    storage = f"search.storage={sweep_dir / layout.JOURNAL}"
    words = command(sweep_dir, storage, "search.worker_timeout=5", "trainer.checkpoint_interval=10")
    workers = [subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.DEVNULL) for _ in range(NUM_WORKERS)]
    try:
        for victim in chance.sample(workers, 2):
            wait_for(partial(has_more_runs, sweep_dir, len(list(sweep_dir.glob("*/config.yaml")))), victim)
            time.sleep(chance.uniform(0.0, 1.0))
            victim.kill()
        codes = sorted(worker.wait(PATIENCE) for worker in workers)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0, 0]
    assert answer(sweep_dir) == alone
    check(sweep_dir)
