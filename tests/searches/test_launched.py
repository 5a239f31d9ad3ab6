"""Workers that a launcher starts: they join one study, and the process that watches says and writes what they do."""

import contextlib
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from launched_threads import Engine, quick, summary, with_settings
from pretender import Pretender

from marble_sweep.checks import CheckError
from marble_sweep.searches.launched import LaunchingSearch, Start
from marble_sweep.searches.storage import StorageError
from marble_sweep.searches.study import records
from marble_sweep.searches.worker import WORKING, Ending, Params

REFUSED = (
    "search.storage = .*study.log: must be one that every worker reaches: a file in a folder that all machines share"
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)


def test_workers_of_a_launcher_share_one_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = Pretender(tmp_path / "alone", 1)
    assert alone.search.run(alone.train).reason == "settled"
    capsys.readouterr()
    assert Engine(tmp_path / "together", 3).run() == Ending("settled", None, [])
    printed = capsys.readouterr().err
    expected, together = summary(tmp_path / "alone"), summary(tmp_path / "together")
    for key in ("size", "params", "confirming_seeds", "margin"):
        assert together["answer"][key] == expected["answer"][key]
    assert together["ended"] == "settled"
    pattern = r"^ *(\d+)  (?:probe|confirm|refute).* at step "
    shown = sorted(map(int, re.findall(pattern, printed, re.MULTILINE)))
    assert len(shown) == len(set(shown)) == together["trials"]  # a line a trial, from the process that watches
    assert " of 3 workers together; stopping" in printed
    logs = [(tmp_path / "together" / f"{place}.log").read_text() for place in range(3)]
    by_worker = [re.findall(pattern, log, re.MULTILINE) for log in logs]
    assert sorted(int(number) for numbers in by_worker for number in numbers) == shown
    assert all(by_worker)


def test_a_worker_that_ends_in_a_bug_stops_the_others(tmp_path: Path) -> None:
    engine = Engine(tmp_path, 2, lambda pretender, number, _: pretender.fail_first(number))
    with pytest.raises(RuntimeError, match="a bug"):
        engine.run()
    assert any(worker.stopped.is_set() for worker in engine.workers)
    assert summary(tmp_path)["outcomes"] == {"stale": 2}  # to be retried
    assert Engine(tmp_path, 1).run().reason == "settled"


def test_ctrl_c_stops_workers_wherever_they_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The launcher is interrupted, and leaves its workers alone, as Slurm does."""
    begun = threading.Barrier(3)

    def train(pretender: Pretender, number: int, params: Params) -> Path:
        begun.wait(20)
        while not pretender.search.should_stop():
            time.sleep(0.01)
        raise KeyboardInterrupt

    engine, threads = Engine(tmp_path, 2, train), []

    def launch(start: Start) -> Sequence[Ending | Exception]:
        for place in range(2):
            threads.append(threading.Thread(target=engine.work, args=(start, place)))
            threads[-1].start()
        begun.wait(20)
        raise KeyboardInterrupt

    assert engine.run(launch).reason == "interrupted"
    assert summary(tmp_path)["outcomes"] == {"stale": 2}
    printed = capsys.readouterr().err
    assert len(re.findall("^ *[01]  .*  interrupted$", printed, re.MULTILINE)) == 2
    assert "stale" not in printed
    for thread in threads:
        thread.join()


def test_the_death_of_a_worker_leaves_the_others_at_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Launchers raise an error as soon as one of their jobs has died."""
    engine, threads = Engine(tmp_path, 1), []

    def launch(start: Start) -> Sequence[Ending | Exception]:
        threads.append(threading.Thread(target=engine.work, args=(start, 0)))
        threads[-1].start()
        while not engine.workers[0].started:
            time.sleep(0.01)
        raise RuntimeError("a job\nhas died")

    assert engine.run(launch).reason == "settled"
    assert "A worker died, and any others go on (RuntimeError: a job has died)\n" in capsys.readouterr().err
    assert summary(tmp_path)["answer"]["size"] == "hidden_dim=4"
    threads[0].join()


def test_a_search_whose_workers_have_all_died_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hasty(monkeypatch)
    watching = Pretender(tmp_path, 1, LaunchingSearch).search
    assert isinstance(watching, LaunchingSearch)

    def launch(start: Start) -> Sequence[Ending | Exception]:
        assert watching.shared.ask() is not None  # a worker's last deed
        raise RuntimeError("no machine")

    ending = watching.run_launched(launch, 1)
    assert ending.reason == "error"
    assert ending.error == (
        "the workers ended before the search did (RuntimeError: no machine); the same command continues"
    )
    assert re.search("^ *0  .*  stale: its worker died or was stopped$", capsys.readouterr().err, re.MULTILINE)


def out_of_reach(*_: object) -> None:
    raise StorageError("out of reach")


@pytest.mark.parametrize("end", ["workers died", "storage", "interrupted", "bug"])
def test_a_worker_that_starts_after_the_search_ended_trains_nothing(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job of Slurm waits in the queue however the process that watches ended."""
    hasty(monkeypatch)
    watching, late = Pretender(tmp_path, 1, LaunchingSearch).search, Engine(tmp_path, 1)
    assert isinstance(watching, LaunchingSearch)
    starts: list[Start] = []

    def launch(start: Start) -> Sequence[Ending | Exception]:
        starts.append(start)
        if end == "interrupted":
            raise KeyboardInterrupt
        assert watching.shared.ask() is not None
        if end == "bug":
            return [RuntimeError("a bug")]
        if end == "storage":
            monkeypatch.setattr(watching, "result", out_of_reach)
        raise RuntimeError("no machine")

    raised = {"storage": StorageError, "bug": RuntimeError}.get(end)
    with pytest.raises(raised) if raised else contextlib.nullcontext():
        assert watching.run_launched(launch, 1).reason in ("error", "interrupted")
    assert late.work(starts[0], 0) == Ending("interrupted", None, [])
    assert not late.workers[0].started


def test_workers_that_outlive_their_killed_parent_stop_and_end_their_trials_themselves(tmp_path: Path) -> None:
    """The next start tells them to, and does not take a trial of theirs that still runs for stale."""
    killed = Pretender(tmp_path, 1, LaunchingSearch).search
    killed._begin(alone=True)
    start = Start("killed", killed.address, 0)
    killed.shared.study.set_user_attr(start.key, WORKING)
    begun = threading.Event()
    outcomes: list[str] = []

    def train(pretender: Pretender, number: int, params: Params) -> Path:
        begun.set()
        give_up = time.monotonic() + 20
        while not pretender.search.should_stop() and time.monotonic() < give_up:
            time.sleep(0.01)
        outcomes.extend(record.outcome for record in records(killed.shared.study) if record.number == number)
        raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(Engine(tmp_path, 1, train).work, start, 0)
        begun.wait(20)
        assert Engine(tmp_path, 1).run().reason == "settled"
    assert ended.result() == Ending("interrupted", None, [])
    assert outcomes == ["running"]


def test_a_launcher_that_cannot_start_workers_keeps_its_error(tmp_path: Path) -> None:
    def launch(start: Start) -> Sequence[Ending | Exception]:
        raise FileNotFoundError("sbatch")

    with pytest.raises(FileNotFoundError, match="sbatch"):
        Engine(tmp_path, 1).run(launch)


def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have trials be stale after 0.1 s."""
    with_settings(monkeypatch, worker_timeout=0.1)


def test_workers_are_given_a_file_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may have other working directories, as those of Ray that `ray start` has begun."""
    monkeypatch.chdir(tmp_path)
    with_settings(monkeypatch, storage="shared/study.log")
    starts: list[Start] = []

    def launch(start: Start) -> Sequence[Ending | Exception]:
        starts.append(start)
        raise KeyboardInterrupt

    assert Engine(tmp_path, 1).run(launch).reason == "interrupted"
    assert starts[0].address == str(tmp_path / "shared/study.log")
    assert Path(starts[0].address).exists()


def test_a_worker_that_does_not_reach_the_study_is_refused(tmp_path: Path) -> None:
    """On a machine without the shared folder there is no journal; in a folder of the same name, another study."""
    with pytest.raises(CheckError, match=REFUSED):
        Engine(tmp_path / "a", 1).run(lambda _: [elsewhere(tmp_path / "b")])
    (tmp_path / "b" / "study.log").touch()
    with pytest.raises(CheckError, match=REFUSED):
        Engine(tmp_path / "a", 1).run(lambda _: [elsewhere(tmp_path / "b")])
    assert not list(tmp_path.glob("b/*/config.yaml"))


def elsewhere(folder: Path) -> Ending | Exception:
    folder.mkdir(exist_ok=True)
    return Engine(folder, 1).work(Start("name", str(folder / "study.log"), 0), 0)


def test_one_refused_worker_does_not_end_the_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine(tmp_path, 1)

    def launch(start: Start) -> Sequence[Ending | Exception]:
        return [elsewhere(tmp_path / "b"), engine.work(start, 0)]

    assert engine.run(launch).reason == "settled"
    assert "A worker ended with CheckError: search.storage = " in capsys.readouterr().err
