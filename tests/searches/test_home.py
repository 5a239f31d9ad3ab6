"""Workers that do not share the sweep directory: their runs go home, and a retry goes on with what came home."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import tiny_config
from launched_threads import Engine, quick, summary, with_settings
from optuna.storages import InMemoryStorage
from pretender import Pretender
from studies import free_address

from marble_sweep.config import Config, dump
from marble_sweep.runs.status import read_metadata, run_directories
from marble_sweep.searches.home import RunsAtHome, runs_service
from marble_sweep.searches.proxy import serving
from marble_sweep.searches.storage import PatientStorage
from marble_sweep.searches.worker import Params

CONFIG = tiny_config("certify.stop=true")
SEVERAL = ("certify.stop=true", "certify.thresholds=[unigram,oracle]")


class Home:
    """A sweep directory that is served, and what is said there."""

    def __init__(self, sweep_dir: Path) -> None:
        self.sweep_dir = sweep_dir
        self.address = free_address()
        self.said: list[str] = []

    @contextlib.contextmanager
    def open(self) -> Iterator[RunsAtHome]:
        storage = PatientStorage(InMemoryStorage(), "there", 30.0)
        with serving(storage, self.address, runs_service(self.sweep_dir, self.said.append)):
            runs = RunsAtHome(self.address, storage)
            yield runs
            runs.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def begin(sweep_dir: Path, name: str, config: Config, step: int) -> Path:
    directory = sweep_dir / name
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(dump(config))
    (directory / "metadata.json").write_text(json.dumps({"status": "interrupted", "step": step}))
    (directory / "state.safetensors").write_bytes(bytes(5 << 20))  # more than one message of gRPC takes
    return directory


def test_a_retry_continues_what_came_home(tmp_path: Path, home: Home) -> None:
    with home.open() as runs:
        assert runs.send(begin(tmp_path / "a", "5", CONFIG, 100)) == tmp_path / "a" / "5"
        runs.fetch(CONFIG, tmp_path / "b", 9, is_retry=True)
        (fetched,) = run_directories(tmp_path / "b")
        assert fetched == tmp_path / "b" / "5"
        assert (fetched / "state.safetensors").stat().st_size == 5 << 20
        (fetched / "metadata.json").write_text('{"status": "certified", "step": 200}')
        runs.send(fetched)
    assert [(run.name, read_metadata(run)["step"]) for run in run_directories(home.sweep_dir)] == [("5", 200)]
    assert home.said == ["Trial 9 continues run 5, which came home at step 100"]


def test_a_retry_of_what_did_not_come_home_begins_anew(tmp_path: Path, home: Home) -> None:
    with home.open() as runs:
        runs.fetch(CONFIG, tmp_path / "b", 9, is_retry=True)
        runs.fetch(CONFIG, tmp_path / "b", 10, is_retry=False)
    assert not (tmp_path / "b").exists()
    assert home.said == ["Trial 9 begins anew: its run has not come home"]


def test_a_trial_gets_the_longest_run_of_another_threshold(tmp_path: Path, home: Home) -> None:
    unigram, oracle = (tiny_config(*SEVERAL, f"certify.threshold={name}") for name in ("unigram", "oracle"))
    begin(home.sweep_dir, "2", unigram, 40)
    with home.open() as runs:
        runs.fetch(oracle, tmp_path / "b", 9, is_retry=False)
    assert [run.name for run in run_directories(tmp_path / "b")] == ["2"]


def test_a_run_has_the_same_name_at_home_and_away(tmp_path: Path, home: Home) -> None:
    begin(home.sweep_dir, "5", tiny_config("certify.stop=true", "seed=1"), 100)
    with home.open() as runs:
        assert runs.send(begin(tmp_path / "a", "5", CONFIG, 100)) == tmp_path / "a" / "0"
    assert sorted(run.name for run in run_directories(home.sweep_dir)) == ["0", "5"]
    assert [run.name for run in run_directories(tmp_path / "a")] == ["0"]


@pytest.mark.slow
def test_runs_of_workers_with_a_disk_of_their_own_come_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one is interrupted, and its run comes home too."""
    quick(monkeypatch)
    with_settings(monkeypatch, serve=free_address())

    def train(pretender: Pretender, number: int, params: Params) -> Path:
        directory = pretender.leave_run(number, params)
        if number == 2:
            raise KeyboardInterrupt
        return directory

    (tmp_path / "away").mkdir()
    away = Engine(tmp_path / "away", 1, train)
    assert Engine(tmp_path / "home", 1).run(away.launch).reason == "interrupted"
    assert [run.name for run in run_directories(tmp_path / "home")] == ["0", "1", "2"]
    assert summary(tmp_path / "home")["outcomes"]["stale"] == 1
