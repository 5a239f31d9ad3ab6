"""How many jobs run at once, with how many threads each; and that nothing but the threads changes what they compute."""

import contextlib
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, tiny_config, train_only
from omegaconf import OmegaConf
from test_sweep import command, rows, statuses, sweep, wait_for

from marble_sweep.checks import CheckError
from marble_sweep.config import Config, SweepConfig
from marble_sweep.groups import DeviceConfig
from marble_sweep.hydra_app.private import BASIC_LAUNCHER, BASIC_SWEEPER
from marble_sweep.hydra_app.side_by_side import SEARCH, plan, require_launchable
from marble_sweep.run import run
from marble_sweep.runs.status import read_metadata
from marble_sweep.search_config import CertifyConfig
from marble_sweep.sweeps import workers
from marble_sweep.sweeps.workers import ONE, Workers, jobs_that_fit, plan_workers, send_room, usable_cores
from marble_sweep.training import memory
from marble_sweep.training.device import cpu_threads, recorded_threads

GIB = 2**30
GRID_SWEEPER = "hydra_plugins.marble_sweeper.grid_sweeper.GridSweeper"
JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"


# ------------------------------------------------------------------------- the setting


@pytest.mark.parametrize("value", ["auto", "1", "2", "1024"])
def test_what_can_be_asked_for(value: str) -> None:
    assert tiny_config(f"sweep.workers={value}").sweep.workers == value


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "1025", "10000000000", "two", "", "²", "true", "1e2"])
def test_what_cannot(value: str) -> None:
    with pytest.raises(CheckError, match=r"^sweep\.workers = .*: must be auto or a whole number in \[1, 1,024\]$"):
        SweepConfig(workers=value)


# ------------------------------------------------------------------------- the choice


def config(num_threads: int | None = None, asked: str = "auto") -> Config:
    return Config(device=DeviceConfig(num_threads=num_threads), sweep=SweepConfig(workers=asked))


@pytest.mark.parametrize(
    ("cores", "jobs", "useful", "fitting", "expected"),
    [
        (2, 9, 9, 9, Workers(2, 1)),
        (8, 100, 100, 100, Workers(8, 1)),
        (8, 3, 3, 9, Workers(3, 2)),  # never more than there are jobs, which share the cores
        (8, 100, 4, 9, Workers(4, 2)),  # nor more than are of use
        (8, 100, 100, 5, Workers(5, 1)),  # nor more than fit
        (8, 100, 100, 1, ONE),
        (1, 100, 100, None, ONE),  # one core, or one job: nobody asks what fits
        (8, 1, 1, None, ONE),
        (8, 100, 1, None, ONE),
    ],
)
def test_auto(
    cores: int, jobs: int, useful: int, fitting: int | None, expected: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, cores, fitting)
    assert plan_workers([config()], jobs, useful) == expected


def machine(monkeypatch: pytest.MonkeyPatch, cores: int, fitting: int | None = None) -> None:
    """A machine with so many cores, on which so many jobs fit; None where nobody must ask."""

    def room(_: object) -> int:
        assert fitting is not None
        return fitting

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(workers, "usable_cores", lambda: cores)
    monkeypatch.setattr(workers, "room", room)


def test_threads_that_the_user_gives_are_left_to_each_job(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 8, 100)
    assert plan_workers([config(num_threads=4)], 100, 100).number == 2
    assert plan_workers([config(), config(num_threads=3)], 100, 100).number == 2
    assert plan_workers([config(num_threads=16)], 100, 100) == ONE


def test_where_speed_decides_a_run_has_the_machine_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 8)
    hasty = Config(certify=CertifyConfig(stop=True, min_steps_per_minute=100))
    assert plan_workers([config(), hasty], 100, 100) == ONE


@pytest.mark.parametrize(
    ("asked", "jobs", "expected"), [("1", 9, ONE), ("3", 9, Workers(3, 2)), ("16", 99, Workers(16, 1)), ("3", 1, ONE)]
)
def test_a_number_is_what_the_user_says(
    asked: str, jobs: int, expected: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 8)
    assert plan_workers([config(asked=asked)], jobs, 1) == expected


@pytest.mark.parametrize(("limit", "threads"), [("1", 1), ("2", 2), ("64", 4), ("2,1", 4)])
def test_openmps_own_variable_limits_threads(limit: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 8)
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert plan_workers([config(asked="2")], 9, 9) == Workers(2, threads)


def test_jobs_fit_by_memory_and_device() -> None:
    # A process of 400 MiB and four times what training takes at least.
    assert jobs_that_fit({"cpu"}, 156 * 2**20, 10 * GIB) == 10
    assert jobs_that_fit({"cpu"}, 156 * 2**20, 10 * GIB - 1) == 9
    assert jobs_that_fit({"cpu"}, 156 * 2**20, 0) == 1
    assert jobs_that_fit({"cpu"}, 1, None) == 1
    assert jobs_that_fit({"cuda"}, 1, 1000 * GIB) == 1
    assert jobs_that_fit({"cpu", "mps"}, 1, 1000 * GIB) == 1


def test_the_largest_job_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_here", lambda: 8 * GIB)
    large = tiny_config("device=cpu", "model.hidden_dim=2048", "model.num_layers=2")
    received = []
    for configs in ([tiny_config("device=cpu")], [tiny_config("device=cpu"), large]):
        ours, theirs = multiprocessing.Pipe(duplex=False)
        send_room(configs, theirs)
        received.append(ours.recv())
    assert received[0] == 8 * 1024 // 400 > received[1] >= 1


@pytest.mark.slow
def test_a_process_says_what_fits() -> None:
    assert workers.room([tiny_config("device=cpu")]) >= 1
    assert workers.room([tiny_config("device=cuda")]) == 1


def test_without_a_process_one_job_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(workers, "start", start)
    assert workers.room([tiny_config()]) == 1


@pytest.mark.parametrize(
    ("quota", "cores"), [("250000 100000", 2), ("50000 100000", 1), ("max 100000", None), (None, None)]
)
def test_a_container_has_fewer_cores(
    quota: str | None, cores: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "CPU_QUOTA", tmp_path / "cpu.max")
    all_cores = usable_cores()
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert usable_cores() == (all_cores if cores is None else min(cores, all_cores))


# ------------------------------------------------------------------------- launchers, sweepers, callbacks


def hydra_config(asked: str, launcher: str, sweeper: str, *callbacks: str) -> object:
    hydra = {
        "launcher": {"_target_": launcher},
        "sweeper": {"_target_": sweeper},
        "callbacks": {name: {} for name in callbacks},
    }
    return OmegaConf.create({"sweep": {"workers": asked}, "hydra": hydra})


@pytest.mark.parametrize(
    ("launcher", "sweeper", "callback", "allowed"),
    [
        (
            JOBLIB,
            GRID_SWEEPER,
            None,
            "another launcher than Hydra's own, except in a search; joblib has hydra.launcher.n_jobs",
        ),
        ("ray.Launcher", GRID_SWEEPER, None, "another launcher than Hydra's own, except in a search"),
        (BASIC_LAUNCHER, BASIC_SWEEPER, None, "another sweeper than grid or smallest"),
        (BASIC_LAUNCHER, GRID_SWEEPER, "mine", "hydra.callbacks, which are called for one job after the other"),
    ],
)
def test_where_workers_cannot_be_chosen(launcher: str, sweeper: str, callback: str | None, allowed: str) -> None:
    callbacks = ["check_and_watch", *([] if callback is None else [callback])]
    for asked in ("auto", "1"):
        require_launchable(hydra_config(asked, launcher, sweeper, *callbacks))  # type: ignore[arg-type]
    with pytest.raises(CheckError) as raised:
        require_launchable(hydra_config("2", launcher, sweeper, *callbacks))  # type: ignore[arg-type]
    assert str(raised.value) == f"sweep.workers = 2: must be auto or 1 with {allowed}"


@pytest.mark.parametrize(
    ("asked", "launcher", "sweeper", "fits"),
    [
        ("auto", JOBLIB, SEARCH, True),
        ("2", "ray.Launcher", SEARCH, True),
        ("auto", "ray.Launcher", SEARCH, False),
        ("2", BASIC_LAUNCHER, SEARCH, False),
        ("auto", JOBLIB, GRID_SWEEPER, False),
    ],
)
def test_a_study_is_served_to_the_workers_of_a_launcher_alone(
    asked: str, launcher: str, sweeper: str, fits: bool
) -> None:
    config: Any = hydra_config(asked, launcher, sweeper)
    config.search = {"serve": "node1:13000"}
    line = r"^search\.serve = node1:13000: must be null unless another hydra/launcher starts the sweep\.workers of a"
    with contextlib.nullcontext() if fits else pytest.raises(CheckError, match=line):
        require_launchable(config)


def test_auto_leaves_other_launchers_and_callbacks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 8, 100)
    one = hydra_config("auto", JOBLIB, GRID_SWEEPER, "check_and_watch")
    assert plan(one, [config()], "job", 9, 9) == ONE  # type: ignore[arg-type]
    called = hydra_config("auto", BASIC_LAUNCHER, GRID_SWEEPER, "check_and_watch", "mine")
    assert plan(called, [config()], "job", 9, 9) == ONE  # type: ignore[arg-type]


def test_several_jobs_at_once_are_announced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch, 8, 4)
    own = hydra_config("auto", BASIC_LAUNCHER, GRID_SWEEPER, "check_and_watch")
    assert plan(own, [config()], "job", 9, 9).number == 4  # type: ignore[arg-type]
    plan(own, [config(num_threads=1)], "trial", 9, 9)  # type: ignore[arg-type]
    assert capsys.readouterr().err == "4 jobs at a time, 2 CPU threads each\n4 trials at a time, 1 CPU thread each\n"


# ------------------------------------------------------------------------- threads


def test_a_resumed_run_keeps_its_threads(tmp_path: Path) -> None:
    short = tiny_config("trainer.total_steps=4", "trainer.num_evals=1", "certify.stop=true")  # without plots
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        run(short, tmp_path / "run", show=False)
        torch.set_num_threads(1)
        (tmp_path / "run" / "verdict.json").unlink()
        run(short, tmp_path / "run", resume=True, show=False)
        assert read_metadata(tmp_path / "run")["machine"]["num_threads"] == 2
        assert torch.get_num_threads() == 1
        run(replace(short, device=DeviceConfig(num_threads=3)), tmp_path / "run", resume=True, show=False)
        assert read_metadata(tmp_path / "run")["machine"]["num_threads"] == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("machine", [None, [], {}, {"num_threads": 0}, {"num_threads": "2"}, {"num_threads": 10**9}])
def test_metadata_that_names_no_threads_leaves_them_to_torch(machine: object, tmp_path: Path) -> None:
    assert recorded_threads({"machine": machine}) is None


# ------------------------------------------------------------------------- whole processes

LONG = ("trainer.total_steps=300", "seed=0,1", "trainer.state_interval=0.3", "sweep.workers=2", "device.num_threads=1")


@pytest.mark.slow
def test_jobs_side_by_side_are_those_of_single_runs(tmp_path: Path) -> None:
    """Bit for bit: rows and weights, for the same number of threads."""
    fixed = ("device.num_threads=2", "device.matmul=float32", "device.head=float32")
    result = sweep(tmp_path / "sweep", "model.num_layers=0,1,2", "sweep.workers=3", *fixed)
    assert result.returncode == 0, result.stderr
    assert "\n3 jobs at a time, 2 CPU threads each\n" in result.stderr
    for number in range(3):
        job, alone = tmp_path / "sweep" / str(number), tmp_path / str(number)
        words = [*TINY, f"model.num_layers={number}", *fixed, f"hydra.run.dir={alone}"]
        subprocess.run([sys.executable, "-m", "marble_sweep", *words], check=True, capture_output=True)
        assert rows(job) == rows(alone)
        assert (job / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()
        assert read_metadata(job)["machine"]["num_threads"] == 2


@pytest.mark.slow
def test_ctrl_c_stops_all_jobs_and_the_sweep_goes_on(tmp_path: Path) -> None:
    process = subprocess.Popen(command(tmp_path / "sweep", *LONG), stderr=subprocess.PIPE, text=True)
    for number in range(2):
        wait_for(tmp_path / "sweep" / str(number) / "metrics.csv", process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert statuses(tmp_path / "sweep") == {"0": "interrupted", "1": "interrupted"}
    assert "\n2 to do\n" in told
    rerun = next(line for line in told.splitlines() if line.startswith("  python -m marble_sweep --multirun "))
    again = subprocess.run(
        [sys.executable, *shlex.split(rerun)[1:]], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert again.returncode == 0, again.stderr
    for number in range(2):
        with cpu_threads(1):
            train_only(tiny_config(LONG[0], f"seed={number}"), tmp_path / f"unbroken{number}")
        assert rows(tmp_path / "sweep" / str(number)) == rows(tmp_path / f"unbroken{number}")


@pytest.mark.slow
def test_failures_side_by_side(tmp_path: Path) -> None:
    """Failed jobs stop no other, and once there are enough no further one starts."""
    result = sweep(tmp_path / "sweep", "trainer.batch_size=8,100000,16", "sweep.workers=2")
    assert result.returncode == 1
    assert statuses(tmp_path / "sweep") == {"0": "finished", "1": "failed", "2": "finished"}
    assert "\n2 finished, 1 failed\n" in result.stderr
    seeds = "seed=0,1,2,3,4,5"
    result = sweep(tmp_path / "other", "trainer.batch_size=100000", seeds, "sweep.max_failures=2", "sweep.workers=2")
    assert result.returncode == 1
    failed = statuses(tmp_path / "other")
    assert set(failed.values()) == {"failed"}
    assert 2 <= len(failed) <= 3  # one may have started before the second failed
    assert f"\n{len(failed)} failed, {6 - len(failed)} to do\n" in result.stderr


@pytest.mark.slow
def test_the_environment_that_hydra_sets_reaches_all_jobs(tmp_path: Path) -> None:
    given = ("seed=0,1", "sweep.workers=2", "+hydra.job.env_set.OMP_NUM_THREADS='1'")
    result = sweep(tmp_path / "sweep", *given, OMP_NUM_THREADS="")
    assert result.returncode == 0, result.stderr
    names = os.listdir(tmp_path / "sweep")
    assert {"0", "1"} <= set(names)
    assert {read_metadata(tmp_path / "sweep" / name)["machine"]["num_threads"] for name in "01"} == {1}
