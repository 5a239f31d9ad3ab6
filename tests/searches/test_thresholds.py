"""Several thresholds in one study: what every one of them sees of the trials, and trials that are continued."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import TINY, compose_config, tiny_config
from optuna.storages import InMemoryStorage
from optuna.trial import Trial
from safetensors.torch import load_file
from studies import made_up, small_space

from marble_sweep.config import Config
from marble_sweep.run import run
from marble_sweep.runs.run import Run
from marble_sweep.runs.status import RunStatus, read_metadata, run_directories
from marble_sweep.searches.outcome import SearchResult
from marble_sweep.searches.pass_rate import PassRate
from marble_sweep.searches.strategy import Proposal, Settled, Wait
from marble_sweep.searches.study import Result, Snapshot, open_study
from marble_sweep.searches.thresholds import as_seen_by, trial_settings
from marble_sweep.searches.trial_record import Standing, TrialRecord
from marble_sweep.sweeps.child import assign_run_dir, copy_run

SPACE = small_space()
STEPS = (50, 71, 100)
SMALLEST = {"unigram": 2, "2.5": 4, "bigram": 6}  # the first size that certifies
CERTIFIED_AT = {"unigram": 50, "2.5": 71, "bigram": 100}


def record(number: int, outcome: str, threshold: str, **standings: str | None) -> TrialRecord:
    """A trial of one size and recipe; of an ended one, how it stands towards each threshold."""
    found = {name: Standing(value, {50: 0.1}) for name, value in standings.items()}
    return TrialRecord(number, 0, (0.0,), 0, outcome, {50: 0.2}, threshold, found)


def test_a_trial_counts_only_for_the_thresholds_that_its_evaluations_decide() -> None:
    records = [record(0, "certified", "unigram", unigram="certified", bigram=None)]
    (seen,) = as_seen_by("unigram", records)
    assert (seen.outcome, seen.margins) == ("certified", {50: 0.1})
    assert as_seen_by("bigram", records) == []
    continued = [*records, record(1, "below", "bigram", unigram="certified", bigram="below")]
    assert [seen.number for seen in as_seen_by("unigram", continued)] == [0]  # it was decided before
    assert [(seen.number, seen.outcome) for seen in as_seen_by("bigram", continued)] == [(1, "below")]


def test_a_trial_that_runs_for_another_threshold_is_awaited_and_a_stale_one_left_to_it() -> None:
    running = [record(0, "running", "unigram")]
    assert [(seen.outcome, seen.margins) for seen in as_seen_by("bigram", running)] == [("running", {})]
    assert as_seen_by("unigram", running) == running
    stale = [record(0, "stale", "unigram")]
    assert as_seen_by("bigram", stale) == []
    assert as_seen_by("unigram", stale) == stale
    decided = [record(0, "certified", "unigram", unigram="certified", bigram=None), record(1, "running", "bigram")]
    assert [seen.number for seen in as_seen_by("unigram", decided)] == [0]
    assert [seen.number for seen in as_seen_by("bigram", decided)] == [1]


def trained(plan: Proposal) -> Result:
    """The planted world: how the run of a plan ends, and how it then stands towards every threshold."""
    own = plan.size >= SMALLEST[plan.threshold]
    last = CERTIFIED_AT[plan.threshold] if own else STEPS[-1]
    entries = {}
    for name in SMALLEST:
        certified = plan.size >= SMALLEST[name] and CERTIFIED_AT[name] <= last
        outcome = "certified" if certified else "below" if last == STEPS[-1] else None
        margin = 0.2 if certified else -0.1
        shown = made_up("certified", step=CERTIFIED_AT[name] if certified else last, margin=margin)
        fields = {key: getattr(shown, key) for key in ("val_loss", "margin", "margin_se", "step")}
        shortfalls = {step: -0.1 if certified and step == CERTIFIED_AT[name] else 0.3 for step in STEPS if step <= last}
        entries[name] = fields | {"outcome": outcome, "shortfalls": shortfalls}
    result = made_up("certified" if own else "below", step=last, margin=entries[plan.threshold]["margin"])
    return dataclasses.replace(result, thresholds=entries)


def searched(*thresholds: str, workers: int = 1) -> tuple[SearchResult, list[tuple[Proposal, Result]]]:
    """A search in the planted world, and its trials in order; several workers end their trials in turn."""
    budget = ("trainer.total_steps=100", "trainer.num_evals=3", "trainer.eval_spacing=geometric", "certify.stop=true")
    base = tiny_config(*budget, "search.n_trials=2000", f"search.thresholds=[{','.join(thresholds)}]")

    def result_of(now: Snapshot) -> SearchResult:
        return SearchResult(SPACE, base, now.trials, [], recorded=now.records)

    def decide(now: Snapshot) -> Proposal | Wait | Settled:
        return result_of(now).decision

    shared = open_study(InMemoryStorage(), "test", SPACE, decide, {}, timeout=60.0)
    running: list[tuple[Trial, Proposal]] = []
    done: list[tuple[Proposal, Result]] = []
    while True:
        asked = shared.ask() if len(running) < workers else None
        if asked is not None:
            running.append(asked)
        elif running:
            trial, plan = running.pop(0)
            result = trained(plan)
            for step, shortfall in result.thresholds[plan.threshold]["shortfalls"].items():  # type: ignore[index]
                trial.report(shortfall, step)
            shared.tell(trial, result, SPACE.sizes[plan.size].num_parameters, None)
            done.append((plan, result))
        else:
            return result_of(shared.snapshot()), done


@pytest.mark.parametrize(
    ("names", "workers"),
    [
        (("unigram", "bigram"), 1),
        (("bigram", "unigram"), 1),
        (("unigram", "2.5", "bigram"), 3),
        pytest.param(("unigram", "bigram"), 3, marks=pytest.mark.slow),
        pytest.param(("bigram", "unigram"), 3, marks=pytest.mark.slow),
        pytest.param(("unigram", "2.5", "bigram"), 1, marks=pytest.mark.slow),
    ],
)
def test_all_thresholds_together_have_the_answers_of_each_alone(names: tuple[str, ...], workers: int) -> None:
    result, done = searched(*names, workers=workers)
    summary = result.as_json("settled")
    assert [threshold["threshold"] for threshold in summary["thresholds"]] == list(names)
    for threshold in summary["thresholds"]:
        alone = searched(threshold["threshold"])[0].as_json("settled")["thresholds"][0]["answer"]
        answer = threshold["answer"]
        assert answer["confirmed"]
        assert answer["size"] == alone["size"] == str(SPACE.sizes[SMALLEST[threshold["threshold"]]])
        assert f"certify.threshold={threshold['threshold']}" in answer["command"].split()
    text = "\n".join(summary["summary_lines"])
    assert text.count("The smallest certified size: ") == text.count("To train it for ") == len(names)
    # A configuration is trained again only for a threshold that its earlier trials leave open.
    decided: dict[tuple[int, tuple[float, ...], int], set[str]] = {}
    for plan, ended in done:
        shown = decided.setdefault((plan.size, plan.recipe, plan.seed), set())
        assert plan.threshold not in shown
        shown |= {name for name, entry in (ended.thresholds or {}).items() if entry["outcome"] is not None}
    assert result.num_trials() == len(decided)
    whole: dict[tuple[int, tuple[float, ...], int], int] = {}  # what was continued is not counted twice
    for plan, ended in done:
        whole[plan.size, plan.recipe, plan.seed] = ended.tokens
    assert result.tokens() == sum(whole.values())
    assert (len(whole) < len(done)) == (names[0] == "unigram")  # the other way round nothing is left to continue


def test_a_threshold_that_is_settled_is_told_so_though_the_search_was_cut_short() -> None:
    result, done = searched("unigram", "bigram")
    first = next(number for number, (plan, _) in enumerate(done) if plan.threshold == "bigram")
    begun = dataclasses.replace(
        result, trials=result.trials[: first + 1], recorded=(result.recorded or [])[: first + 1]
    )
    text = "\n".join(begun.as_json("max_minutes")["summary_lines"])
    assert f"The smallest certified size: {SPACE.sizes[SMALLEST['unigram']]}" in text
    assert text.count("The smallest certified size so far: ") <= 1


def test_all_thresholds_together_have_the_asked_confidence() -> None:
    """By the union bound: three claims of 1 - 0.05 / 3 hold together with 0.95."""
    standard = searched("unigram")[0].standard
    assert standard == PassRate(0.8, 0.95)
    together = SearchResult(SPACE, tiny_config("search.thresholds=[unigram,bigram,2.5]"), [], []).standard
    assert isinstance(together, PassRate)
    assert math.isclose(3 * (1 - together.confidence), 0.05, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("[]", r"search\.thresholds = \[\]: must be null, or one threshold or more"),
        ("[unigram,unigrams]", r"search\.thresholds = unigrams: must be unigram, oracle, bigram, or a loss > 0"),
        ("[5,5.0]", r"search\.thresholds = \['5', '5\.0'\]: must be different ones"),
    ],
)
def test_thresholds_are_checked(value: str, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        tiny_config(f"search.thresholds={value}")


# ------------------------------------------------------------------ real runs

PLAN = Proposal(0, (0.0,), 0, "probe")
STOPPING = ("certify.stop=true", "trainer.num_evals=4", "trainer.checkpoint_interval=10")


def trial_config(threshold: str, seed: int = 1) -> Config:
    """A trial's config in a search for two numbers: every model is below 30 nats, and none of these soon below 3.3."""
    base = tiny_config("search.thresholds=[30,3.3]")
    settings = trial_settings(base, dataclasses.replace(PLAN, threshold=threshold))
    return compose_config(*TINY, *STOPPING, f"seed={seed}", *(f"{key}={value}" for key, value in settings.items()))


def train(threshold: str, sweep_dir: Path, number: int, seed: int = 1) -> Path:
    config = trial_config(threshold, seed)
    directory, done = assign_run_dir(config, sweep_dir, number)
    assert not done
    run(config, directory, resume=True, show=False)
    return directory


def test_a_trial_that_ended_early_is_continued_for_a_harder_threshold(tmp_path: Path) -> None:
    """It ends with the very numbers of a trial that was trained for that threshold from the start."""
    first = train("30", tmp_path / "search", 0)
    before = {path.name: path.read_bytes() for path in first.iterdir() if path.is_file()}
    metadata = read_metadata(first)
    assert (metadata["status"], metadata["step"]) == (RunStatus.CERTIFIED, 10)
    continued, alone = train("3.3", tmp_path / "search", 1), train("3.3", tmp_path / "alone", 0)
    assert read_metadata(continued)["continued_from"] == first.name
    assert {path.name: path.read_bytes() for path in first.iterdir() if path.is_file()} == before  # it stays as it was
    timing = ["tokens_per_second"]
    ours, theirs = (Run.read(path).steps.table().drop(columns=timing) for path in (continued, alone))
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    for name in ("model.safetensors", "checkpoints.safetensors"):
        tensors, expected = load_file(continued / name), load_file(alone / name)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[key], expected[key]) for key in tensors)
    steps = [[row["step"] for row in Run.read(path).evals] for path in (continued, alone)]
    assert steps[0] == steps[1] == [10, 20, 30, 40][: len(steps[0])]
    assert len(steps[0]) > 2
    assert read_metadata(continued)["status"] == read_metadata(alone)["status"]


def test_only_a_run_that_differs_in_its_threshold_alone_is_continued(tmp_path: Path) -> None:
    train("30", tmp_path, 0)
    directory = train("3.3", tmp_path, 1, seed=2)
    assert "continued_from" not in read_metadata(directory)


def test_a_copy_that_goes_on_has_no_lifecycle_of_the_shorter_record(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    for name in ("lifecycle.parquet", "state.safetensors"):
        (tmp_path / "0" / name).touch()
    copied = copy_run(tmp_path / "0", "seed: 1", tmp_path, 1)
    assert {path.name for path in copied.iterdir()} == {"state.safetensors", "config.yaml", "metadata.json"}


def test_a_copy_that_a_kill_left_half_made_is_made_anew(tmp_path: Path) -> None:
    train("30", tmp_path, 0)
    half = tmp_path / ".continuing" / "1"
    half.mkdir(parents=True)
    (half / "metrics.csv").write_text("half a file")
    assert read_metadata(train("3.3", tmp_path, 1))["continued_from"] == "0"
    assert not half.exists()


def search_two(directory: Path, *overrides: str) -> dict[str, Any]:
    """Search for two thresholds in a process; returns search.json.

    Width 2 is soon below 3.9 nats, and never below this chain's unigram of 3.52; width 3 is below both.
    """
    source = ("data=markov", "data.vocab_size=64", "data.num_tokens=120000", "data.val_fraction=0.3")
    model = ("model.num_layers=0", "model.hidden_dim=2,3", "optimizer.lr=0.05,0.1")
    budget = ("trainer.total_steps=60", "trainer.num_evals=5", "trainer.batch_size=16", "trainer.seq_len=16")
    asked = ("search.thresholds=[3.9,unigram]", "search.confirm_seeds=2", f"hydra.sweep.dir={directory}", *overrides)
    command = [sys.executable, "-m", "marble_sweep", "--multirun", "hydra/sweeper=smallest"]
    done = subprocess.run([*command, *source, *model, *budget, *asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads((directory / "search.json").read_text())
    return summary


@pytest.mark.slow
def test_a_search_for_two_thresholds_from_the_command_line(tmp_path: Path) -> None:
    summary = search_two(tmp_path)
    answers = {entry["threshold"]: entry["answer"] for entry in summary["thresholds"]}
    assert summary["ended"] == "settled"
    assert {name: (answer["size"], answer["confirmed"]) for name, answer in answers.items()} == {
        "3.9": ("hidden_dim=2", True),
        "unigram": ("hidden_dim=3", True),
    }
    continued = [path for path in run_directories(tmp_path) if "continued_from" in read_metadata(path)]
    assert continued
    for path in continued:
        first = tmp_path / read_metadata(path)["continued_from"]
        for name in ("metrics.csv", "evals.csv", "window_losses.csv"):
            assert (path / name).read_text().startswith((first / name).read_text())
        assert Run.read(path).config["certify.threshold"] == "unigram"
    runs = list(run_directories(tmp_path))
    assert summary["trials"] == len(runs) - len(continued)
    steps = {path.name: read_metadata(path)["step"] for path in runs}
    replaced = {read_metadata(path)["continued_from"] for path in continued}
    assert summary["tokens"] == 256 * sum(step for name, step in steps.items() if name not in replaced)


@pytest.mark.slow
def test_a_reused_run_is_continued_for_a_harder_threshold(tmp_path: Path) -> None:
    """Its numbers and the answer are those of a search that trains everything."""
    first, second, whole = (tmp_path / name for name in ("first", "second", "whole"))
    assert search_two(first, "sweep.workers=1", "search.n_trials=3")["ended"] == "n_trials"
    now, expected = search_two(second, "sweep.workers=1", f"search.reuse=[{first}]"), search_two(whole)
    assert now["reused"] == 3
    assert set(now["reused_runs"]) == {str(path) for path in run_directories(first)}
    for ours, theirs in zip(now["thresholds"], expected["thresholds"], strict=True):
        assert {key: ours["answer"][key] for key in ("size", "val_loss", "margin", "confirming_seeds")} == {
            key: theirs["answer"][key] for key in ("size", "val_loss", "margin", "confirming_seeds")
        }
    origins = {path: read_metadata(path).get("continued_from", "") for path in run_directories(second)}
    continued = {path: Path(origin) for path, origin in origins.items() if Path(origin).is_absolute()}
    assert continued
    for path, origin in continued.items():
        assert origin.parent == first
        assert read_metadata(origin)["status"] == RunStatus.CERTIFIED  # as it was
        for name in ("metrics.csv", "evals.csv", "window_losses.csv"):
            assert (path / name).read_text().startswith((origin / name).read_text())
    rows = pd.read_csv(second / "summary.csv")
    assert {str(first), str(second)} == {str(Path(run).parent) for run in rows["run"]}
