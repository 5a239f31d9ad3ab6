"""Runs whose record was analysed: what is kept of it, and where it shows."""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted_records import Planted, bfloat16_bits, hopping

from marble_sweep.checks import CheckError
from marble_sweep.compare import main as compare
from marble_sweep.lifecycle.command import command, main
from marble_sweep.lifecycle.of_run import analyse_run, learning_rates, open_record, save
from marble_sweep.runs.files import lock_directory
from marble_sweep.runs.removed import remove_tensors
from marble_sweep.runs.run import Run

NUM_STEPS = 200


@pytest.fixture(name="run_dir")
def run_directory(make_run: Callable[..., Path], tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", steps=NUM_STEPS)


def freezing_at(steps: list[int]) -> Planted:
    """Tokens that move until their step."""
    hops: dict[int, dict[int, dict[int, int]]] = {}
    for token, last in enumerate(steps):
        for step in range(1, last + 1):
            hops.setdefault(step, {})[token] = {0: 1 if step % 2 else -1}
    start = bfloat16_bits(np.linspace(1, 1.5, 2 * len(steps)).reshape(-1, 2))
    bits = hopping(start, NUM_STEPS, hops)
    return Planted(bits, np.ones(len(steps), dtype=bool), np.ones((NUM_STEPS, 2), dtype=np.float32))


def test_a_lifecycle_is_kept_with_its_run(run_dir: Path) -> None:
    before = json.loads((run_dir / "metadata.json").read_text())
    life = analyse_run(run_dir, freezing_at([10, 20, 40]))
    save(run_dir, life)
    after = json.loads((run_dir / "metadata.json").read_text())
    kept = after.pop("lifecycle")
    assert after == before
    assert (kept["freeze_median"], kept["freeze_last"], kept["n_frozen"]) == (21, 41, 3)
    assert kept["epochs"] == life.epochs.to_dict("records")
    assert kept["n_frozen_constant_lr"] == 3
    pd.testing.assert_frame_equal(pd.read_parquet(run_dir / "lifecycle.parquet"), life.tokens)
    run = Run.read(run_dir)
    assert (run.status, run.metadata["lifecycle"]["freeze_last"]) == ("finished", 41)


def test_a_freeze_without_gradients_is_called_so(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    freezing_at([10, 20]).write(run_dir)
    metadata = json.loads((run_dir / "metadata.json").read_text())
    for tied in (True, False):
        (run_dir / "metadata.json").write_text(json.dumps(metadata | {"tied": tied}))
        assert main([str(run_dir)]) == 0
        said = "dead rows of the embedding get no gradient" in " ".join(capsys.readouterr().out.split())
        assert said == (not tied)


def test_the_learning_rate_is_that_of_the_steps(run_dir: Path) -> None:
    lr = learning_rates(run_dir)
    assert lr.index.tolist() == list(range(1, NUM_STEPS + 1))
    assert set(lr) == {3e-4}


def test_a_run_that_trains_is_left_alone(run_dir: Path) -> None:
    life = analyse_run(run_dir, freezing_at([10]))
    before = (run_dir / "metadata.json").read_text()
    lock = lock_directory(run_dir, "test")
    try:
        with pytest.raises(CheckError, match="a running process holds it"):
            save(run_dir, life)
    finally:
        lock.release()
    assert (run_dir / "metadata.json").read_text() == before
    assert not (run_dir / "lifecycle.parquet").exists()


def test_a_run_without_a_record_says_so(run_dir: Path) -> None:
    with pytest.raises(CheckError, match="must have a record"):
        open_record(run_dir)


@pytest.fixture(name="seeds")
def runs_of_three_seeds(make_run: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder of three runs, whose tokens freeze later from seed to seed."""
    for seed in range(3):
        path = make_run(tmp_path / "sweep" / str(seed), f"seed={seed}", steps=NUM_STEPS)
        freezing_at([10 + seed, 20 + seed, 30 + 10 * seed]).write(path)
    return tmp_path / "sweep"


def test_runs_that_differ_in_their_seed_show_the_spread(seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(seeds)]) == 0
    text = capsys.readouterr().out
    assert "3 of 3 dead tokens, half of all by step 21, the last at step 31" in text
    *_, last, legend = text.splitlines()
    assert " ".join(last.split()[1:]) == "+2 3 3 ± 0 22 ± 1 41 ± 10 22 ± 1 0 ± 0 1 ± 0"
    assert legend.startswith("A row with n > 1 is a group: mean ± standard deviation")


def test_the_comparison_shows_what_was_kept(seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare([str(seeds), "--format", "json", "--group-by", "none"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["freeze_last"] for row in rows} == {None}
    assert compare([str(seeds)]) == 0
    assert "freeze_last" not in capsys.readouterr().out
    main([str(seeds)])
    capsys.readouterr()
    compare([str(seeds), "--format", "json", "--group-by", "none"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["freeze_last"] for row in sorted(rows, key=lambda row: row["seed"])] == [31, 41, 51]
    compare([str(seeds)])
    assert "41 ± 10" in capsys.readouterr().out


def test_a_mean_over_runs_that_froze_would_hide_the_others(seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(seeds), "--quiet-window", "160"]) == 0
    capsys.readouterr()
    compare([str(seeds), "--format", "json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["freeze_median"], row["freeze_last"]) == (22, None)


@pytest.mark.parametrize("window", ["0", "-5"])
def test_a_wrong_window_is_one_line(seeds: Path, window: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(seeds), "--quiet-window", window]) == 2
    assert f"quiet_window = {window}: must be a whole number >= 1" in capsys.readouterr().err


def test_a_record_without_a_run_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An imported one has no config, no texts and no learning rates."""
    freezing_at([10, 20]).write(tmp_path)
    assert main([str(tmp_path)]) == 0
    assert "2 of 2 dead tokens, half of all by step 11, the last at step 21" in capsys.readouterr().out
    assert pd.read_parquet(tmp_path / "lifecycle.parquet")["freeze_step"].tolist() == [11, 21]
    assert not (tmp_path / "metadata.json").exists()


def test_runs_without_a_record_are_named(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_dir)]) == 2
    assert "must have a record" in capsys.readouterr().err


def test_a_record_that_was_removed_is_said_to_be(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of runs that had one."""
    recorded = make_run(tmp_path / "sweep" / "1", steps=NUM_STEPS)
    config = (recorded / "config.yaml").read_text()
    (recorded / "config.yaml").write_text(config.replace("recorder:\n  name: none", "recorder:\n  name: full"))
    other = make_run(tmp_path / "sweep" / "0", steps=NUM_STEPS)
    for run in (recorded, other):
        freezing_at([10]).write(run)
        remove_tensors(run, "search.keep=none")
    expected = f"{recorded / 'record'}: must still be there; search.keep=none has removed the tensors of this run"
    for path in (recorded, tmp_path / "sweep"):
        assert main([str(path)]) == 2
        assert expected in capsys.readouterr().err
    with pytest.raises(CheckError, match=re.escape(expected)):
        open_record(recorded)
    assert main([str(other)]) == 2
    assert "must have a record, as a run with recorder=dead" in capsys.readouterr().err


def test_a_reader_that_stops_reading_loses_nothing(
    seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    page = tmp_path / "life.html"
    with os.fdopen(writing, "w", buffering=1) as closed_pipe:
        monkeypatch.setattr(sys, "stdout", closed_pipe)
        monkeypatch.setattr(sys, "argv", ["lifecycle", str(seeds / "0"), "--html", str(page)])
        command()
        monkeypatch.undo()
    assert capsys.readouterr().err == ""
    assert (seeds / "0" / "lifecycle.parquet").exists()
    assert "lifecycle" in json.loads((seeds / "0" / "metadata.json").read_text())
    assert "4L128D" in page.read_text()


@pytest.mark.slow
def test_a_page_and_figures_are_written_on_request(
    seeds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, figures = tmp_path / "life.html", tmp_path / "figures"
    assert main([str(seeds / "0"), "--html", str(page), "--figures", str(figures)]) == 0
    assert f"Page: {page}" in capsys.readouterr().out
    assert "4L128D" in page.read_text()
    assert (figures / "stratigraphy.png").exists()
    assert main([str(seeds / "0"), str(seeds / "1"), "--html", str(page)]) == 0
    assert str(seeds / "1") in page.read_text()
    assert main([str(seeds), "--html", str(page)]) == 2
    assert main([str(seeds / "0"), str(seeds / "1"), "--figures", str(figures)]) == 2
    error = capsys.readouterr().err
    assert f"--html = {page}: must be given with one run or two, not with 3" in error
    assert f"--figures = {figures}: must be given with one run, not with 2" in error
