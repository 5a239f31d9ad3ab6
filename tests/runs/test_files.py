"""A file that is replaced is the new one whole or the old one untouched, and nothing is left beside it."""

import contextlib
import errno
import json
import os
import resource
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from marble_sweep.runs.files import atomic_write, write_exclusive, write_json, write_text
from marble_sweep.runs.tensors import write_tensors

Write = Callable[[Path], None]
WRITERS: dict[str, Write] = {
    "text": lambda path: write_text(path, "new" * 10_000),
    "json": lambda path: write_json(path, {"new": "x" * 30_000}),
    "tensors": lambda path: write_tensors(path, {"new": torch.zeros(10_000)}),
}
every_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "state.json"
    path.write_text("old")
    return path


def assert_untouched(path: Path) -> None:
    assert path.read_text() == "old"
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@every_writer
def test_the_new_file_takes_the_old_ones_place(path: Path, write: Write) -> None:
    write(path)
    assert path.stat().st_size > 10_000
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_the_old_file_is_there_until_the_new_one_is_whole(path: Path) -> None:
    with atomic_write(path) as temporary:
        assert temporary.parent == path.parent, "a rename across file systems is not atomic"
        temporary.write_text("half")
        assert path.read_text() == "old"
    assert path.read_text() == "half"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("when", ["before", "midway"])
def test_whatever_is_raised_while_writing_leaves_the_old_file(
    path: Path, error: type[BaseException], when: str
) -> None:
    def fail() -> None:
        with atomic_write(path) as temporary:
            if when == "midway":
                temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert_untouched(path)


def test_the_data_is_synced_before_the_rename_and_the_folder_after_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []

    def fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append(("folder" if is_folder else "file", path.read_text()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(path, "new")
    assert events == [("file", "old"), ("folder", "new")]


@every_writer
def test_a_disk_that_is_full_when_syncing(path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left on device"):
        write(path)
    assert_untouched(path)


def test_a_rename_that_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="Input/output error"):
        write_text(path, "new")
    assert_untouched(path)


@every_writer
def test_a_write_that_is_cut_short(path: Path, write: Write) -> None:
    """The kernel itself ends the write after 1,000 bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_untouched(path)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write anywhere; shed that while the block runs."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@every_writer
def test_a_folder_that_cannot_be_written(write: Write) -> None:
    folder = Path(tempfile.mkdtemp())  # not tmp_path, into which nobody else may look
    try:
        path = folder / "state.json"
        path.write_text("old")
        folder.chmod(0o555)
        with as_nobody(), pytest.raises(PermissionError):
            write(path)
        assert_untouched(path)
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


@every_writer
def test_a_folder_that_is_not_there(tmp_path: Path, write: Write) -> None:
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "nowhere" / "state.json")
    assert list(tmp_path.iterdir()) == []


@every_writer
def test_a_place_taken_by_a_folder(tmp_path: Path, write: Write) -> None:
    (tmp_path / "state.json").mkdir()
    with pytest.raises(IsADirectoryError):
        write(tmp_path / "state.json")
    assert [each.name for each in tmp_path.iterdir()] == ["state.json"]


def test_text_is_utf8(path: Path) -> None:
    write_text(path, "µ ± é\n")
    assert path.read_bytes() == "µ ± é\n".encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_has_no_way_to_say_nan(path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": value})
    assert_untouched(path)


def test_json_reads_back(path: Path) -> None:
    value = {"a": [1, 2.5, None, True], "b": {"c": "ü"}}
    write_json(path, value)
    assert json.loads(path.read_text()) == value


def test_tensors_read_back_whatever_their_strides_and_dtypes(path: Path) -> None:
    tensors = {
        "transposed": torch.arange(6.0).view(2, 3).T,
        "bits": torch.tensor([0, 65535], dtype=torch.uint16),
        "mask": torch.tensor([True, False]),
        "lattice": torch.ones(3, dtype=torch.bfloat16),
        "scalar": torch.tensor(3),
    }
    write_tensors(path, tensors, {"info": "{}"})
    read = load_file(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor)
        assert read[name].dtype == tensor.dtype
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"info": "{}"}


def test_create_text_never_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert write_exclusive(path, "first") is True
    assert write_exclusive(path, "second") is False
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]
