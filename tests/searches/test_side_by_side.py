"""Several workers of one search in one process: they work at the same time, and the answer is that of one alone."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY
from hypothesis import given
from hypothesis import strategies as st
from pretender import Pretender
from studies import made_up
from worlds import FEW_SIZES, SEEDS, World, answer, hill
from worlds import search as search_alone
from worlds import train as train_record

from marble_sweep.searches.space import Space
from marble_sweep.searches.strategy import Proposal, Settled, decide
from marble_sweep.searches.trial_record import TrialRecord
from marble_sweep.searches.view import View
from marble_sweep.searches.worker import Params

# ------------------------------------------------------------------------- the strategy alone


def search_together(space: Space, world: World, workers: int, order: list[int]) -> list[TrialRecord]:
    """The records of a search with so many trials at once; `order` says which of the running ones ends next."""
    records: list[TrialRecord] = []
    running: list[int] = []
    while True:
        while len(running) < workers:
            seen = [
                replace(record, outcome="running", margins={}) if record.number in running else record
                for record in records
            ]
            decision = decide(space, seen, SEEDS)
            if not isinstance(decision, Proposal):
                break
            running.append(len(records))
            records.append(train_record(space, world, len(records), decision))
        if not running:
            assert decision == Settled()
            return records
        running.pop(order[len(records) % len(order)] % len(running))


@given(
    boundary=st.floats(1.5, 9.0),
    peak=st.floats(-2.5, -0.5),
    depth=st.floats(-0.1, 0.1),
    workers=st.integers(2, 4),
    order=st.lists(st.integers(0, 3), min_size=1, max_size=12),
)
def test_the_answer_of_several_workers_is_that_of_one(
    boundary: float, peak: float, depth: float, workers: int, order: list[int]
) -> None:
    """Whichever trial ends first, in worlds where wider is better and one learning rate is best."""
    world = hill(boundary, peak, depth)
    alone, _ = search_alone(FEW_SIZES, world)
    together = search_together(FEW_SIZES, world, workers, order)
    assert answer(FEW_SIZES, together) == answer(FEW_SIZES, alone)
    tried = [(record.size, record.recipe, record.seed) for record in together]
    assert len(set(tried)) == len(tried)


# ------------------------------------------------------------------------- threads of one process


def summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "search.json").read_text())
    return content | content["thresholds"][0]


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marble_sweep.searches.worker.WAIT_SECONDS", 0.02)
    for name in ("draw_frontier", "write_page"):  # they take longer than such a search
        monkeypatch.setattr(f"marble_sweep.searches.worker.{name}", lambda *_: None)


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_workers_train_at_the_same_time(workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone, together = Pretender(tmp_path / "alone", 1), Pretender(tmp_path / "together", workers)
    assert alone.search.run(alone.train).reason == "settled"
    first = capsys.readouterr().err
    assert together.search.run(together.train, workers).reason == "settled"
    second = capsys.readouterr().err
    expected, found = summary(tmp_path / "alone"), summary(tmp_path / "together")
    assert found["answer"]["size"] == expected["answer"]["size"] == "hidden_dim=4"
    assert found["answer"]["params"] == expected["answer"]["params"]
    assert found["answer"]["confirming_seeds"] == expected["answer"]["confirming_seeds"]
    below = [dict(content["sizes_below"]) for content in (expected, found)]
    assert all(set(statuses) <= {"refuted", "implied"} for statuses in below)  # which of the two, timing decides
    assert sum(below[0].values()) == sum(below[1].values()) == 2
    for text, folder in ((first, "alone"), (second, "together")):
        lines = [line for line in text.splitlines() if re.match(r" *\d+  (probe|confirm|refute)", line)]
        assert len(lines) == summary(tmp_path / folder)["trials"]  # a line a trial
        assert text.count("sizes to search in") == text.count("The question is settled") == 1
    assert f" of {workers} workers together; stopping" in second
    assert "together" not in first.replace(str(tmp_path), "")


def test_an_error_in_one_worker_stops_the_others(tmp_path: Path) -> None:
    pretender = Pretender(tmp_path, 2)
    with pytest.raises(RuntimeError, match="a bug"):
        pretender.search.run(lambda number, _: pretender.fail_first(number), 2)
    assert pretender.stopped.is_set()
    assert summary(tmp_path)["ended"] == "error"
    assert summary(tmp_path)["outcomes"] == {"stale": 2}  # to be retried


def test_ctrl_c_stops_all_workers_and_their_trials_are_retried(tmp_path: Path) -> None:
    pretender = Pretender(tmp_path, 2)
    stopped = []

    def train(number: int, params: Params) -> Path:
        if pretender.at_once.wait(20) == 0:
            signal.raise_signal(signal.SIGINT)
        while not pretender.search.should_stop():
            time.sleep(0.01)
        stopped.append(number)
        raise KeyboardInterrupt

    assert pretender.search.run(train, 2).reason == "interrupted"
    assert sorted(stopped) == [0, 1]
    assert summary(tmp_path)["ended"] == "interrupted"
    again = Pretender(tmp_path, 1)
    assert again.search.run(again.train, 1).reason == "settled"
    assert summary(tmp_path)["answer"]["size"] == "hidden_dim=4"


def test_the_largest_runs_tell_what_fits(tmp_path: Path) -> None:
    largest = Pretender(tmp_path, 1).search.largest()
    assert {config.model.hidden_dim for config in largest} == {8}
    assert [config.optimizer.lr for config in largest] == [0.01, 0.1]


def test_the_bar_has_the_steps_of_all_running_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, terminal = (os.fdopen(end, mode) for end, mode in zip(os.openpty(), ("rb", "w"), strict=True))
    with controller, terminal:
        monkeypatch.setattr(sys, "stderr", terminal)  # elsewhere there is no bar
        view = View(400)
        view.begin("  0  probe    0L4D", lambda: "none certified")
        view.step("  0  probe    0L4D", 150)
        assert (view.bar.n, view.bar.total) == (150, 400)
        view.begin("  1  probe    0L2D", lambda: "none certified")
        view.step("  1  probe    0L2D", 25)
        assert (view.bar.n, view.bar.total, view.bar.desc) == (
            175,
            800,
            "none certified | 0 probe 0L4D | 1 probe 0L2D",
        )
        view.end("  0  probe    0L4D", made_up("certified"), "0L4D certified")
        view.step("  0  probe    0L4D", 150)  # its watch looks once more
        view.step("  1  probe    0L2D", 50)
        assert (view.bar.n, view.bar.total, view.bar.desc) == (50, 400, "0L4D certified | 1 probe 0L2D")
        view.close()


# ------------------------------------------------------------------------- whole processes

SMALL_SEARCH = (
    "hydra/sweeper=smallest",
    *TINY,
    "model.num_layers=0,1",
    "model.hidden_dim=range(2,5)",
    "trainer.total_steps=200",
    "trainer.num_evals=2",
    "search.confirm_seeds=2",
    "device.num_threads=1",
)


@pytest.mark.slow
def test_a_search_side_by_side(tmp_path: Path) -> None:
    """The same answer with the same numbers, whether one trial runs at a time or two."""
    answers = []
    for workers in (1, 2):
        sweep_dir = tmp_path / str(workers)
        words = [*SMALL_SEARCH, f"sweep.workers={workers}", f"hydra.sweep.dir={sweep_dir}"]
        command = [sys.executable, "-m", "marble_sweep", "--multirun", *words]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert ("2 trials at a time, 1 CPU thread each\n" in result.stderr) == (workers == 2)
        found = summary(sweep_dir)["answer"]
        answers.append({key: found[key] for key in ("size", "params", "val_loss", "margin", "step", "confirmed")})
    assert answers[0] == answers[1]
