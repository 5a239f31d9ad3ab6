"""A PostgreSQL server of the tests' own, that may be stopped and started again."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psycopg
import pytest


def programs() -> Path:
    """Where the newest initdb and postgres are. Skips the test where there are none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        message = "needs PostgreSQL (Debian: apt-get install postgresql)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found[-1].parent if found else Path(str(on_path)).resolve().parent


class Server:
    """A server below `folder`, which must outlive it; it lets everybody in, or asks for a password."""

    def __init__(self, folder: Path, password: str | None = None) -> None:
        self.programs = programs()
        self.folder = folder
        self.password = password
        # It refuses to run as root, and the user it then runs as may not look into pytest's directories.
        self.user = "postgres" if os.geteuid() == 0 else getpass.getuser()
        given = folder / "password"
        given.write_text(password or "none")
        if os.geteuid() == 0:
            shutil.chown(folder, self.user, self.user)
            shutil.chown(given, self.user, self.user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        method = "trust" if password is None else "scram-sha-256"
        options = ["-U", "postgres", f"--auth={method}", f"--pwfile={given}", "--no-sync"]
        initdb = [str(self.programs / "initdb"), "-D", str(folder / "data"), *options]
        subprocess.run(initdb, check=True, user=self.user, cwd=folder, stdout=subprocess.DEVNULL)
        self.start()

    def start(self) -> None:
        options = [f"-p{self.port}", "-clisten_addresses=127.0.0.1", f"-cunix_socket_directories={self.folder}"]
        command = [str(self.programs / "postgres"), "-D", str(self.folder / "data"), *options]
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, user=self.user, cwd=self.folder, stderr=log)
        ready = [str(self.programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while self.process.poll() is None and subprocess.run(ready, check=False).returncode:
            time.sleep(0.1)
        assert self.process.poll() is None, (self.folder / "log").read_text()

    def stop(self) -> None:
        """At once: whoever is connected is cut off."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)

    def create(self, name: str) -> str:
        """The URL of a new, empty database; without the password."""
        address = f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"
        with psycopg.connect(address, password=self.password or "", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{name}"
