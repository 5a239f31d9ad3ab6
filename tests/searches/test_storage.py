"""A storage that is out of reach for a while is waited for; one that stays away is a one-line error."""

import contextlib
import logging
import re
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import psycopg
import pytest
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import TrialState
from postgresql import Server
from sqlalchemy.exc import OperationalError, ProgrammingError
from studies import Unreliable, join, made_up, served

from marble_sweep.searches.journal import JournalFile
from marble_sweep.searches.proxy import Proxy
from marble_sweep.searches.storage import PatientStorage, StorageError, open_storage
from marble_sweep.searches.study import PLAN, HeartbeatMonitor, records

PATIENCE = 30.0  # seconds; no test waits so long
AWAY = OSError(5, "Input/output error")


def from_database(error: Exception) -> StorageInternalError:
    """As Optuna wraps what a database raises."""
    wrapped = StorageInternalError("An exception is raised during the commit.")
    wrapped.__cause__ = error
    return wrapped


LOCKED = from_database(OperationalError("SELECT 1", {}, sqlite3.OperationalError("database is locked")))
NO_COLUMN = from_database(ProgrammingError("SELECT a", {}, Exception("column a does not exist\nLINE 1")))


@pytest.fixture
def within() -> Unreliable:
    return Unreliable()


@pytest.fixture
def storage(within: Unreliable) -> PatientStorage:
    return PatientStorage(within, "there", PATIENCE)


@pytest.mark.parametrize("error", [AWAY, LOCKED], ids=["file", "database"])
def test_a_transient_error_is_waited_for(
    error: Exception, storage: PatientStorage, within: Unreliable, caplog: pytest.LogCaptureFixture
) -> None:
    study = optuna.create_study(storage=storage)
    within.failures = {"set_trial_state_values": [error] * 3}
    with caplog.at_level(logging.WARNING):
        trial = study.ask()
        study.tell(trial, 1.0)
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE]
    away, back = [record.getMessage() for record in caplog.records if record.name == "marble_sweep.searches.storage"]
    why = "[Errno 5] Input/output error" if error is AWAY else "database is locked"
    assert away == f"search.storage does not answer ({why}): waiting for it, up to 30 s; training goes on"
    assert re.fullmatch(r"search.storage answers again, after \d+ s", back)


def test_a_lasting_outage_is_one_line(within: Unreliable) -> None:
    storage = PatientStorage(within, "there", 0.3)
    within.failures = {"get_all_studies": [AWAY] * 1000}
    line = r"^search.storage = there: must answer within search.storage_patience = 0.3 seconds: \[Errno 5\] "
    with pytest.raises(StorageError, match=line) as raised:
        storage.get_all_studies()
    assert "\n" not in str(raised.value)
    within.failures = {}
    assert storage.get_all_studies() == []  # it is asked again all the same


@pytest.mark.slow
def test_a_worker_that_is_about_to_end_waits_no_longer(storage: PatientStorage, within: Unreliable) -> None:
    storage.patience = 10_000.0
    within.failures = {"get_all_studies": [AWAY] * 1000}
    timer = threading.Timer(0.2, storage.hurry)
    timer.start()
    with pytest.raises(StorageError):
        storage.get_all_studies()
    timer.join()


def test_a_lasting_error_is_not_waited_for(storage: PatientStorage, within: Unreliable) -> None:
    within.failures = {"get_all_studies": [NO_COLUMN]}
    with pytest.raises(StorageError, match=r"^search.storage = there: must be in order: column a does not exist$"):
        storage.get_all_studies()


@pytest.mark.parametrize("error", [KeyError("no such trial"), UpdateFinishedTrialError("too late"), ValueError("odd")])
def test_a_wrong_call_is_answered_at_once(error: Exception, storage: PatientStorage, within: Unreliable) -> None:
    within.failures = {"get_all_studies": [error]}
    with pytest.raises(type(error)) as raised:
        storage.get_all_studies()
    assert raised.value is error


def test_a_lost_answer_changes_nothing(storage: PatientStorage, within: Unreliable) -> None:
    """Every change is made twice. Of a trial that is created twice, the first becomes stale."""
    shared = join(storage, timeout=0.3)
    within.answer_is_lost = True
    changes = [name for name in dir(BaseStorage) if name.startswith(("set_", "create_"))]
    within.failures = {name: [AWAY] for name in changes}
    asked = shared.ask()
    assert asked is not None
    trial, plan = asked
    assert [(trial.state, PLAN in trial.user_attrs) for trial in shared.study.get_trials()] == [
        (TrialState.FAIL, False),
        (TrialState.RUNNING, True),
    ]
    within.failures = {name: [AWAY] for name in changes}
    trial.report(-0.1, 40)
    shared.tell(trial, made_up("certified"), 100, None)
    assert not any(within.failures[name] for name in changes if name.startswith("set_trial_") and "param" not in name)
    (record,) = records(shared.study)
    assert (record.size, record.outcome, record.margins) == (plan.size, "certified", {40: 0.1})
    assert shared.study.get_trials()[1].value == 100


def test_no_trial_becomes_stale_while_the_storage_is_away(storage: PatientStorage, within: Unreliable) -> None:
    shared = join(storage, timeout=1.0)
    asked = shared.ask()
    assert asked is not None
    heartbeats = HeartbeatMonitor(1.0, storage)
    (trial,) = shared.study.get_trials()
    assert not heartbeats.is_stale(trial)
    heartbeats._seen[0] = (None, heartbeats._seen[0][1] - 100)  # as if it had been silent for so long
    assert heartbeats.is_stale(trial)
    within.failures = {"get_all_trials": [AWAY]}
    shared.study.get_trials()
    assert not heartbeats.is_stale(trial)
    storage.back_at -= 100
    assert heartbeats.is_stale(trial)


def test_a_locked_sqlite_is_waited_for(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db?timeout=0.01", PATIENCE)
    study = optuna.create_study(storage=storage)
    other = sqlite3.connect(tmp_path / "study.db", check_same_thread=False, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(0.5, other.rollback)
    timer.start()
    study.tell(study.ask(), 1.0)
    timer.join()
    assert storage.back_at > 0
    assert optuna.load_study(storage=storage, study_name=study.study_name).best_value == 1.0
    other.close()
    storage.close()


def test_a_journal_whose_folder_is_away_is_waited_for(tmp_path: Path) -> None:
    """As a network share that is mounted again."""
    folder, elsewhere = tmp_path / "share", tmp_path / "elsewhere"
    storage = open_storage(str(folder / "study.log"), PATIENCE)
    study = optuna.create_study(storage=storage)
    folder.rename(elsewhere)
    timer = threading.Timer(0.5, lambda: elsewhere.rename(folder))
    timer.start()
    study.tell(study.ask(), 1.0)
    timer.join()
    assert storage.back_at > 0
    assert [trial.value for trial in study.get_trials()] == [1.0]


def test_a_lock_that_fails_is_waited_for(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "study.log"), PATIENCE)
    study = optuna.create_study(storage=storage)
    lock = tmp_path / ".study.log.lock"
    lock.unlink()
    lock.mkdir()  # it cannot be opened
    timer = threading.Timer(0.5, lock.rmdir)
    timer.start()
    study.tell(study.ask(), 1.0)
    timer.join()
    assert storage.back_at > 0
    assert [trial.value for trial in study.get_trials()] == [1.0]


@pytest.mark.slow
class TestAsOptunaWantsIt(StorageTestCase):
    """Optuna's own suite for storages. 58 of its 59 tests pass, on a journal, on SQLite and on SQLite that is served.

    `test_pickle_storage` fails: a storage holds locks and, for a database, an open engine, and neither can be pickled.
    Nothing needs it: a worker is a process that opens the storage by its address. What is served loses the order of a
    trial's parameters on its way, which nothing needs either.
    """

    @pytest.mark.parametrize("param_names", [["a", "b"], ["b", "a"]])
    def test_get_all_trials_params_order(self, storage: Any, param_names: list[str]) -> None:
        if isinstance(storage._storage, Proxy):
            pytest.skip("the proxy sends parameters without an order")
        super().test_get_all_trials_params_order(storage, param_names)

    @pytest.mark.xfail(strict=True, raises=(TypeError, AttributeError), reason="locks and engines cannot be pickled")
    def test_pickle_storage(self, storage: BaseStorage) -> None:
        super().test_pickle_storage(storage)

    @pytest.fixture(params=["journal", "sqlite", "served"])
    def storage(self, request: pytest.FixtureRequest, tmp_path: Path) -> Any:
        address = tmp_path / "study.log" if request.param == "journal" else f"sqlite:///{tmp_path}/study.db"
        with contextlib.closing(open_storage(str(address))) as storage:
            if request.param != "served":
                yield storage
                return
            with served(storage) as there, contextlib.closing(open_storage(there)) as proxy:
                yield proxy


# ------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("nothing://there", "sqlalchemy.dialects:nothing"),
        ("sqlite:////proc/none/such.db", "unable to open database file"),
        ("sqlite://", "a database in memory ends with the process"),
        ("sqlite:///:memory:", "a database in memory ends with the process"),
        ("postgresql+psycopg://127.0.0.1:1/x", "Connection refused"),
        ("postgresql+psycopg://{nobody}/x", "nobody"),
        ("://", "URL"),
    ],
)
def test_an_impossible_storage_is_one_line(address: str, why: str) -> None:
    line = f"^{re.escape(f'search.storage = {address}')}: must be a journal file or the URL of .*{why}"
    with pytest.raises(ValueError, match=line) as raised:
        open_storage(address)
    assert "\n" not in str(raised.value)


def test_an_sqlite_url_of_another_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "thesis.txt"
    path.write_text("My thesis. " * 100)
    with pytest.raises(ValueError, match="file is not a database"):
        open_storage(f"sqlite:///{path}")
    assert path.read_text() == "My thesis. " * 100


def made_by_a_stranger(path: Path, *tables: str) -> bytes:
    """The content of a new SQLite database with these tables."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for table in tables:
            connection.execute(f"CREATE TABLE {table} (name TEXT)")
            connection.execute(f"INSERT INTO {table} VALUES ('mine')")
    return path.read_bytes()


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        (("orders", "customers"), "customers, orders"),
        (("studies", "trials"), "studies, trials"),  # of the same name, but not Optuna's
        (("a", "b", "c", "d", "e"), "a, b, c and 2 more"),
    ],
)
def test_the_database_of_another_program_is_left_as_it_is(tables: tuple[str, ...], named: str, tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    content = made_by_a_stranger(path, *tables)
    address = f"sqlite:///{path}"
    line = (
        f"search.storage = {address}: must be a journal file or the URL of a database that answers: "
        f"its tables are another program's ({named}), so it is neither empty nor Optuna's"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        open_storage(address)
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["shop.db"]


def test_an_empty_database_and_optunas_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    assert made_by_a_stranger(path) == b""
    address = f"sqlite:///{path}"
    with contextlib.closing(open_storage(address)) as storage:
        optuna.create_study(storage=storage, study_name="study")
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE beside (name TEXT)")  # Optuna's tables among those of another program
    with contextlib.closing(open_storage(address)) as storage:
        assert optuna.get_all_study_names(storage) == ["study"]


def test_a_database_that_optuna_alone_made_is_taken(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path}/study.db"
    theirs = optuna.storages.RDBStorage(address)
    optuna.create_study(storage=theirs, study_name="study")
    theirs.engine.dispose()
    with contextlib.closing(open_storage(address)) as storage:
        assert optuna.get_all_study_names(storage) == ["study"]


@pytest.fixture
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        yield server
        server.stop()


@pytest.mark.slow
def test_a_postgresql_database_of_another_program_is_left_as_it_is(server: Server) -> None:
    url = server.create("shop")
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE TABLE orders (name TEXT)")
        with pytest.raises(ValueError, match=r"its tables are another program's \(orders\)"):
            open_storage(url)
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert tables == [("orders",)]
    open_storage(server.create("empty")).close()


@pytest.mark.slow
def test_connections_that_a_restart_broke_are_replaced_without_an_error(server: Server) -> None:
    """Before they are used: a worker without any patience does not notice the restart."""
    with contextlib.closing(open_storage(server.create("study"), patience=0.0)) as storage:
        study = optuna.create_study(storage=storage)
        server.stop()
        server.start()
        study.tell(study.ask(), 1.0)
        assert storage.back_at == 0.0
        assert study.best_value == 1.0


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    storage: BaseStorage = open_storage("~/study.log")
    optuna.create_study(storage=storage, study_name="study")
    assert optuna.get_all_study_names(JournalStorage(JournalFile(tmp_path / "study.log"))) == ["study"]
