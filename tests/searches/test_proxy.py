"""A study that the process which starts the workers serves them: the same search, with waiting and in plain words."""

import contextlib
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
import pytest
from launched_threads import Engine, quick, summary, with_settings
from optuna.exceptions import StorageInternalError
from pretender import Pretender
from sqlalchemy.exc import ProgrammingError
from studies import Unreliable, free_address, served

from marble_sweep.checks import CheckError
from marble_sweep.search_config import SearchConfig
from marble_sweep.searches.launched import Start
from marble_sweep.searches.proxy import serving
from marble_sweep.searches.storage import PatientStorage, StorageError, open_storage
from marble_sweep.searches.worker import Ending

PATIENCE = 60.0  # seconds; no test waits so long


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[PatientStorage]:
    with contextlib.closing(open_storage(f"sqlite:///{tmp_path}/study.db")) as storage:
        yield storage


@pytest.mark.slow
def test_workers_of_a_served_search_give_the_answer_of_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick(monkeypatch)
    alone = Pretender(tmp_path / "alone", 1)
    assert alone.search.run(alone.train).reason == "settled"
    address = free_address()
    with_settings(monkeypatch, serve=address)
    engine, starts = Engine(tmp_path / "together", 2), []

    def launch(start: Start) -> Sequence[Ending | Exception]:
        starts.append(start)
        return engine.launch(start)

    assert engine.run(launch) == Ending("settled", None, [])
    assert starts[0].address == f"grpc://{address}"
    expected, together = summary(tmp_path / "alone"), summary(tmp_path / "together")
    for key in ("size", "params", "confirming_seeds", "margin"):
        assert together["answer"][key] == expected["answer"][key]
    assert [path.name for path in (tmp_path / "together").glob("study.*")] == ["study.db"]
    line = f"The study is served at {address}: whoever reaches that port can change it\n"
    assert line in capsys.readouterr().err
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(split(address))


def split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def test_a_server_that_is_started_again_is_waited_for(storage: PatientStorage) -> None:
    address = free_address()
    with serving(storage, address):
        proxy = open_storage(f"grpc://{address}", PATIENCE)
        study = optuna.create_study(storage=proxy, study_name="study")
    done = threading.Event()

    def serve_again() -> None:
        time.sleep(0.5)
        with serving(storage, address):
            done.wait(PATIENCE)

    thread = threading.Thread(target=serve_again)
    thread.start()
    study.tell(study.ask(), 1.0)
    assert proxy.back_at > 0
    done.set()
    thread.join()
    assert [trial.value for trial in optuna.load_study(storage=storage, study_name="study").get_trials()] == [1.0]
    proxy.patience = 0.0
    line = f"^search.storage = grpc://{address}: must answer within search.storage_patience = 0 seconds: .*refused"
    with pytest.raises(StorageError, match=line):
        study.get_trials()
    proxy.close()


def test_what_is_wrong_with_the_served_database_reaches_the_worker_in_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    within = Unreliable()
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = ProgrammingError("SELECT a", {}, Exception("column a does not exist"))
    with served(PatientStorage(within, "there", 0.0)) as address, contextlib.closing(open_storage(address)) as proxy:
        within.failures = {"get_all_studies": [error]}
        line = f"^search.storage = {address}: must be in order: .* search.storage = there: .*column a does not exist$"
        with pytest.raises(StorageError, match=line):
            proxy.get_all_studies()
        assert proxy.get_all_studies() == []
    assert not caplog.records


@pytest.mark.parametrize(
    ("host", "why"),
    [("127.0.0.1", "Address already in use"), ("192.0.2.1", "Cannot assign requested address"), ("no.invalid", "")],
)
def test_an_address_that_cannot_be_served_is_one_line(host: str, why: str, storage: PatientStorage) -> None:
    with served(storage) as used:
        address = f"{host}:{split(used)[1]}"
        line = f"^search.serve = {address}: must be a free address of this machine: {why}"
        with pytest.raises(CheckError, match=line) as raised, serving(storage, address):
            pass
    assert "\n" not in str(raised.value)


def test_an_address_where_no_study_is_served_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"grpc://{free_address()}"
    with pytest.raises(CheckError, match=f"^search.storage = {address}: must be .*Connection refused$"):
        open_storage(address)
    with pytest.raises(CheckError, match=r"^search.storage = grpc://no.invalid:1: must be .*: \[Errno -?\d+\] "):
        open_storage("grpc://no.invalid:1")
    monkeypatch.setattr("marble_sweep.searches.proxy.CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"grpc://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(CheckError, match=f"^search.storage = {address}: must be .*: no study is served there"):
            open_storage(address)


@pytest.mark.parametrize(
    "address",
    ["", "13000", "host", "host:", ":13000", "host:0", "host:65536", "a b:1", "me@host:1", "0.0.0.0:1", "[::]:1"],
)
def test_what_is_no_address_to_serve_at_is_refused(address: str) -> None:
    line = f"^search.serve = {re.escape(address)}: must be null or HOST:PORT, where workers reach this machine, with "
    with pytest.raises(CheckError, match=line):
        SearchConfig(serve=address)


def test_a_journal_cannot_be_served() -> None:
    SearchConfig(serve="[::1]:13000", storage="sqlite:///study.db")
    with pytest.raises(CheckError, match=r"^search.storage = study.log: must be null or a database with search.serve"):
        SearchConfig(serve="node1:13000", storage="study.log")


def test_without_grpcio_a_line_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    install = re.escape("must be null without grpcio: pip install 'marble_sweep[grpc]'")
    with pytest.raises(CheckError, match=f"^search.storage = grpc://host:1: {install}$"):
        open_storage("grpc://host:1")
    with_settings(monkeypatch, serve="127.0.0.1:1")
    with pytest.raises(CheckError, match=f"^search.serve = 127.0.0.1:1: {install}$"):
        Engine(tmp_path, 1).run()
    assert not list(tmp_path.iterdir())
