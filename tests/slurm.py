"""A Slurm cluster of the tests' own on this machine: munged, slurmctld and one slurmd, from Debian's slurm-wlm."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "sinfo")
PATIENCE = 30  # seconds
# No accounting, no cgroups, no other users: what one machine without privileges has.
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} Boards=1 SocketsPerBoard=1 CoresPerSocket={cores} ThreadsPerCore=1
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class Cluster:
    """A cluster with so many cores below `folder`. `environment` lets Slurm's programs find it."""

    def __init__(self, folder: Path, cores: int) -> None:
        missing = [program for program in PROGRAMS if shutil.which(program) is None]
        if missing or os.geteuid() != 0:
            pytest.skip("needs Slurm, and root to start it (Debian: apt-get install slurm-wlm)")
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        self.processes: list[subprocess.Popen[bytes]] = []
        for name in ("state", "spool"):
            (folder / name).mkdir()
        settings = {"host": socket.gethostname(), "folder": folder, "cores": cores}
        ports = {"controller_port": free_port(), "node_port": free_port()}
        (folder / "slurm.conf").write_text(CONFIG.format(**settings, **ports))
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        munge = {"socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log", "seed-file": "munge.seed"}
        paths = [f"--{option}={folder / name}" for option, name in munge.items()]
        self._start("munged", "--foreground", "--force", f"--key-file={key}", *paths)
        self._start("slurmctld", "-D", "-c", "-i")
        self._start("slurmd", "-D")
        give_up = time.monotonic() + PATIENCE
        while self.state() != "idle":
            if time.monotonic() > give_up:
                self.stop()
                pytest.skip(f"this machine does not let Slurm start: {self.logs()}")
            time.sleep(0.2)

    def _start(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("wb") as log:
            process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, cwd=self.folder)
        self.processes.append(process)

    def state(self) -> str:
        """Of its node, as sinfo has it; empty while the controller does not answer."""
        command = ["sinfo", "--noheader", "--format=%T"]
        shown = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        return shown.stdout.strip()

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.out")))

    def _has_jobs(self) -> bool:
        command = ["squeue", "--noheader"]
        shown = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        return bool(shown.stdout.strip())

    def stop(self) -> None:
        """Once its jobs have ended: without a controller their last processes would wait for one for ever."""
        give_up = time.monotonic() + PATIENCE
        while self._has_jobs() and time.monotonic() < give_up:
            time.sleep(0.2)
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self.processes):
            process.wait(PATIENCE)
