"""What is printed of a sweep while its run directories change."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opened import opened_files

from marble_sweep.sweeps import watch
from marble_sweep.sweeps.watch import SweepWatch

MakeRun = Callable[..., Path]


def set_status(run: Path, status: str) -> None:
    metadata: dict[str, Any] = json.loads((run / "metadata.json").read_text())
    (run / "metadata.json").write_text(json.dumps(metadata | {"status": status}))


def printed_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_run_that_ends_is_told_of_once(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "0", steps=20)
    sweep = SweepWatch(tmp_path, 40)
    sweep.look()
    assert printed_lines(capsys) == []  # it was there before
    run = make_run(tmp_path / "1", "seed=7", steps=20, status="running")
    sweep.look()
    assert printed_lines(capsys) == []
    set_status(run, "finished")
    sweep.look()
    (line,) = printed_lines(capsys)
    assert line.startswith("   1  4L128D  seed=7  held-out loss ")
    sweep.look()
    assert printed_lines(capsys) == []
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 3
    set_status(run, "failed")  # it ran once more
    sweep.look()
    assert "FAILED: " in printed_lines(capsys)[0]


def test_the_bar_follows_the_steps_of_all_runs(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller, terminal = (os.fdopen(each, mode) for each, mode in zip(os.openpty(), ("rb", "w"), strict=True))
    monkeypatch.setattr(sys, "stderr", terminal)  # elsewhere there is no bar
    make_run(tmp_path / "0", steps=20)
    run = make_run(tmp_path / "1", steps=30, status="running")
    sweep = SweepWatch(tmp_path, 100)
    sweep.look()
    assert sweep.bar.n == 50
    with (run / "metrics.csv").open("a") as file:
        file.write("31," + ",".join("1" * 21) + "\n32,1")
    sweep.look()
    assert sweep.bar.n == 51
    sweep.bar.close()
    terminal.close()
    controller.close()


def test_a_look_opens_only_what_has_changed(make_run: MakeRun, tmp_path: Path) -> None:
    for number in range(5):
        make_run(tmp_path / str(number), f"seed={number}", steps=20, status="running" if number == 4 else "finished")
    sweep = SweepWatch(tmp_path, 100)
    sweep.look()
    with opened_files() as opened:
        sweep.look()
    assert opened == []
    with (tmp_path / "4" / "metrics.csv").open("a") as file:
        file.write("21,1")
    with opened_files() as opened:
        sweep.look()
    assert opened == [str(tmp_path / "4" / "metrics.csv")]


def test_a_run_damaged_during_a_sweep_is_told_and_the_others_go_on(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.01)
    runs = [make_run(tmp_path / str(n), f"seed={n}", steps=20, status="running") for n in range(4)]
    sweep = SweepWatch(tmp_path, 80)
    sweep.start()
    (runs[0] / "metadata.json").write_bytes(b"\xff\x1b[31m")
    (runs[1] / "evals.csv").write_bytes(b"step,val_loss\ngarbage\n")
    (runs[2] / "metrics.csv").write_bytes(bytes(100))
    for run in runs[1:]:
        set_status(run, "finished")
    while sum(path in sweep.ended for path in runs) < 4:
        time.sleep(0.01)
    sweep.stop()
    # A look between the damage and the new status reports a run twice; the last line holds.
    last_lines = {line[:15]: line for line in printed_lines(capsys)}
    assert sorted(last_lines) == ["   0  4L128D  s", "   1  4L128D  s", "   2  4L128D  s", "   3  4L128D  s"]
    lines = [last_lines[start] for start in sorted(last_lines)]
    assert "DAMAGED: metadata.json: must be UTF-8" in lines[0]
    assert "DAMAGED: evals.csv: line 2: must be numbers" in lines[1]
    assert "DAMAGED: metrics.csv: line 1: must be the names of the columns" in lines[2]
    assert "held-out loss" in lines[3]
    page = (tmp_path / "compare.html").read_text()
    assert page.count("damaged: ") == 3


def test_what_cannot_be_written_costs_one_line(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = SweepWatch(tmp_path, 40)
    (tmp_path / "summary.csv").mkdir()
    (tmp_path / "compare.html").mkdir()
    make_run(tmp_path / "0", steps=20)
    make_run(tmp_path / "1", "seed=1", steps=20)
    sweep.start()
    sweep.stop()
    lines = printed_lines(capsys)
    assert sum("held-out loss" in line for line in lines) == 2
    assert [line.split(":")[0] for line in lines if "held-out" not in line] == [
        "The sweep cannot be watched",
        "compare.html could not be written",
    ]
