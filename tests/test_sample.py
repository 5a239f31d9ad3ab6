"""`python -m marble_sweep.sample` on a finished run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bounds import gamma
from helpers import tiny_config
from safetensors.torch import load_file, save, save_file

from marble_sweep.run import run
from marble_sweep.sample import generate, load_model, main, next_log_probs, read_tokenizer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trained") / "run"
    run(tiny_config("trainer.total_steps=200"), directory)
    return directory


def sample(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "marble_sweep.sample", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_generation_is_seeded_and_follows_the_chain(trained: Path) -> None:
    model, tokenizer = load_model(trained), read_tokenizer(trained, 64)
    prompt = tokenizer.encode("t1 t2").ids
    first, again = (list(generate(model, prompt, 30, 1.0, seed=3)) for _ in range(2))
    assert first == again != list(generate(model, prompt, 30, 1.0, seed=4))
    # 64 probabilities, each off by the rounding of its logarithm of up to 16, and their sum.
    total = next_log_probs(model, prompt).exp().sum().item()
    assert total == pytest.approx(1, abs=gamma(2 * 16 + 2 * 64))
    greedy = list(generate(model, prompt, 1, 0.0, seed=0))
    assert greedy == [int(next_log_probs(model, prompt).argmax())]


def test_only_the_last_window_is_seen(trained: Path) -> None:
    model = load_model(trained)
    tail = list(range(16))
    assert torch.equal(next_log_probs(model, [5, 6, 7, *tail]), next_log_probs(model, tail))


@pytest.mark.slow
def test_the_door_writes_and_compares(trained: Path) -> None:
    written = sample(str(trained), "--prompt", "t1 t2", "--tokens", "5").stdout
    assert written.startswith("t1 t2 ")
    assert len(written.split()) == 7
    table = sample(str(trained), "--prompt", "t1", "--top", "3").stdout.splitlines()
    assert table[0].split() == ["model", "unigram"]
    assert len(table) == 4


@pytest.mark.parametrize("temperature", [1e-40, 1e-320, 5e-324])
def test_a_tiny_temperature_takes_the_likeliest(trained: Path, temperature: float) -> None:
    model, tokenizer = load_model(trained), read_tokenizer(trained, 64)
    prompt = tokenizer.encode("t1 t2").ids
    assert list(generate(model, prompt, 10, temperature, seed=5)) == list(generate(model, prompt, 10, 0.0, seed=5))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which a command line is refused."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("marble_sweep.sample: ")
    assert printed.err.count("\n") == 1
    return printed.err.removeprefix("marble_sweep.sample: ").rstrip("\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["/nowhere", "--prompt", "x"], "RUN_DIR = /nowhere: must be a run directory with a config.yaml"),
        (["/no\x1b[31m", "--prompt", "x"], r"RUN_DIR = '/no\x1b[31m': must be a run directory with a config.yaml"),
        (["RUN", "--prompt", ""], "prompt = '': must be text of at least one token"),
        (["RUN", "--prompt", os.fsdecode(b"caf\xe9")], r"prompt = 'caf\udce9': must be UTF-8"),
        (["RUN", "--prompt", "t1", "--top", "0"], "top = 0: must be in [1, 64]"),
        (["RUN", "--prompt", "t1", "--top", "65"], "top = 65: must be in [1, 64]"),
        (["RUN", "--prompt", "t1", "--tokens", "-1"], "tokens = -1: must be >= 0"),
        (["RUN", "--prompt", "t1", "--seed", "-1"], "seed = -1: must be in [0, 2^63)"),
        *(
            (
                ["RUN", "--prompt", "t1", "--temperature", given],
                f"temperature = {value}: must be a finite number >= 0",
            )
            for given, value in (("-1", "-1.0"), ("nan", "nan"), ("inf", "inf"), ("1e999", "inf"))
        ),
    ],
)
def test_wrong_input_is_one_clear_line(
    arguments: list[str], line: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, *[str(trained) if argument == "RUN" else argument for argument in arguments]) == line


DAMAGES = {  # what is written into a file: what is said
    ("config.yaml", b"[" * 100_000): "must be YAML (it is nested too deeply)",
    ("config.yaml", b"- 1"): "must hold a mapping",
    ("config.yaml", b"\xff"): "must be UTF-8",
    ("config.yaml", b"model: x"): "optimizer.name = : must be one of",
    ("model.safetensors", b""): "Error while deserializing header",
    ("model.safetensors", bytes(500)): "Error while deserializing header",
    ("model.safetensors", save({"weight": torch.zeros(3)})): "must hold an embedding.weight of width 16",
    ("model.safetensors", save({"embedding.weight": torch.zeros(())})): "must hold an embedding.weight of width 16",
    ("model.safetensors", save({"embedding.weight": torch.zeros(64, 16)})): "Missing key(s)",
    ("tokenizer.json", b"\xff"): "must be UTF-8",
    ("tokenizer.json", b"{}"): "Model missing",
    ("unigram.safetensors", b"x"): "Error while deserializing header",
    ("unigram.safetensors", save({"log_probs": torch.zeros(3)})): "must hold 64 log-probabilities",
}


@pytest.mark.parametrize(("name", "content"), DAMAGES, ids=range(len(DAMAGES)))
def test_a_damaged_file_costs_one_line_that_names_it(
    trained: Path, tmp_path: Path, name: str, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(content)
    line = refused(capsys, str(tmp_path / "run"), "--prompt", "t1", "--top", "2")
    assert line.startswith(f"{tmp_path / 'run' / name}: ")
    assert DAMAGES[name, content] in line


def test_weights_that_are_not_finite_are_refused(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run" / "model.safetensors"
    weights = load_file(path)
    weights["embedding.weight"][3, 2] = float("nan")
    save_file(weights, path)
    with pytest.raises(ValueError, match="its weights must be finite"):
        load_model(tmp_path / "run")
