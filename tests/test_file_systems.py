"""File systems that lack a call, full disks, folders that several machines share, and long paths."""

import contextlib
import errno
import multiprocessing
import os
import platform
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from helpers import TINY, tiny_config, train_only
from poor_file_system import CALLS

from marble_sweep.run import run
from marble_sweep.runs import files, layout
from marble_sweep.runs.files import atomic_write, lock_directory, write_exclusive, write_text
from marble_sweep.runs.status import mark_start, read_metadata
from marble_sweep.sweeps.jobs import train_job
from marble_sweep.training.trainer import Trainer

UNSUPPORTED = [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL]


def failing(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


# ------------------------------------------------------------------- calls that are missing


@pytest.mark.parametrize("number", UNSUPPORTED, ids=errno.errorcode.get)
def test_without_hard_links_a_file_is_still_created_once(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", failing(number))
    for record in range(5):
        path = tmp_path / str(record) / "config.yaml"
        path.parent.mkdir()
        created: list[str] = []
        gate = threading.Barrier(8)

        def create(word: str, path: Path = path, gate: threading.Barrier = gate, created: list[str] = created) -> None:
            gate.wait()
            if write_exclusive(path, word * 1000):
                created.append(word)

        threads = [threading.Thread(target=create, args=(word,)) for word in "abcdefgh"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(created) == 1
        assert path.read_text() == created[0] * 1000
        assert not write_exclusive(path, "late")
        assert not list(path.parent.glob("*.tmp"))


def test_what_another_process_is_about_to_create_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    (tmp_path / ".config.yaml.claimed").touch()  # all that it has done so far
    assert not write_exclusive(tmp_path / "config.yaml", "x")
    assert [path.name for path in tmp_path.iterdir()] == [".config.yaml.claimed"]


def test_a_full_disk_is_not_taken_for_a_missing_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        write_exclusive(tmp_path / "config.yaml", "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "open"])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES], ids=errno.errorcode.get)
def test_a_folder_that_cannot_be_synced(
    call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(os, call)

    def unless_folder(target: object, *arguments: object, **more: object) -> object:
        is_folder = Path(target).is_dir() if call == "open" else stat.S_ISDIR(os.fstat(target).st_mode)  # type: ignore[arg-type]
        return failing(number)() if is_folder else real(target, *arguments, **more)

    monkeypatch.setattr(os, call, unless_folder)
    write_text(tmp_path / "file", "whole")
    assert (tmp_path / "file").read_text() == "whole"


NO_LOCKS = [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK]


@pytest.mark.parametrize("number", NO_LOCKS, ids=errno.errorcode.get)
def test_without_flock_a_directory_is_still_held(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", failing(number))
    lock = lock_directory(tmp_path, "hydra.run.dir")
    for wait in (False, True):  # nobody waits for a lock that a kill may have left
        with pytest.raises(ValueError, match=r"must be free: a running process holds it \(if none does, remove .*held"):
            lock_directory(tmp_path, "hydra.run.dir", wait=wait)
    lock.release()
    lock_directory(tmp_path, "hydra.run.dir").release()


def command(sweep_dir: Path, *overrides: str) -> list[str]:
    words = [sys.executable, "-m", "marble_sweep", "--multirun", *TINY, "model.num_layers=0,1", *overrides]
    return [*words, f"hydra.sweep.dir={sweep_dir}"]


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in CALLS or sys.platform != "linux", reason="needs Linux's seccomp")
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_sweep_where_the_file_system_lacks_calls(launcher: str, tmp_path: Path) -> None:
    poor = [sys.executable, str(Path(__file__).with_name("poor_file_system.py"))]
    words = [*poor, *command(tmp_path / "sweep", f"hydra/launcher={launcher}")]
    for _ in range(2):  # the second reuses what the first has made
        result = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert result.returncode == 0, result.stderr
        assert "\n2 finished\n" in result.stderr
        assert "Traceback" not in result.stderr
        assert {path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()} == {"0", "1", layout.PRODUCTS}
    # What stands in for a hard link, and shows that there was none.
    assert (tmp_path / "sweep" / "0" / ".config.yaml.claimed").exists()
    again = subprocess.run(command(tmp_path / "sweep"), capture_output=True, text=True, cwd=tmp_path, check=False)
    assert again.returncode == 0, again.stderr  # nor does the lock stay


# ------------------------------------------------------------------- temporary files


def test_two_writers_of_one_file_never_share_a_temporary_file(tmp_path: Path) -> None:
    """As two containers on one folder do, in both of which the process has the same number."""
    path = tmp_path / "state.json"
    with atomic_write(path) as first:
        first.write_text("first")
        with atomic_write(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_what_is_written_has_the_permissions_that_the_user_wants(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "replaced", "x")
        write_exclusive(tmp_path / "created", "x")
        files.open_append(tmp_path / "log").close()
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o666 & ~mask}


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    plots = tmp_path / "run" / "plots"
    plots.mkdir(parents=True)
    left = [tmp_path / "run" / f".state.safetensors.{'0a' * 16}.tmp", tmp_path / "run" / ".metadata.json.1.tmp"]
    left.append(plots / f".loss.png.{'b1' * 16}.tmp")
    own = [tmp_path / "run" / name for name in ("notes.tmp", ".notes.json.tmp", ".a.b.tmp", ".x.json.12z.tmp")]
    for path in [*left, *own]:
        path.write_text("x")
    holder = FileLock(tmp_path / "run" / ".lock")
    with holder, pytest.raises(ValueError, match="must be free"):
        run(tiny_config("trainer.total_steps=1"), tmp_path / "run", show=False)
    assert all(path.exists() for path in left)  # they may be the other process's, which is alive
    run(tiny_config("trainer.total_steps=1"), tmp_path / "run", show=False)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in own)


def test_a_mark_is_not_set_outside_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / ".started").symlink_to(tmp_path / "elsewhere")
    mark_start(tmp_path / "sweep")
    assert not (tmp_path / "elsewhere").exists()


# ------------------------------------------------------------------- long paths, full disks


@pytest.mark.slow
def test_training_a_job_changes_nothing_in_the_calling_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 60) / ("y" * 60)
    long.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(long))  # as TMPDIR has it
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        before = multiprocessing.get_start_method(allow_none=True), signal.pthread_sigmask(signal.SIG_BLOCK, [])
        assert train_job(tiny_config(), tmp_path / "sweep", 0, 1, lambda: False) == tmp_path / "sweep" / "0"
        assert (
            multiprocessing.get_start_method(allow_none=True),
            signal.pthread_sigmask(signal.SIG_BLOCK, []),
        ) == before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    assert tempfile.tempdir == str(long)
    assert read_metadata(tmp_path / "sweep" / "0")["status"] == "finished"


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[None]:
    """A file system of its own, in memory, for as long as the block runs."""
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(path: Path, room: int) -> None:
    """Write until the disk is full, then give `room` bytes back."""
    with path.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        file.truncate(file.tell() - room)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "run"
    assert run(tiny_config("trainer.checkpoint_interval=10"), directory, show=False) == "finished"
    return directory


@pytest.mark.parametrize("room", [0, 40960, 122880])
def test_a_full_disk_leaves_the_last_good_state(
    room: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that is half done, with `room` bytes left on its disk."""
    short = tiny_config("trainer.checkpoint_interval=10")
    with small_disk(tmp_path / "disk", 1 << 20):
        directory = tmp_path / "disk" / "run"
        train = Trainer.train
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train", lambda self, _: train(self, lambda: self.step == 13))
            assert run(short, directory, show=False) == "interrupted"
        fill(tmp_path / "disk" / "other", room)
        with pytest.raises(OSError, match="No space left on device") as caught:
            run(short, directory, resume=True, show=False)
        assert str(directory) in str(caught.value.filename)
        print(f"the disk was full when writing {caught.value.filename}")
        assert not list(directory.rglob(".*.tmp"))
        (tmp_path / "disk" / "other").unlink()
        assert run(short, directory, resume=True, show=False) == "finished"
        for name in ("evals.csv", "checkpoints.safetensors", "model.safetensors"):
            assert (directory / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    ("probe_windows", "room", "full"), [(0, 8192, "model.safetensors"), (64, 200_000, "record/hidden")]
)
def test_a_full_disk_leaves_a_record_that_goes_on(
    probe_windows: int, room: int, full: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that writes the record, or the state after it, finds the disk full; nothing of the run is lost."""
    probe = f"recorder.probe_windows={probe_windows}"
    config = tiny_config("recorder=full", probe, "trainer.total_steps=16", "trainer.checkpoint_interval=6")
    train_only(config, tmp_path / "whole")
    with small_disk(tmp_path / "disk", 2 << 20):
        directory = tmp_path / "disk" / "run"
        train = Trainer.train
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train", lambda self, _: train(self, lambda: self.step == 9))
            assert train_only(config, directory) == "interrupted"
        fill(tmp_path / "disk" / "other", room)
        with pytest.raises(OSError, match="No space left on device") as caught:
            train_only(config, directory, resume=True)
        assert str(directory / full) in str(caught.value.filename)
        (tmp_path / "disk" / "other").unlink()
        assert train_only(config, directory, resume=True) == "finished"
        for path in (tmp_path / "whole" / "record").rglob("*"):
            same = directory / path.relative_to(tmp_path / "whole")
            assert path.is_dir() or same.read_bytes() == path.read_bytes()
