"""How a sweep ends: its exit code is that of its jobs, whatever else goes wrong at the end."""

import json
from pathlib import Path

import pytest
from helpers import tiny_config

from marble_sweep.config import Config, dump
from marble_sweep.hydra_app.callbacks import Sweep
from marble_sweep.runs.files import lock_directory
from marble_sweep.sweeps.watch import SweepWatch


@pytest.fixture(scope="module")
def jobs() -> list[Config]:
    return [tiny_config(f"seed={seed}") for seed in (1, 2)]


def sweep(directory: Path, jobs: list[Config], *statuses: str | None) -> Sweep:
    """A sweep whose jobs left these statuses; None: it could not write any."""
    for number, (job, status) in enumerate(zip(jobs, statuses, strict=False)):
        path = directory / str(number)
        path.mkdir(parents=True)
        (path / "config.yaml").write_text(dump(job))
        if status is not None:
            (path / "metadata.json").write_text(json.dumps({"status": status, "reason": "boom"}))
    lock = lock_directory(directory, "hydra.sweep.dir")
    watch = SweepWatch(directory, 80)
    watch.start()
    return Sweep(directory, jobs, "THE COMMAND", lock, watch)


@pytest.mark.parametrize(
    ("statuses", "interrupted", "code", "todo"),
    [
        (["finished", "diverged"], False, 0, None),
        (["finished", "diverged"], True, 0, None),
        (["finished", "failed"], False, 1, "To run what is failed (1):"),
        (["failed", "interrupted"], True, 1, "To run what is failed (0) and to do:"),
        (["finished", "interrupted"], True, 130, "To run what is to do:"),
        (["finished"], True, 130, "To run what is to do:"),
        (["finished", "running"], False, 1, "To run what is to do:"),  # its end could not be written
        (["finished", None], False, 1, "To run what is to do:"),
    ],
)
@pytest.mark.parametrize("page", ["writable", "unwritable"])
def test_the_jobs_decide(
    statuses: list[str | None],
    interrupted: bool,
    code: int,
    todo: str | None,
    page: str,
    jobs: list[Config],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if page == "unwritable":
        for name in ("compare.html", "summary.csv"):
            (tmp_path / name).mkdir()
    assert sweep(tmp_path, jobs, *statuses).conclude(interrupted=interrupted) == code
    told = capsys.readouterr().err
    assert told.count("could not be written") == (page == "unwritable")
    assert "Traceback" not in told
    if todo is None:
        assert "THE COMMAND" not in told
    else:
        assert f"{todo}\n  THE COMMAND\n" in told


def test_a_damaged_run_that_was_there_before_does_not_decide(jobs: list[Config], tmp_path: Path) -> None:
    (tmp_path / "7").mkdir(parents=True)
    (tmp_path / "7" / "config.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "7" / "evals.csv").write_bytes(b"step,val_loss\n1,garbage\n\x00\x00")
    assert sweep(tmp_path, jobs, "finished", "failed").conclude(interrupted=False) == 1
