"""The three plots of a run directory, whatever the run has come to."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from marble_sweep.report.plots import draw_plots, loss_figure, spread_out
from marble_sweep.runs.run import Run

MakeRun = Callable[..., Path]
CASES: dict[str, dict[str, Any]] = {
    "whole": {"freeze_at": 150},
    "no evaluation": {"every": 0},
    "one step": {"steps": 1, "every": 1},
    "no dead tokens": {"num_dead": 0},
    "diverged": {"status": "diverged"},
}


@pytest.mark.parametrize("case", CASES)
def test_plots_are_drawn_whatever_was_measured(make_run: MakeRun, tmp_path: Path, case: str) -> None:
    run = make_run(tmp_path / "run", **CASES[case])
    draw_plots(run)
    assert sorted(path.name for path in (run / "plots").iterdir()) == ["hidden.png", "lattice.png", "loss.png"]
    for path in (run / "plots").iterdir():
        assert imread(path).std() > 0.05


def test_a_run_without_a_step_has_no_plots(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "metrics.csv").write_text("step,epo")
    draw_plots(run)
    assert not (run / "plots").exists()


def loss_plot(run: Path) -> Figure:
    loaded = Run.read(run)
    return loss_figure(loaded, loaded.steps.table(), pd.DataFrame(loaded.evals))


def test_the_loss_plot_names_every_line(make_run: MakeRun, tmp_path: Path) -> None:
    figure = loss_plot(make_run(tmp_path / "run", loss=4.0))
    text = " ".join(label.get_text() for label in figure.axes[0].texts)
    for label in ("training loss", "held-out loss", "unigram, tempered 6.200", "unigram, oracle 6.000", "bigram 4.400"):
        assert label in text
    assert "entropy" not in text


def test_a_diverging_loss_does_not_flatten_what_came_before(make_run: MakeRun, tmp_path: Path) -> None:
    axes = loss_plot(make_run(tmp_path / "run", status="diverged")).axes[0]
    assert axes.get_ylim()[1] < 15
    assert any("left the scale" in label.get_text() for label in axes.texts)


def test_labels_are_moved_apart() -> None:
    assert spread_out([0.5, 0.5, 0.9], [0.1, 0.2, 0.1]) == pytest.approx([0.425, 0.575, 0.9])


def test_comparing_runs_imports_nothing_slow() -> None:
    for module in ("compare", "report.summary"):
        slow = "('torch', 'pandas', 'plotly', 'hydra')"
        check = f"import sys, marble_sweep.{module}; print([m for m in {slow} if m in sys.modules])"
        imported = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
        assert imported.stdout.strip() == "[]"
