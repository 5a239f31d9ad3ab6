"""`python -m marble_sweep.sample` on a finished run."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bounds import gamma
from helpers import tiny_config

from marble_sweep.run import run
from marble_sweep.sample import generate, load_run, next_log_probs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trained") / "run"
    run(tiny_config("trainer.total_steps=200"), directory)
    return directory


def sample(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "marble_sweep.sample", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_generation_is_seeded_and_follows_the_chain(trained: Path) -> None:
    model, tokenizer = load_run(trained)
    prompt = tokenizer.encode("t1 t2").ids
    first, again = (list(generate(model, prompt, 30, 1.0, seed=3)) for _ in range(2))
    assert first == again != list(generate(model, prompt, 30, 1.0, seed=4))
    # 64 probabilities, each off by the rounding of its logarithm of up to 16, and their sum.
    total = next_log_probs(model, prompt).exp().sum().item()
    assert total == pytest.approx(1, abs=gamma(2 * 16 + 2 * 64))
    greedy = list(generate(model, prompt, 1, 0.0, seed=0))
    assert greedy == [int(next_log_probs(model, prompt).argmax())]


def test_only_the_last_window_is_seen(trained: Path) -> None:
    model, _ = load_run(trained)
    tail = list(range(16))
    assert torch.equal(next_log_probs(model, [5, 6, 7, *tail]), next_log_probs(model, tail))


def test_the_door_writes_and_compares(trained: Path) -> None:
    written = sample(str(trained), "--prompt", "t1 t2", "--tokens", "5").stdout
    assert written.startswith("t1 t2 ")
    assert len(written.split()) == 7
    table = sample(str(trained), "--prompt", "t1", "--top", "3").stdout.splitlines()
    assert table[0].split() == ["model", "unigram"]
    assert len(table) == 4


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["/nowhere", "--prompt", "x"], "RUN_DIR = /nowhere: must be a run directory with a config.yaml"),
        (["RUN", "--prompt", ""], "--prompt = '': must be text of at least one token"),
        (["RUN", "--prompt", "t1", "--top", "0"], "--top = 0: must be in [1, 64]"),
        (["RUN", "--prompt", "t1", "--temperature", "-1"], "--temperature = -1.0: must be >= 0"),
    ],
)
def test_wrong_input_is_one_clear_line(arguments: list[str], line: str, trained: Path) -> None:
    result = sample(*[str(trained) if each == "RUN" else each for each in arguments])
    assert result.returncode == 2
    assert result.stderr == f"marble_sweep.sample: {line}\n"
