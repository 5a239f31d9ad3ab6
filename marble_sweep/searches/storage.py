"""The storage of a study: a journal file, a database or what another process serves. It may be away for a while.

A call that fails because the storage is out of reach is made again. Where only its answer was lost it is carried out
twice. That changes nothing: attributes, parameters and intermediate values are set to the same values, an existing
study is joined, an ended trial stays as it ended. Only a trial may be created twice: the first one never gets a plan,
and is ended as stale.
"""

import logging
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage

from marble_sweep.checks import CheckError, require, wrong_value
from marble_sweep.humanize import duration
from marble_sweep.passwords import WITHOUT_PASSWORD, has_password, mask
from marble_sweep.searches.journal import JournalError, JournalFile

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

CREATE_TRIES = 5  # to open a database in which other workers may be creating the tables
FIRST_PAUSE, MAX_PAUSE = 0.1, 2.0  # seconds between two tries to reach a storage; it doubles after every try
LAST_PATIENCE = 2.0  # seconds, for a worker that is about to end
CONNECT_SECONDS = 10
READ_ONLY = "25006"  # PostgreSQL's code during a failover to another server
AWAY = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")  # gRPC's codes where a server is away or is stopping
SERVED = "grpc://"  # begins the address of a study that another process serves (proxy.py)
ALLOWED = "a journal file or the URL of a database that answers"
INSTALL_GRPC = "pip install 'marble_sweep[grpc]'"
MAX_TABLES_NAMED = 3  # of another program's database

log = logging.getLogger(__name__)


class StorageError(CheckError):
    """The storage stayed out of reach, or something in it is damaged."""


def _patient(name: str) -> Any:
    """The wrapped storage's method of that name, with waiting."""

    def method(self: "PatientStorage", *args: Any, **kwargs: Any) -> Any:
        return self.call(getattr(self._storage, name), *args, **kwargs)

    return method


class PatientStorage(BaseStorage):
    """Wraps a storage and waits while it is out of reach. Threads may share it."""

    def __init__(
        self, storage: BaseStorage, address: str, patience: float, disconnect: Callable[[], object] = lambda: None
    ) -> None:
        """Every call waits up to `patience` seconds, then raises StorageError. `disconnect` closes its connections."""
        self.name = f"search.storage = {address}"
        self.patience = patience
        self.back_at = 0.0  # when it last answered after an outage, by time.monotonic
        self._storage = storage
        self._disconnect = disconnect
        self._away_since: float | None = None
        self._lock = threading.Lock()

    def hurry(self) -> None:
        """Wait for LAST_PATIENCE seconds at most from now on: this worker is about to end."""
        self.patience = min(self.patience, LAST_PATIENCE)

    def close(self) -> None:
        """Close the connections to a database or server."""
        self._disconnect()

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What a function returns that asks the storage, or another service of its server. Waits for that."""
        began, pause = time.monotonic(), FIRST_PAUSE
        while True:
            try:
                answer = function(*args, **kwargs)
            except Exception as error:
                if not is_of_storage(error):
                    raise
                if not is_transient(error):
                    raise StorageError(f"{self.name}: must be in order: {reason(error)}") from error
                if time.monotonic() - began >= self.patience:
                    waited = f"within search.storage_patience = {self.patience:g} seconds"
                    kept = "finished runs stay in their directories, and the same command continues from them"
                    raise StorageError(f"{self.name}: must answer {waited}: {reason(error)}; {kept}") from error
                self._is_away(began, error)
            else:
                self._is_back()
                return answer
            time.sleep(min(pause, self.patience) * random.uniform(0.5, 1.0))
            pause = min(2 * pause, MAX_PAUSE)

    def _is_away(self, since: float, error: Exception) -> None:
        with self._lock:
            if self._away_since is None:
                self._away_since = since
                limit = f"waiting for it, up to {duration(self.patience)}; training goes on"
                log.warning("search.storage does not answer (%s): %s", reason(error), limit)

    def _is_back(self) -> None:
        with self._lock:
            if self._away_since is not None:
                self.back_at = time.monotonic()
                log.warning("search.storage answers again, after %s", duration(self.back_at - self._away_since))
                self._away_since = None

    create_new_study = _patient("create_new_study")
    delete_study = _patient("delete_study")
    set_study_user_attr = _patient("set_study_user_attr")
    set_study_system_attr = _patient("set_study_system_attr")
    get_study_id_from_name = _patient("get_study_id_from_name")
    get_study_name_from_id = _patient("get_study_name_from_id")
    get_study_directions = _patient("get_study_directions")
    get_study_user_attrs = _patient("get_study_user_attrs")
    get_study_system_attrs = _patient("get_study_system_attrs")
    get_all_studies = _patient("get_all_studies")
    create_new_trial = _patient("create_new_trial")
    set_trial_param = _patient("set_trial_param")
    get_trial_id_from_study_id_trial_number = _patient("get_trial_id_from_study_id_trial_number")
    get_trial_number_from_id = _patient("get_trial_number_from_id")
    get_trial_param = _patient("get_trial_param")
    set_trial_state_values = _patient("set_trial_state_values")
    set_trial_intermediate_value = _patient("set_trial_intermediate_value")
    set_trial_user_attr = _patient("set_trial_user_attr")
    set_trial_system_attr = _patient("set_trial_system_attr")
    get_trial = _patient("get_trial")
    get_all_trials = _patient("get_all_trials")
    get_n_trials = _patient("get_n_trials")
    get_best_trial = _patient("get_best_trial")
    get_trial_params = _patient("get_trial_params")
    get_trial_user_attrs = _patient("get_trial_user_attrs")
    get_trial_system_attrs = _patient("get_trial_system_attrs")
    remove_session = _patient("remove_session")
    check_trial_is_updatable = _patient("check_trial_is_updatable")


# -------------------------------------------------------------------------- errors


def is_of_storage(error: Exception) -> bool:
    """Whether an error comes from the file or the database, not from what was asked of it."""
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, OSError | JournalError | StorageInternalError | SQLAlchemyError) or bool(grpc_error(error))


def grpc_error(error: BaseException) -> Any:
    """The error, where it is one of gRPC's, which need not be installed; else None."""
    grpc: Any = sys.modules.get("grpc")
    return error if grpc is not None and isinstance(error, grpc.RpcError) else None


def is_transient(error: BaseException | None) -> bool:
    """Whether the storage may come back: a file system or server that is away, a lock, a lost connection."""
    from sqlalchemy import exc

    if error is None:
        return False
    if (failure := grpc_error(error)) is not None:
        return failure.code().name in AWAY
    if isinstance(error, OSError | exc.OperationalError | exc.InterfaceError | exc.TimeoutError):
        return True
    if isinstance(error, exc.PendingRollbackError):  # the connection was lost in the midst of a transaction
        return True
    if isinstance(error, exc.DBAPIError):
        return error.connection_invalidated or getattr(error.orig, "sqlstate", None) == READ_ONLY
    return is_transient(error.__cause__)


def reason(error: BaseException) -> str:
    """What went wrong in one line: the storage's message without the SQL statement and without passwords."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    failure = grpc_error(error)
    text = getattr(error, "orig", None) or error if failure is None else failure.details()
    lines = str(text).strip().splitlines()
    return mask(lines[0]) if lines else type(error).__name__


# ------------------------------------------------------------------------- opening


def open_storage(address: str, patience: float = 0.0) -> PatientStorage:
    """A database or served study where the address is a URL, else a journal file.

    Every call waits up to `patience` seconds for it. Raises ValueError where it cannot be opened, or where the address
    holds a password.
    """
    require(not has_password(address), "search.storage", mask(address), WITHOUT_PASSWORD)
    if address.startswith(SERVED):
        require_grpc("search.storage", address)
    try:
        if address.startswith(SERVED):
            from marble_sweep.searches.proxy import Proxy

            proxy = Proxy(address.removeprefix(SERVED))
            return PatientStorage(proxy, address, patience, proxy.close)
        if "://" in address:
            database = _open_database(address)
            return PatientStorage(get_storage(database), address, patience, database.engine.dispose)
        return PatientStorage(_open_journal(address), address, patience)
    except Exception as error:  # whatever the file system or the database's driver raises
        raise wrong_value("search.storage", address, f"{ALLOWED}: {reason(error)}") from None


def require_grpc(setting: str, address: str) -> None:
    """Raise CheckError where the packages are missing that serve a study, and that reach a served one."""
    try:
        import google.protobuf  # noqa: F401
        import grpc  # noqa: F401
    except ImportError:
        raise wrong_value(setting, address, f"null without grpcio: {INSTALL_GRPC}") from None


def _open_journal(address: str) -> BaseStorage:
    path = Path(address).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFile(path))


def _open_database(address: str) -> RDBStorage:
    from sqlalchemy import make_url
    from sqlalchemy.exc import DBAPIError

    url = make_url(address)
    options: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:") or "memory" in url.query.values():
            raise CheckError("a database in memory ends with the process")
    else:
        options["pool_pre_ping"] = True  # replaces connections that a restarted server has forgotten
    if url.get_driver_name() in ("psycopg", "psycopg2"):
        # Without these a connection to a server that vanished would wait without end.
        known = {"connect_timeout": CONNECT_SECONDS, "keepalives_idle": CONNECT_SECONDS, "tcp_user_timeout": 30_000}
        options["connect_args"] = {name: value for name, value in known.items() if name not in url.query}
    # Optuna logs a lost connection itself, in several lines.
    logging.getLogger("optuna.storages._rdb.storage").setLevel(logging.ERROR)
    for tries_left in reversed(range(CREATE_TRIES)):
        try:
            _require_optuna_tables(url, options)
            return RDBStorage(address, engine_kwargs=options)
        except (DBAPIError, StorageInternalError):
            if not tries_left:
                raise
        time.sleep(random.random())  # two workers that create the tables at once must not collide again
    raise AssertionError("the last try returns or raises")


def _require_optuna_tables(url: "URL", options: dict[str, Any]) -> None:
    """Refuse the database of another program: Optuna would add its tables. An empty one is fine.

    Another worker may just be creating the tables, of which Optuna creates `studies` first.
    """
    from sqlalchemy import create_engine, inspect

    engine = create_engine(url, **options)
    try:
        tables = inspect(engine).get_table_names()
        columns = inspect(engine).get_columns("studies") if "studies" in tables else []
    finally:
        engine.dispose()
    if tables and "study_id" not in [column["name"] for column in columns]:
        named = ", ".join(sorted(tables)[:MAX_TABLES_NAMED])
        more = f" and {len(tables) - MAX_TABLES_NAMED} more" if len(tables) > MAX_TABLES_NAMED else ""
        raise CheckError(f"its tables are another program's ({named}{more}), so it is neither empty nor Optuna's")
