"""A run directory that is sent arrives whole or not at all, and nothing but a run's files does."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from marble_sweep.checks import CheckError
from marble_sweep.runs.parcel import pack, recover, unpack
from marble_sweep.runs.status import run_directories

FILES = {"config.yaml": b"seed: 1\n", "metadata.json": b"{}", "state.safetensors": bytes(range(256)) * 5000}


def run(sweep_dir: Path, name: str, **files: bytes) -> Path:
    """A run directory with these files beside a lock and plots, which are not sent."""
    directory = sweep_dir / name
    (directory / "plots").mkdir(parents=True)
    for file, content in (FILES | {name.replace("_", "."): content for name, content in files.items()}).items():
        (directory / file).write_bytes(content)
    (directory / ".lock").touch()
    return directory


def parcel_of(directory: Path) -> io.BytesIO:
    parcel = io.BytesIO()
    pack(directory, parcel)
    parcel.seek(0)
    return parcel


def archive(members: Sequence[tuple[str, bytes | None]]) -> io.BytesIO:
    """A tar archive; content None makes a link to /etc/passwd."""
    parcel = io.BytesIO()
    with tarfile.open(fileobj=parcel, mode="w") as opened:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content or b"")
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            opened.addfile(member, io.BytesIO(content or b""))
    parcel.seek(0)
    return parcel


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_run_arrives_under_its_number_with_all_its_files(tmp_path: Path) -> None:
    away, home = tmp_path / "away", tmp_path / "home"
    arrived = unpack(parcel_of(run(away, "12")), home)
    assert arrived == home / "12"
    assert content(arrived) == FILES
    assert list(run_directories(home)) == [arrived]
    assert list((home / "workers").iterdir()) == []


def test_a_record_goes_along(tmp_path: Path) -> None:
    """With all that Zarr wrote, and nothing that a killed write left behind."""
    directory = run(tmp_path / "away", "12")
    group = zarr.create_group(directory / "record")
    group.create_array("W", data=np.arange(60, dtype=np.uint16).reshape(5, 4, 3), chunks=(2, 4, 3))
    (directory / "record" / "W" / "c" / "0.0123.partial").write_bytes(b"half")
    arrived = unpack(parcel_of(directory), tmp_path / "home")
    sent: Any = zarr.open_group(arrived / "record")["W"]
    assert np.array_equal(sent[:], np.arange(60).reshape(5, 4, 3))
    assert not [*arrived.rglob("*.partial")]


def test_a_run_that_goes_on_replaces_what_it_was(tmp_path: Path) -> None:
    away, home = tmp_path / "away", tmp_path / "home"
    run(home, "3", evals_csv=b"of long ago")
    arrived = unpack(parcel_of(run(away, "7", metadata_json=b'{"step": 9}')), home)
    assert arrived == home / "3"
    assert content(arrived) == FILES | {"metadata.json": b'{"step": 9}'}
    assert sorted(path.name for path in home.iterdir()) == ["3", "workers"]
    assert list((home / "workers").iterdir()) == []


def test_another_run_of_that_number_stays(tmp_path: Path) -> None:
    away, home = tmp_path / "away", tmp_path / "home"
    run(home, "7", config_yaml=b"seed: 2\n")
    run(home, "0", config_yaml=b"seed: 3\n")
    assert unpack(parcel_of(run(away, "7")), home) == home / "1"
    assert (home / "7" / "config.yaml").read_bytes() == b"seed: 2\n"


@pytest.mark.parametrize(
    "members",
    [
        [("0/record/../../../x", b"")],
        [("0/record/W/../x", b"")],
        [("0/record/W/c/0", None)],
        [("0/record/x.sh", b"")],
        [("7/config.yaml", b"a"), ("7/../../evil", b"b")],
        [("7/config.yaml", b"a"), ("7/evil.py", b"b")],
        [("../config.yaml", b"a")],
        [("/config.yaml", b"a")],
        [("7/config.yaml", None)],
        [("7/config.yaml", b"a"), ("8/metadata.json", b"b")],
        [("7/metadata.json", b"{}")],
        [],
    ],
)
def test_what_is_no_run_directory_leaves_nothing(members: Sequence[tuple[str, bytes | None]], tmp_path: Path) -> None:
    with pytest.raises(CheckError, match=r"^a run directory that is sent: must "):
        unpack(archive(members), tmp_path / "home")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["home", "workers"]


def test_half_a_parcel_leaves_nothing(tmp_path: Path) -> None:
    whole = parcel_of(run(tmp_path / "away", "7")).getvalue()
    with pytest.raises(CheckError, match=r"^a run directory that is sent: must be whole: "):
        unpack(io.BytesIO(whole[: len(whole) // 2]), tmp_path / "home")
    assert sorted(path.name for path in (tmp_path / "home").rglob("*")) == ["workers"]


def test_a_kill_while_a_run_arrives_loses_neither_version_of_it(tmp_path: Path) -> None:
    """Killed before the new one has the name, the old one gets it back; what had not arrived whole is removed."""
    workers = tmp_path / "workers"
    run(workers, ".replaced-3")
    run(workers, ".arriving-abc")
    run(tmp_path, "4", evals_csv=b"new")
    run(workers, ".replaced-4")
    assert [path.name for path in run_directories(tmp_path)] == ["4"]
    recover(tmp_path)
    assert [path.name for path in run_directories(tmp_path)] == ["3", "4"]
    assert (tmp_path / "4" / "evals.csv").read_bytes() == b"new"
    assert list(workers.iterdir()) == []
