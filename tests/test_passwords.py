"""A database's password is refused in an override, and masked wherever text is printed."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import TINY, tiny_config
from postgresql import Server

from marble_sweep.hydra_app import main as cli
from marble_sweep.hydra_app.compose import PACKAGE
from marble_sweep.passwords import has_password, mask, refuse_passwords
from marble_sweep.searches.storage import open_storage

SECRET = "s3cr3t"
PASSWORDS = [
    SECRET,
    f"{SECRET}@x",
    f"a/{SECRET}",
    f"a:{SECRET}",
    f"{SECRET} b",
    f"{SECRET}%40",
    f"{SECRET}(=,[",
    f"ü{SECRET}",
]


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize(
    "address",
    [
        "postgresql+psycopg://me:{}@host/study",
        "postgresql://me:{}@host:5432/study?sslmode=require",
        "mysql+pymysql://me:{}@[::1]/study",
        "postgresql://:{}@/study",
        "postgresql:/me:{}@host/study",
        "postgresql:me:{}@host/study",
    ],
)
def test_a_password_in_an_address_is_masked(address: str, password: str) -> None:
    assert has_password(address.format(password))
    assert SECRET not in mask(f"could not open '{address.format(password)}'")
    assert mask(address.format(password)) == address.format("***")


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://host/study?user=me&password={SECRET}",
        f"postgresql://host/study?user=me&password={SECRET}&sslmode=require",
        f"postgresql://host/study?sslpassword={SECRET}",
        f"host=there user=me password={SECRET}",
        f"host=there password = '{SECRET} and more'",
        f"mssql+pyodbc:///?odbc_connect=DRIVER;UID=me;PWD={SECRET};",
        f"mssql+pyodbc:///?odbc_connect=DRIVER%3BUID%3Dme%3BPWD%3D{SECRET}",
    ],
)
def test_a_password_in_a_field_is_masked(text: str) -> None:
    assert has_password(text)
    assert SECRET not in mask(text)


@pytest.mark.parametrize(
    "address",
    [
        "study.log",
        "/scratch/me@home/study.log",
        "/scratch/12:30:00@x/study.log",
        "sqlite:///study.db",
        "postgresql+psycopg://me@host:5432/study",
        "postgresql+psycopg://host/study?passfile=/home/me/.pgpass",
        "postgresql+psycopg://me@[::1]:5432/study",
    ],
)
def test_what_is_no_password_stays(address: str) -> None:
    assert mask(address) == address
    refuse_passwords([f"search.storage={address}"])


URL = f"postgresql+psycopg://me:{SECRET}@127.0.0.1:1/study"
OVERRIDES = [
    f"search.storage={URL}",
    f"+search.storage={URL}",
    f"++search.storage={URL}",
    f'search.storage="{URL}"',
    f"search.storage=postgresql+psycopg\\://me\\:{SECRET}@127.0.0.1/study",
    f"search={{storage:{URL}}}",
    f"++search={{n_trials:1,'storage':'{URL}'}}",
    f"search.storage=study.log,{URL}",
    f"hydra.sweeper.storage={URL}",
    f"search.storage=postgresql+psycopg://127.0.0.1:1/study?password={SECRET}",
    f"search.storage=postgresql://me:({SECRET}@host/study",  # which Hydra's grammar would repeat
]


@pytest.mark.parametrize("override", OVERRIDES)
@pytest.mark.parametrize("others", [["--multirun", "hydra/sweeper=smallest"], ["--cfg", "job"], []])
def test_an_override_with_a_password_is_refused(
    override: str, others: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["marble_sweep", *others, override])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # `main` sets it
    with pytest.raises(SystemExit) as raised:
        cli.main()
    assert raised.value.code == 2
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err
    assert printed.err.count("\n") == 1
    assert printed.err.startswith(f"marble_sweep: {override.lstrip('+').partition('=')[0]} = ")
    assert (
        "must be without a password: PostgreSQL's is read from the variable PGPASSWORD, from ~/.pgpass" in printed.err
    )


def test_a_config_with_a_password_is_refused() -> None:
    """As one that has it from a file or from the environment."""
    for build in (lambda: tiny_config(f"search.storage='{URL}'"), lambda: open_storage(URL)):
        with pytest.raises(
            ValueError, match=r"^search.storage = .*//me:\*\*\*@127.*: must be without a password"
        ) as raised:
            build()
        assert SECRET not in str(raised.value)


# --------------------------------------------------------------------- whole processes


SEARCH = (
    "--multirun",
    "hydra/sweeper=smallest",
    *TINY,
    "model.num_layers=0",
    "model.hidden_dim=2",
    "search.n_trials=1",
    "++search.study=secret",
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), SECRET)
        yield server
        server.stop()


def search(folder: Path, url: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a search in an empty folder, and look for the password in all that it prints and writes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    result = subprocess.run(
        [sys.executable, "-m", "marble_sweep", *SEARCH, f"++search.storage={url}", *words, "hydra.sweep.dir=search"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=kept | {"PYTHONPATH": str(PACKAGE.parent), "HOME": str(folder)} | environment,
    )
    assert SECRET not in result.stdout + result.stderr
    for path in folder.rglob("*"):
        if path.is_file() and path.name != ".pgpass":
            assert SECRET.encode() not in path.read_bytes(), path
    return result


@pytest.mark.slow
@pytest.mark.parametrize("place", ["variable", "~/.pgpass", "PGPASSFILE"])
def test_the_password_comes_from_elsewhere(place: str, server: Server, tmp_path: Path) -> None:
    url = server.create(f"from_{abs(hash(place))}")
    environment = {}
    if place == "variable":
        environment["PGPASSWORD"] = SECRET
    else:
        passwords = tmp_path / ("sub" if place == "PGPASSFILE" else "") / ".pgpass"
        passwords.parent.mkdir(exist_ok=True)
        passwords.write_text(f"127.0.0.1:*:*:postgres:{SECRET}\n")
        passwords.chmod(0o600)
        if place == "PGPASSFILE":
            environment["PGPASSFILE"] = str(passwords)
    result = search(tmp_path, url, **environment)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "search" / "search.json").exists()
    # Nor does the study hold it.
    dump = [
        str(server.programs / "pg_dump"),
        "-h",
        "127.0.0.1",
        "-p",
        str(server.port),
        "-U",
        "postgres",
        url.rpartition("/")[2],
    ]
    study = subprocess.run(dump, env={"PGPASSWORD": SECRET}, capture_output=True, text=True, check=True).stdout
    assert "n_trials" in study or "threshold" in study
    assert SECRET not in study


@pytest.mark.slow
def test_failures_do_not_show_the_password(server: Server, tmp_path: Path) -> None:
    url = server.create("failures")
    wrong = search(tmp_path, url, PGPASSWORD=f"not-{SECRET}")
    none = search(tmp_path, url)
    away = search(tmp_path, "postgresql+psycopg://postgres@127.0.0.1:1/failures", PGPASSWORD=SECRET)
    given = search(tmp_path, f"postgresql+psycopg://postgres:{SECRET}@127.0.0.1:{server.port}/failures")
    for result, why in (
        (wrong, "password authentication failed"),
        (none, "no password supplied"),
        (away, "Connection refused"),
        (given, "must be without a password"),
    ):
        assert result.returncode == 2
        assert result.stderr.startswith("marble_sweep: search.storage = postgresql+psycopg://postgres")
        assert why in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("shown", [("--cfg", "job"), ("--cfg", "job", "--resolve"), ("--info", "config"), ()])
def test_a_config_file_with_a_password(shown: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "database").mkdir()
    (tmp_path / "database" / "mine.yaml").write_text(f"# @package _global_\nsearch:\n  storage: {URL}\n")
    words = ["--config-dir", str(tmp_path), "+database=mine", *TINY, f"hydra.run.dir={tmp_path}/run", *shown]
    result = subprocess.run([sys.executable, "-m", "marble_sweep", *words], capture_output=True, text=True, check=False)
    assert SECRET not in result.stdout + result.stderr
    assert "postgresql+psycopg://me:***@127.0.0.1:1/study" in result.stdout + result.stderr
    assert result.returncode == (0 if shown else 2)
