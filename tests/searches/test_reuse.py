"""search.reuse: which runs stand for trials, which do not and why, and that a search with them is the same search."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pretender
import pytest
from helpers import TINY
from pretender import Pretender

from marble_sweep.checks import CheckError
from marble_sweep.config import dump
from marble_sweep.data.corpus import load_corpus
from marble_sweep.runs.files import write_json, write_text
from marble_sweep.runs.provenance import code_sha256
from marble_sweep.runs.status import read_metadata, run_directories
from marble_sweep.searches import reuse, worker
from marble_sweep.searches.reuse import MAX_SHOWN, reuse_lines
from marble_sweep.searches.study import result_of
from marble_sweep.searches.worker import Params

CORPUS = load_corpus(pretender.BASE.data).sha256


class Whole(Pretender):
    """Its runs have all that is looked at before one is reused."""

    def leave_run(self, number: int, params: Params) -> Path:
        directory = super().leave_run(number, params)
        rows = "".join(f"{step},5.0\n" for step in range(1, 41))
        write_text(directory / "metrics.csv", f"step,loss\n{rows}")
        known = {"code_sha256": code_sha256(), "corpus": {"sha256": CORPUS}}
        write_json(directory / "metadata.json", read_metadata(directory) | known)
        return directory


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which has torch; and without plots."""

    def iterate_here(work: Callable[..., Iterator[Any]], *arguments: Any) -> Iterator[Any]:
        return work(*arguments)

    monkeypatch.setattr(reuse, "iterate_elsewhere", iterate_here)
    for name in ("draw_frontier", "write_page"):
        monkeypatch.setattr(worker, name, lambda *_: None)


def searched(folder: Path, monkeypatch: pytest.MonkeyPatch, *earlier: Path, **settings: Any) -> Whole:
    base = pretender.BASE
    with monkeypatch.context() as patch:
        search = replace(base.search, reuse=list(map(str, earlier)), **settings)
        patch.setattr(pretender, "BASE", replace(base, search=search))
        whole = Whole(folder, 1)
        whole.search.run(whole.train)
    return whole


def summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "search.json").read_text())
    return content


def configurations(whole: Whole) -> list[tuple[int, Any, int, str]]:
    records = whole.search.result().records
    return [(record.size, record.recipe, record.seed, record.outcome) for record in records]


def test_a_search_with_its_own_runs_trains_nothing_and_answers_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = searched(tmp_path / "first", monkeypatch)
    capsys.readouterr()
    second = searched(tmp_path / "second", monkeypatch, tmp_path / "first")
    assert second.started == []
    before, now = summary(tmp_path / "first"), summary(tmp_path / "second")
    assert {*configurations(second)} == {*configurations(first)}
    assert len(configurations(second)) == len(configurations(first))
    (was,), (is_,) = before["thresholds"], now["thresholds"]
    assert is_["answer"]["directory"].startswith(str(tmp_path / "first"))
    for key in ("size", "params", "val_loss", "confirmed", "fresh_seeds"):
        assert is_["answer"][key] == was["answer"][key]
    assert (is_["sizes_below"], now["ended"]) == (was["sizes_below"], "settled")
    assert (now["trials"], now["tokens"], now["reused"]) == (0, 0, before["trials"])
    assert now["tokens_saved"] == {"certified_early": 0, "given_up_early": 0}
    fresh = sum(record.seed > 0 for record in first.search.result().records)
    told = capsys.readouterr().err
    assert f"Reused runs: {before['trials'] - fresh} as trials, {fresh} once the search asks for their" in told
    assert f"The question is settled after 0 trials, {before['trials']} reused runs, 0.0 M tokens" in told
    # The same command again changes nothing.
    again = searched(tmp_path / "second", monkeypatch, tmp_path / "first")
    assert configurations(again) == configurations(second)


def test_fresh_seeds_count_only_once_the_search_asks_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or whoever names the runs could choose which recipe is tested first, knowing the outcome."""
    first = searched(tmp_path / "first", monkeypatch)
    own = {str(record.number) for record in first.search.result().records if record.seed == 0}
    fresh = [path for path in run_directories(tmp_path / "first") if path.name not in own]
    assert fresh
    second = searched(tmp_path / "second", monkeypatch, *fresh)
    assert configurations(second) == configurations(first)
    reused = [bool(result_of(trial).get("reused")) for trial in second.search.result().trials]
    assert reused == [record.seed > 0 for record in second.search.result().records]
    assert second.search.result().num_trials() == len(own)
    tokens = [result_of(trial)["tokens"] for trial in second.search.result().trials]
    assert second.search.result().tokens() == sum(value for value, was in zip(tokens, reused, strict=True) if not was)


def test_reused_runs_do_not_count_for_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched(tmp_path / "first", monkeypatch, n_trials=3)
    assert summary(tmp_path / "first")["ended"] == "n_trials"
    second = searched(tmp_path / "second", monkeypatch, tmp_path / "first", n_trials=3)
    assert len(second.started) == 3
    now = summary(tmp_path / "second")
    assert (now["trials"], now["reused"], now["ended"]) == (3, 3, "n_trials")


# ------------------------------------------------------------------------------------------------- refused


def rewritten(path: Path, pattern: str, replacement: str) -> None:
    text = path.read_text()
    assert re.search(pattern, text)
    path.write_text(re.sub(pattern, replacement, text))


def edit_metadata(directory: Path, **values: Any) -> None:
    write_json(directory / "metadata.json", read_metadata(directory) | values)


REASONS: dict[str, tuple[Callable[[Path], object], str]] = {
    "interrupted": (lambda run: edit_metadata(run, status="interrupted"), "its status is interrupted"),
    "damaged": (lambda run: (run / "evals.csv").write_bytes(b"\xff"), "evals.csv "),
    "budget": (
        lambda run: rewritten(run / "config.yaml", "total_steps: 40", "total_steps: 80"),
        "its trainer.total_steps is 80, here 40",
    ),
    "threshold": (
        lambda run: rewritten(run / "config.yaml", "threshold: '5.0'", "threshold: unigram"),
        "its certify.threshold is unigram, here 5.0",
    ),
    "size": (
        lambda run: rewritten(run / "config.yaml", "hidden_dim: [0-9]+", "hidden_dim: 12"),
        "its size is not searched: model.hidden_dim=12",
    ),
    "recipe": (
        lambda run: rewritten(run / "config.yaml", "lr: [0-9.]+", "lr: 0.05"),
        "its optimizer.lr is 0.05, which the search does not try",
    ),
    "seed": (
        lambda run: rewritten(run / "config.yaml", "seed: 42", "seed: 7"),
        "its seed, 7, is neither the search's (42) nor one of its fresh seeds",
    ),
    "code": (lambda run: edit_metadata(run, code_sha256="0" * 64), "its code was 000000000000, now "),
    "data": (lambda run: edit_metadata(run, corpus={"sha256": "1" * 64}), "its data was 111111111111, now "),
}


@pytest.mark.parametrize("case", REASONS)
def test_a_run_that_is_no_trial_of_the_search_says_why(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change, reason = REASONS[case]
    earlier = searched(tmp_path / "first", monkeypatch, n_trials=1)
    change(tmp_path / "first" / str(earlier.started[0]))
    searched(tmp_path / "second", monkeypatch, tmp_path / "first", n_trials=1)
    told = capsys.readouterr().err
    assert "Reused runs: 0 as trials, 0 once" in told
    assert f"  not reused: {tmp_path}/first/{earlier.started[0]}: {reason}" in told
    assert summary(tmp_path / "second")["reused"] == 0


def test_a_second_run_of_the_same_trial_is_not_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "copy"):
        searched(tmp_path / name, monkeypatch, n_trials=1)
    searched(tmp_path / "second", monkeypatch, tmp_path / "first", tmp_path / "copy", n_trials=1)
    assert f"the same trial as {tmp_path}/first/0" in capsys.readouterr().err
    assert summary(tmp_path / "second")["reused"] == 1


def test_a_path_without_runs_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckError, match=r"search\.reuse = .*nowhere: must be a run directory or a folder of them"):
        searched(tmp_path / "search", monkeypatch, tmp_path / "nowhere")
    assert not (tmp_path / "search").exists()


def test_a_run_that_has_gone_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker's machine may not reach it."""
    first = searched(tmp_path / "first", monkeypatch)
    fresh = {str(record.number) for record in first.search.result().records if record.seed > 0}
    real = reuse.find_reusable

    def find_and_lose(*arguments: Any) -> Any:
        found = real(*arguments)
        for path in fresh:
            os.rename(tmp_path / "first" / path, tmp_path / path)
        return found

    monkeypatch.setattr(worker, "find_reusable", find_and_lose)
    second = searched(tmp_path / "second", monkeypatch, tmp_path / "first")
    assert len(second.started) == len(fresh)
    assert {*configurations(second)} == {*configurations(first)}


def test_only_some_of_many_reasons_are_shown() -> None:
    refused = {Path(str(number)): "no\nreason" for number in range(MAX_SHOWN + 2)}
    lines = reuse_lines([], refused)
    assert len(lines) == 1 + MAX_SHOWN + 1
    assert lines[1] == "  not reused: 0: no reason"
    assert lines[-1] == "  nor are 2 more"


def test_the_config_of_a_run_says_all_that_is_compared() -> None:
    settings = reuse.settings_of(pretender.BASE)
    assert {"certify.stop", "certify.threshold", "trainer.eval_part", "trainer.total_steps", "seed"} <= settings.keys()
    assert not any(key.startswith(("data.", "device.", "search.")) for key in settings)
    assert "search" not in dump(pretender.BASE).split()


# ------------------------------------------------------------------------------------------------- real runs

SEARCH = (
    "hydra/sweeper=smallest",
    *TINY,
    "model.num_layers=0,1",
    "optimizer.lr=0.1,0.3",
    "certify.threshold=4.0",
    "trainer.checkpoint_interval=40",
    "search.confirm_seeds=2",
    "sweep.workers=1",
)


def command_line(folder: Path, *overrides: str) -> str:
    """Search in a process; returns what it said."""
    words = [sys.executable, "-m", "marble_sweep", "--multirun", *SEARCH, *overrides, f"hydra.sweep.dir={folder}"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stderr


@pytest.mark.slow
def test_a_wider_search_reuses_the_runs_of_a_narrower_one_by_any_cost_and_keeps_no_tensors(tmp_path: Path) -> None:
    """Seconds per step are measured in a process of their own, once; a resumption trains and measures nothing."""
    first, second = tmp_path / "first", tmp_path / "second"
    command_line(first, "model.hidden_dim=2,3")
    reuse_first = f"search.reuse=[{first}]"
    settings = ("model.hidden_dim=2,3,4", reuse_first, "search.keep=none", "search.minimise=seconds_per_step")
    told = command_line(second, *settings)
    assert "Measuring the seconds per step of 6 sizes, before the first trial" in told
    assert "Reused runs: " in told
    assert "not reused" not in told
    now = summary(second)
    assert now["reused"] > 0
    assert now["ended"] == "settled"
    costs = {row["size"]: row["cost"] for of in now["thresholds"] for row in of["frontier"]}
    assert all(cost > 0 for cost in costs.values())
    names = ("model.safetensors", "state.safetensors", "checkpoints.safetensors")
    assert not [path for name in names for path in second.rglob(name)]
    assert len([*first.rglob("model.safetensors")]) == len([*run_directories(first)])
    again = command_line(second, *settings)
    assert "Measuring" not in again
    assert summary(second)["thresholds"] == now["thresholds"]
