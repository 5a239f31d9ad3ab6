"""A frontier from the command line: every trial on the whole budget, the result, and a second start."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from marble_sweep.runs.status import read_metadata, run_directories

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 40
FRONTIER = (
    *("--multirun", "hydra/sweeper=frontier", "data=markov", "data.vocab_size=64", "data.num_tokens=20000"),
    *("model.num_layers=0", "model.hidden_dim=2,4", "optimizer.lr=tag(log,interval(1e-2,1))"),
    *(f"trainer.total_steps={STEPS}", "trainer.batch_size=8", "trainer.seq_len=16", "trainer.num_evals=2"),
    *("search.frontier_seeds=2", "search.thresholds=[unigram,3.0]"),
)


def start(directory: Path, *overrides: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "marble_sweep", *FRONTIER, *overrides, f"hydra.sweep.dir={directory}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


def test_a_frontier_from_the_command_line(tmp_path: Path) -> None:
    directory = tmp_path / "frontier"
    done = start(directory, "sweep.workers=2")
    assert done.returncode == 0, done.stderr
    summary = json.loads((directory / "search.json").read_text())
    assert (summary["question"], summary["ended"]) == ("frontier", "settled")
    assert [row["n_params"] for row in summary["sizes"]] == [(64 + 16) * width + 2 * width for width in (2, 4)]
    for row in summary["sizes"]:
        assert len(row["losses"]) == 1
        assert row["recipes"] >= 2
        assert 0 < row["error"] < summary["common_error"]  # of all losses: read from the trials' windows
    trials = list(run_directories(directory))
    assert len(trials) == summary["trials"]
    assert {read_metadata(path)["step"] for path in trials} == {STEPS}  # no trial ended early
    assert "a law needs 5 tuned sizes" in summary["law"]["refused"]
    assert (directory / "frontier.png").stat().st_size > 10_000
    page = (directory / "compare.html").read_text()
    assert "The lowest held-out losses after 40 steps" in page
    assert "data:image/png" in page
    assert "Every size at its best recipe; bars are 95 % intervals" in page
    assert "at its best margin" not in page  # as it is said of a search
    assert summary["summary_lines"][0] in done.stderr
    again = start(directory, "sweep.workers=2")
    assert again.returncode == 0
    assert len(list(run_directories(directory))) == len(trials)
    asked = start(tmp_path / "other", "certify.stop=true")
    assert asked.returncode != 0
    assert "certify.stop = True: must be false for a frontier" in asked.stderr


def test_a_wider_frontier_reuses_the_runs_of_a_narrower_one(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert start(first, "sweep.workers=1").returncode == 0
    done = start(second, "sweep.workers=1", "model.hidden_dim=2,4,6", f"search.reuse=[{first}]")
    assert done.returncode == 0, done.stderr
    before, now = (json.loads((folder / "search.json").read_text()) for folder in (first, second))
    assert "not reused" not in done.stderr
    assert now["reused"] == before["trials"] == len(now["reused_runs"])
    assert now["trials"] == len(list(run_directories(second)))
    assert f"{before['trials']} reused runs" in now["summary_lines"][-2]
    for was, row in zip(before["sizes"], now["sizes"], strict=False):
        assert {key: row[key] for key in ("losses", "recipes", "params")} == {
            key: was[key] for key in ("losses", "recipes", "params")
        }
    assert "Every size at its best recipe" in (second / "compare.html").read_text()
    rows = pd.read_csv(second / "summary.csv")
    assert [str(Path(run).parent) for run in rows["run"]].count(str(first)) == before["trials"]
