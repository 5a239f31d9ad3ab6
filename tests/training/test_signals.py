"""Signals that ask to stop: heard, heard once, and left alone where they are somebody else's."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import TINY

from marble_sweep.runs.status import read_metadata
from marble_sweep.training.signals import interrupting, stop_requests

ALL = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]


@pytest.fixture(autouse=True)
def _handlers_are_restored() -> Iterator[None]:
    given = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    before = {number: signal.getsignal(number) for number in (*ALL, signal.SIGUSR2)}
    yield
    after = {number: signal.getsignal(number) for number in before}
    signal.signal(signal.SIGINT, given)
    assert after == before


@pytest.mark.parametrize("number", ALL)
def test_a_signal_is_a_request(number: signal.Signals) -> None:
    with stop_requests() as should_stop:
        assert not should_stop()
        signal.raise_signal(number)
        assert should_stop()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_second_hang_up_changes_nothing(number: signal.Signals) -> None:
    with stop_requests() as should_stop:
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert should_stop()


@pytest.mark.parametrize("number", ALL)
def test_a_second_ctrl_c_acts_at_once(number: signal.Signals) -> None:
    with stop_requests():
        signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_what_others_handle_or_ignore_is_theirs() -> None:
    heard: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, _: heard.append(number))
    try:
        with interrupting(), stop_requests() as should_stop:
            for number in before:
                signal.raise_signal(number)
            assert not should_stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert heard == [signal.SIGUSR1, signal.SIGUSR2]


@pytest.mark.parametrize("number", ALL)
def test_before_training_every_one_interrupts(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), interrupting():
        signal.raise_signal(number)


@pytest.mark.parametrize("number", ALL)
def test_requests_come_through_where_signals_interrupt(number: signal.Signals) -> None:
    with interrupting(), stop_requests() as should_stop:
        signal.raise_signal(number)
        assert should_stop()


# ------------------------------------------------------------------------- processes

LONG = (*TINY, "trainer.total_steps=100000", "trainer.checkpoint_interval=100000", "trainer.num_evals=1")
SEARCH = ("hydra/sweeper=smallest", *LONG, "model.hidden_dim=2", "model.num_layers=0,1", "trainer.num_evals=2")
KINDS = {
    "run": ([*LONG, "hydra.run.dir=run"], "run"),
    "sweep": (["--multirun", *LONG, "seed=0,1", "hydra.sweep.dir=sweep"], "sweep/0"),
    "search": (["--multirun", *SEARCH, "certify.threshold=0.1", "hydra.sweep.dir=search"], "search/0"),
}


def start(words: list[str], cwd: Path) -> subprocess.Popen[str]:
    """The program in a group of processes of its own."""
    command = [sys.executable, "-m", "marble_sweep", *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=cwd, start_new_session=True)


def wait_for(path: Path, process: subprocess.Popen[str], lines: int = 0) -> None:
    """Until the file is there with so many whole lines, or the process has ended."""
    while process.poll() is None and not (path.exists() and path.read_text().count("\n") >= lines):
        time.sleep(0.02)


def assert_saved(directory: Path) -> None:
    """The run says that it was interrupted, and its state is that of the last row."""
    metadata = read_metadata(directory)
    assert metadata["status"] == "interrupted"
    assert metadata["step"] == (directory / "metrics.csv").read_text().count("\n") - 1 > 0
    with (directory / "state.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert json.loads(header["__metadata__"]["info"])["step"] == metadata["step"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("number", "to_all"), [(signal.SIGHUP, False), (signal.SIGUSR1, True), (signal.SIGTERM, True)], ids=str
)
def test_the_state_is_saved(kind: str, number: signal.Signals, to_all: bool, tmp_path: Path) -> None:
    words, directory = KINDS[kind]
    process = start(words, tmp_path)
    wait_for(tmp_path / directory / "metrics.csv", process, lines=2)
    (os.killpg if to_all else os.kill)(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert_saved(tmp_path / directory)
    assert "python -m marble_sweep" in said


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_terminal_that_hangs_up(kind: str, tmp_path: Path) -> None:
    words, directory = KINDS[kind]
    ours, terminal = pty.openpty()
    command = [sys.executable, "-m", "marble_sweep", *words]
    # `setsid --ctty` makes it the terminal's own, as a login shell is.
    process = subprocess.Popen(["setsid", "--ctty", *command], stdin=terminal, stderr=terminal, text=True, cwd=tmp_path)
    os.close(terminal)
    rows = tmp_path / directory / "metrics.csv"
    while process.poll() is None and not (rows.exists() and rows.read_text().count("\n") > 1):
        if select.select([ours], [], [], 0.02)[0]:
            os.read(ours, 10_000)
    os.close(ours)
    assert process.wait(timeout=60) == 130
    assert_saved(tmp_path / directory)


@pytest.mark.slow
def test_ctrl_c_twice_is_no_failure(tmp_path: Path) -> None:
    # Steps of a second or so: the second Ctrl-C comes within one.
    big = ["data=markov", "model=4L128D", "hydra.run.dir=run", "device.num_threads=1"]
    process = start(big, tmp_path)
    wait_for(tmp_path / "run" / "metrics.csv", process, lines=2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert read_metadata(tmp_path / "run")["status"] == "interrupted"
    assert "Traceback" not in said
    assert "continue with:\n  python -m marble_sweep resume=" in said


SWEEP = ["--multirun", "seed=0,1", "hydra.sweep.dir=run"]


@pytest.mark.parametrize(
    ("number", "words", "awaited"),
    [
        (signal.SIGTERM, ["hydra.run.dir=run"], "run/run.log"),
        pytest.param(signal.SIGINT, ["hydra.run.dir=run"], "run/run.log", marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, ["hydra.run.dir=run"], "run/run.log", marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, ["hydra.run.dir=run"], "run", marks=pytest.mark.slow),
        pytest.param(
            signal.SIGTERM,
            ["--multirun", "seed=0,1", "hydra.sweep.dir=run"],
            "run/0/config.yaml",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_before_training_a_line_says_what_to_do(
    number: signal.Signals, words: list[str], awaited: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARBLE_SWEEP_CACHE", str(tmp_path / "cache"))  # empty: the corpus takes half a minute
    process = start(words, tmp_path)
    wait_for(tmp_path / awaited, process) if "." in awaited else time.sleep(1.5)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    if "--multirun" in words:
        assert "2 to do\nTo run what is to do:\n  python -m marble_sweep --multirun" in said
    else:
        # How far the reading of the corpus was, and so what stands above, is a matter of milliseconds.
        told = said.splitlines()[-1]
        assert told == "Interrupted before training began: nothing is lost, the same command starts again."
        assert {path.name for path in tmp_path.iterdir()} <= {"cache"}
