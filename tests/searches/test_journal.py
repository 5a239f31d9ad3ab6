"""The journal: whatever a killed writer leaves of its last line, the study goes on and nothing is lost.

Damage elsewhere in the file and other files are in test_damaged_journal.py.
"""

import contextlib
import errno
import io
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from marble_sweep.searches import journal as module
from marble_sweep.searches.journal import JournalFile, RepairingFileLock
from marble_sweep.searches.storage import open_storage

NAME = "study"
TRIALS = 3


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A real one: trials that are asked for, report and end; the last one still runs."""
    path = tmp_path_factory.mktemp("journal") / "study.log"
    study = optuna.create_study(storage=open_storage(str(path)), study_name=NAME)
    for number in range(TRIALS):
        trial = study.ask()
        trial.suggest_float("lr", 1e-3, 1, log=True)
        trial.set_user_attr("plan", {"size": number, "recipe": [1.0], "reason": "ünter\n"})
        trial.report(0.5, 10)
        if number < TRIALS - 1:
            study.tell(trial, float(number))
    return path.read_bytes()


def load(backend: JournalFileBackend) -> optuna.Study:
    return optuna.load_study(storage=JournalStorage(backend), study_name=NAME)


def goes_on(whole: bytes, cut: int, path: Path, backend: Callable[[Path], JournalFileBackend]) -> None:
    """Cut a journal: an earlier reader, a writer and a later reader all see the same whole study."""
    kept = whole[:cut].rfind(b"\n") + 1
    path.write_bytes(whole[:kept])
    reader = load(backend(path))
    reader.get_trials()
    path.write_bytes(whole[:cut])  # now there is half a line that the open reader has not seen
    trials = reader.get_trials()
    assert [trial.number for trial in load(backend(path)).get_trials()] == [trial.number for trial in trials]
    writer = load(backend(path))
    first, second = writer.ask(), writer.ask()
    first.set_user_attr("mark", cut)
    for study in (reader, writer, load(backend(path))):
        now = study.get_trials()
        assert now[: len(trials)] == trials
        assert [trial.number for trial in now[len(trials) :]] == [first.number, second.number]
        assert now[first.number].user_attrs == {"mark": cut}
    assert path.read_bytes().startswith(whole[:kept])


def last_records(whole: bytes, records: int) -> list[int]:
    """Every cut that tears one of the last records. A record that lacks only its line's end is whole."""
    start = len(whole)
    for _ in range(records + 1):
        start = whole.rfind(b"\n", 0, start)
    return [place for place in range(start + 2, len(whole)) if whole[place : place + 1] != b"\n"]


@pytest.fixture
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests do not depend on when bytes reach the disk, and are quicker without waiting for it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.usefixtures("_no_sync")
def test_torn_ends_are_repaired(journal: bytes, tmp_path: Path) -> None:
    cuts = last_records(journal, 3)[::3]
    assert len(cuts) > 100
    for cut in cuts:
        goes_on(journal, cut, tmp_path / "study.log", JournalFile)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_garbage_at_the_end_is_repaired(
    journal: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """As a power cut leaves it: a block of zeros, or of what was on the disk before."""
    path = tmp_path_factory.mktemp("garbage") / "study.log"
    tail = data.draw(st.one_of(st.binary(min_size=1), st.integers(1, 5000).map(bytes)).filter(lambda t: b"\n" not in t))
    path.write_bytes(journal + tail)
    writer = load(JournalFile(path))
    assert writer.ask().number == TRIALS
    assert path.read_bytes().startswith(journal + b"{")
    assert len(load(JournalFile(path)).get_trials()) == TRIALS + 1


@pytest.mark.usefixtures("_no_sync")
def test_optunas_own_backend_does_not_repair(journal: bytes, tmp_path: Path) -> None:
    """When this fails, JournalFile is no longer needed."""
    survived = []
    for cut in last_records(journal, 1):
        with contextlib.suppress(AttributeError, ValueError):  # the new record is lost, or the study unreadable
            goes_on(journal, cut, tmp_path / "study.log", lambda path: JournalFileBackend(str(path)))
            survived.append(cut)
    assert survived == []


def test_two_writers_share_a_file(tmp_path: Path) -> None:
    """Threads with a storage each, as processes have: no record is lost or torn."""
    path = str(tmp_path / "study.log")
    optuna.create_study(storage=open_storage(path), study_name=NAME)

    def work() -> None:
        study = optuna.load_study(storage=open_storage(path), study_name=NAME)
        for _ in range(15):
            study.tell(study.ask(), 1.0)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trials = load(JournalFile(Path(path))).get_trials()
    assert [trial.number for trial in trials] == list(range(45))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}


def test_half_lines_between_writers(tmp_path: Path) -> None:
    """A thread leaves half lines while others write. They merge with a record, are removed, or stay as lines."""
    path = tmp_path / "study.log"
    optuna.create_study(storage=open_storage(str(path)), study_name=NAME)
    done = threading.Event()

    def write_half_lines() -> None:
        while not done.wait(0.01):
            with path.open("ab") as file:
                file.write(b'{"op_code":8,"worker_id":"x","trial_id":0,"user_attr":{"plan":"')

    def work() -> None:
        study = optuna.load_study(storage=open_storage(str(path)), study_name=NAME)
        for _ in range(10):
            study.tell(study.ask(), 1.0)

    vandal = threading.Thread(target=write_half_lines)
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in [vandal, *threads]:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    vandal.join()
    trials = load(JournalFile(path)).get_trials()
    assert [trial.number for trial in trials] == list(range(20))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}


class Racing(io.RawIOBase):
    """The bytes of a journal. Behind the first that are read, a worker puts a record in the place of half a line."""

    def __init__(self, path: Path, whole: int, record: bytes) -> None:
        self.file = io.FileIO(path)
        self.whole, self.record = whole, record

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self.file.seek(offset, whence)

    def readinto(self, buffer: Any, /) -> int:
        count = self.file.readinto(buffer) or 0
        if count:
            with open(self.file.name, "rb+", buffering=0) as other:
                other.truncate(self.whole)
                other.seek(self.whole)
                other.write(self.record)
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


def test_a_reader_never_mixes_half_a_line_with_the_record_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (json.dumps({"op_code": 10, "worker_id": name}).encode() + b"\n" for name in ("first", "second"))
    path = tmp_path / "study.log"
    path.write_bytes(first)
    reader = JournalFile(path)
    assert [record["worker_id"] for record in reader.read_logs(0)] == ["first"]
    path.write_bytes(first + b'{"op_code":10,"wo')  # and that worker was killed

    def racing(self: Path, mode: str = "r", buffering: int = -1) -> io.RawIOBase | io.BufferedReader:
        raw = Racing(self, len(first), second)
        return raw if buffering == 0 else io.BufferedReader(raw)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", racing)
        seen = list(reader.read_logs(1))
    assert path.read_bytes() == first + second
    seen += reader.read_logs(1 + len(seen))
    assert [record["worker_id"] for record in seen] == ["second"]


def refuse(descriptor: int, operation: int) -> None:
    raise OSError(errno.ENOSYS, "not implemented")


@pytest.mark.filterwarnings("ignore:flock not supported")
@pytest.mark.parametrize("has_flock", [True, False])
@pytest.mark.parametrize("on_disk", [True, False])
def test_one_writer_waits_for_the_other(
    on_disk: bool, has_flock: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "is_on_disk", lambda _: on_disk)
    if not has_flock:
        monkeypatch.setattr("fcntl.flock", refuse)
    first, second = (JournalFile(tmp_path / "study.log")._lock for _ in range(2))
    order = []

    def wait() -> None:
        second.acquire()
        order.append("second")
        second.release()

    first.acquire()
    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join(timeout=0.2)
    order.append("first")
    first.release()
    waiting.join()
    assert order == ["first", "second"]


def test_a_lock_is_released_although_a_forked_process_has_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "is_on_disk", lambda _: True)
    first, second = (JournalFile(tmp_path / "study.log")._lock for _ in range(2))
    first.acquire()
    assert isinstance(first, RepairingFileLock)
    assert first._descriptor is not None
    copy = os.dup(first._descriptor)  # as the other process has it
    first.release()
    waiting = threading.Thread(target=second.acquire, daemon=True)
    waiting.start()
    waiting.join(timeout=20)
    was_free = not waiting.is_alive()
    os.close(copy)
    waiting.join()
    second.release()
    assert was_free


@pytest.mark.skipif(sys.platform != "linux", reason="Linux numbers devices so")
def test_what_has_no_block_device_is_not_on_a_disk() -> None:
    with Path("/proc/self/status").open() as file:
        assert not module.is_on_disk(file.fileno())


def hold_for_ever(path: Path) -> None:
    JournalFile(path)._lock.acquire()
    path.with_name("held").touch()
    time.sleep(600)


@pytest.mark.parametrize("relative", [False, True])
def test_a_writer_killed_with_the_lock_blocks_no_other(
    relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    path = Path("folder/study.log") if relative else tmp_path / "folder" / "study.log"
    study = optuna.create_study(storage=open_storage(str(path)), study_name=NAME)
    process = multiprocessing.get_context("spawn").Process(target=hold_for_ever, args=(path,))
    process.start()
    while not path.with_name("held").exists():
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    # Waited for no longer than it takes to tell: Optuna's own locks wait for half a minute, or for ever.
    asking = threading.Thread(target=study.ask, daemon=True)
    asking.start()
    asking.join(timeout=25)
    assert not asking.is_alive()
