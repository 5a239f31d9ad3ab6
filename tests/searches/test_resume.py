"""A search of one worker, as a process: interrupted and continued, refused, crashing, too slow."""

import csv
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers import TINY
from optuna.trial import FrozenTrial, TrialState

from marble_sweep.runs.status import read_metadata, run_directories
from marble_sweep.searches.storage import open_storage
from marble_sweep.searches.study import SPEED

pytestmark = pytest.mark.slow  # whole searches, each in a process of its own

STEPS = 800
# Two sizes and one recipe. Nothing reaches the threshold, and two evaluations are too few to prune a run.
TWO_TRIALS = (
    "hydra/sweeper=smallest",
    *TINY,
    "model.num_layers=0,1",
    "model.hidden_dim=2",
    "certify.threshold=0.1",
    "trainer.num_evals=2",
    "trainer.checkpoint_interval=10000",
    "search.n_trials=2",
    "search.confirm_seeds=3",
    "sweep.workers=1",  # one trial after the other
)
LONG = (*TWO_TRIALS, f"trainer.total_steps={STEPS}", "trainer.state_interval=0.3")
LOOKS = [566, 800]


def command(sweep_dir: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "marble_sweep", "--multirun", *overrides, f"hydra.sweep.dir={sweep_dir}"]


def search(sweep_dir: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(sweep_dir, *overrides), capture_output=True, text=True, check=False)


def trials(sweep_dir: Path) -> list[FrozenTrial]:
    return optuna.load_study(storage=open_storage(str(sweep_dir / "study.log")), study_name="smallest").get_trials()


def summary(sweep_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((sweep_dir / "search.json").read_text())
    return content | content["thresholds"][0]


def steps(directory: Path) -> list[int]:
    with (directory / "metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_search_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    sweep_dir = tmp_path / "search"
    process = subprocess.Popen(command(sweep_dir, *LONG), stderr=subprocess.PIPE, text=True)
    wait_for(sweep_dir / "1" / "metrics.csv", process)
    process.send_signal(number)
    _, told = process.communicate(timeout=120)
    words = command(sweep_dir, *LONG)
    if number == signal.SIGINT:
        assert process.returncode == 130, told
        assert read_metadata(sweep_dir / "1")["status"] == "interrupted"
        assert summary(sweep_dir)["ended"] == "interrupted"
        assert (sweep_dir / "1" / "state.safetensors").exists()
        words = [sys.executable, *shlex.split(told.rpartition("To go on:\n")[2])[1:]]
    # After a SIGKILL this starts at once, while the orphaned run may still save its state.
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr

    first, stale, retry = trials(sweep_dir)
    assert [trial.state for trial in (first, stale, retry)] == [
        TrialState.COMPLETE,
        TrialState.FAIL,
        TrialState.COMPLETE,
    ]
    assert [Path(trial.user_attrs["result"]["directory"]).name for trial in (first, retry)] == ["0", "1"]
    assert stale.user_attrs["plan"]["size"] == retry.user_attrs["plan"]["size"]
    assert [sorted(trial.intermediate_values) for trial in (first, retry)] == [LOOKS, LOOKS]
    assert [path.name for path in run_directories(sweep_dir)] == ["0", "1"]
    assert steps(sweep_dir / "1") == list(range(1, STEPS + 1))
    outcome = summary(sweep_dir)
    assert outcome["ended"] == "settled"
    assert outcome["trials"] == 2
    assert outcome["tokens"] == 2 * STEPS * 8 * 16
    assert len((sweep_dir / "summary.csv").read_text().splitlines()) == 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sweep_dir = tmp_path_factory.mktemp("finished") / "search"
    result = search(sweep_dir, *TWO_TRIALS)
    assert result.returncode == 0, result.stderr
    return sweep_dir


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.num_layers=0,2", "must have the space it began with: model.num_layers was "),
        ("certify.threshold=0.2", "must have the config it began with: certify.threshold was 0.1, now 0.2"),
        ("trainer.total_steps=41", "must have the config it began with: trainer.total_steps was 40, now 41"),
        ("optimizer.weight_decay=0.5", "must have the config it began with: optimizer.weight_decay was 0.01, now 0.5"),
        ("precision=fp32", "must have the config it began with: precision.name was bf16, now fp32"),
    ],
)
def test_another_search_in_the_same_directory_is_refused(override: str, line: str, finished: Path) -> None:
    before = trials(finished)
    result = search(finished, *TWO_TRIALS, override)
    assert result.returncode == 2
    assert result.stderr.startswith(f"marble_sweep: search.study = smallest: {line}"), result.stderr
    assert result.stderr.count("\n") == 1
    assert trials(finished) == before


def test_a_settled_search_trains_nothing_more(finished: Path) -> None:
    before = trials(finished)
    result = search(finished, *TWO_TRIALS)
    assert result.returncode == 0
    assert trials(finished) == before
    assert "The question is settled after 2 trials" in result.stderr


def test_a_search_that_ends_in_an_error_says_so(tmp_path: Path) -> None:
    """The full disk is simulated: on a real one there may be no room left for the message."""
    code = (
        "from marble_sweep.hydra_app.main import main; from marble_sweep.searches.worker import Search\n"
        "def full(*_): raise OSError(28, 'No space left on device', 'study.log')\n"
        "Search._train = full; main()"
    )
    words = [sys.executable, "-c", code, *command(tmp_path / "search", *TWO_TRIALS)[3:]]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert "It ended in an error after 1 trial" in result.stderr
    assert "interrupted" not in result.stderr
    assert result.stderr.endswith("marble_sweep: [Errno 28] No space left on device: 'study.log'\n")
    assert summary(tmp_path / "search")["ended"] == "error"


def test_crashes_end_a_search(tmp_path: Path) -> None:
    # More windows a batch than the corpus has: known only once the corpus is there.
    result = search(tmp_path / "search", *TWO_TRIALS, "trainer.batch_size=100000", "sweep.max_failures=1")
    assert result.returncode == 1, result.stderr
    (trial,) = trials(tmp_path / "search")
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["outcome"] == "failed"
    assert "must have 1,600,000 tokens to train on (trainer.batch_size=100000" in trial.user_attrs["result"]["reason"]
    assert summary(tmp_path / "search")["ended"] == "max_failures"
    assert "sweep.max_failures trials crashed after 1 trial" in result.stderr


def test_a_missing_corpus_stops_a_search_at_the_first_trial(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    words = (
        *(override for override in TWO_TRIALS if not override.startswith("data")),
        "data=text",
        f"data.path={text}",
    )
    words = (*words, "data.vocab_size=300")
    result = search(tmp_path / "search", *words)
    assert result.returncode == 1
    greeting, _, error = result.stderr.splitlines()
    assert greeting.startswith("2 sizes to search in ")
    assert error.startswith(f"marble_sweep: data.path = '{text}': must be a file")
    (trial,) = trials(tmp_path / "search")
    assert trial.user_attrs["outcome"] == "failed"
    assert summary(tmp_path / "search")["error"] == error.removeprefix("marble_sweep: ")
    # Once it is there, the same command tries what crashed again, and goes on to the end.
    text.write_text("\n\n".join(f"paragraph {number} is about the number {number * 7919}" for number in range(3000)))
    result = search(tmp_path / "search", *words)
    assert result.returncode == 0, result.stderr
    assert "The question is settled after 2 trials" in result.stderr
    assert summary(tmp_path / "search")["error"] is None


def test_a_trial_that_crashes_twice_fails_the_search(tmp_path: Path) -> None:
    sweep_dir = tmp_path / "search"
    (sweep_dir / "1" / "checkpoints.safetensors").mkdir(parents=True)  # where a file is to be written
    result = search(sweep_dir, *TWO_TRIALS)
    assert result.returncode == 1, result.stderr
    first, crash, retry = trials(sweep_dir)
    assert [trial.user_attrs["outcome"] for trial in (first, crash, retry)] == ["below", "failed", "failed"]
    outcome = summary(sweep_dir)
    size = crash.user_attrs["size"]
    assert outcome["ended"] == "crashed"
    assert [(crash["size"], crash["trials"]) for crash in outcome["crashes"]] == [(size, [1, 2])]
    assert outcome["sizes_below"] == {"refuted": 1, "crashed": 1}
    assert f"The question is not settled: 1 size crashed: {size} (trials 1 and 2: CheckError: " in result.stderr
    assert "The question is settled" not in result.stderr
    (sweep_dir / "1" / "checkpoints.safetensors").rmdir()
    result = search(sweep_dir, *TWO_TRIALS)
    assert result.returncode == 0, result.stderr
    assert summary(sweep_dir)["ended"] == "settled"
    assert summary(sweep_dir)["crashes"] == []


def test_what_is_too_slow_is_ruled_out(tmp_path: Path) -> None:
    result = search(tmp_path / "search", *TWO_TRIALS, "certify.min_steps_per_minute=1e12")
    assert result.returncode == 0, result.stderr
    tried = trials(tmp_path / "search")
    assert len(tried) == 2
    for trial in tried:
        assert trial.state == TrialState.PRUNED
        assert trial.user_attrs["outcome"] == "too_slow"
        assert trial.user_attrs["result"]["step"] == 28  # the first evaluation
        assert trial.constraints[SPEED] > 1e11
    assert summary(tmp_path / "search")["answer"] is None


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until the file has rows, or the process has ended."""
    while process.poll() is None and not (path.exists() and path.read_text().count("\n") > 1):
        time.sleep(0.02)
