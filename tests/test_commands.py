"""Printed commands: what the shell and Hydra read of them, and what the program does when they are pasted."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import TINY
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from marble_sweep.commands import PLAIN, override, shell_command
from marble_sweep.runs.status import read_metadata, run_directories

PARSER = OverridesParser.create()
AWKWARD = "=,()[]{}:;#$%'\" \\~ü\n\t-+.@|&*?!ab1e/"
TEXTS = st.one_of(
    st.text(),
    st.text(alphabet=st.sampled_from(AWKWARD)),
    st.from_regex(PLAIN, fullmatch=True),
    st.sampled_from(["null", "TRUE", "nan", "1e3", "1_000", "${x}", "\\${x}", "\\\\${", "a\\", '\\"', ".5", "~/x", ""]),
).filter(lambda text: text != "???")  # which OmegaConf takes for a value that is missing


@given(TEXTS)
def test_the_shell_and_hydra_read_the_very_text(text: str) -> None:
    *program, word = shlex.split(shell_command([override("resume", text)]))
    assert program == ["python", "-m", "marble_sweep"]
    value = PARSER.parse_override(word).value()
    assert isinstance(value, str)
    assert OmegaConf.create({"resume": value}).resume == text


def test_plain_paths_stand_without_quotes() -> None:
    assert shell_command([override("resume", "/a/b-1/2.0_x")]) == "python -m marble_sweep resume=/a/b-1/2.0_x"
    assert override("hydra.sweep.dir", "multirun/2026-11-25/13-07") == "hydra.sweep.dir=multirun/2026-11-25/13-07"


# ------------------------------------------------------------------------- pasted

ODD = " a=b,(c)[d]{e}:;#$%${x}\"'\\ü~\n "  # a folder's name with all that some grammar takes for its own
LONG = (*TINY, "trainer.total_steps=800", "trainer.state_interval=0.3")
SEARCH = (
    "hydra/sweeper=smallest",
    *TINY,
    "model.num_layers=0,1",
    "model.hidden_dim=2",
    "certify.threshold=0.1",
    "trainer.num_evals=2",
    "search.n_trials=2",
    "search.confirm_seeds=0",
    "trainer.total_steps=800",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an odd name to work in, and on the PATH the `python` that printed commands name."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "python"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    folder = tmp_path / ODD
    folder.mkdir()
    return folder


def stopped(folder: Path, directory: Path, words: list[str]) -> str:
    """What the program says when SIGTERM stops it while the run in `directory` trains."""
    command = [sys.executable, "-m", "marble_sweep", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder)
    path = directory / "metrics.csv"
    while process.poll() is None and not (path.exists() and path.read_text().count("\n") > 1):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    return said


def pasted(said: str, after: str, cwd: Path) -> None:
    """Run the command that is printed after a line, up to the next line that ends like one."""
    command = said.rpartition(f"{after}\n")[2].partition("\nCompared in")[0]
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=cwd, check=False)
    assert result.returncode == 0, (command, result.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("given_dir", [None, "given" + ODD])
def test_the_command_that_continues_a_run(given_dir: str | None, folder: Path) -> None:
    directory = "run" if given_dir is None else given_dir
    said = stopped(folder, folder / directory, [*LONG, override("hydra.run.dir", directory)])
    pasted(said, "continue with:", Path("/"))
    assert read_metadata(folder / directory)["status"] == "finished"
    assert {path.name for path in folder.iterdir()} == {directory}


@pytest.mark.slow
def test_the_command_that_goes_on_with_a_sweep(folder: Path) -> None:
    (folder / "text,1.txt").write_text("It is a text with a few words in it, and then a few more of them.\n\n" * 800)
    data = ("data=text", override("data.path", "text,1.txt"), "data.vocab_size=300", "data.val_fraction=0")
    words = [*(word for word in LONG if not word.startswith("data")), *data, override("notes", ODD)]
    sweep_dir = folder / ("given" + ODD)
    words = ["--multirun", *words, "seed=0,1", override("hydra.sweep.dir", sweep_dir.name)]
    said = stopped(folder, sweep_dir / "0", words)
    pasted(said, "To run what is to do:", folder)
    assert [read_metadata(path)["status"] for path in run_directories(sweep_dir)] == ["finished", "finished"]
    assert read_metadata(sweep_dir / "1")["notes"] == ODD
    assert {path.name for path in folder.iterdir()} == {sweep_dir.name, "text,1.txt"}


@pytest.mark.slow
def test_the_commands_of_a_search(folder: Path) -> None:
    sweep_dir = folder / ("given" + ODD)
    said = stopped(
        folder,
        sweep_dir / "0",
        ["--multirun", *SEARCH, override("hydra.sweep.dir", sweep_dir.name), 'search.study="a=b"'],
    )
    pasted(said, "To go on:", folder)
    found = json.loads((sweep_dir / "search.json").read_text())
    assert found["ended"] == "settled"
    assert {path.name for path in folder.iterdir()} == {sweep_dir.name}


@pytest.mark.slow
def test_the_printed_sweep_reads_the_same_config_files(folder: Path) -> None:
    extra = folder / "my configs"
    (extra / "experiment").mkdir(parents=True)
    (extra / "experiment" / "mine.yaml").write_text("# @package _global_\nnotes: from my own file\n")
    (extra / "other.yaml").write_text("defaults:\n  - config\n  - _self_\nseed: 7\n")
    words = ["--multirun", "--config-dir", extra.name, "--config-name=other", *LONG, "experiment=mine"]
    said = stopped(folder, folder / "sweep" / "0", [*words, "model.num_layers=0,1", "hydra.sweep.dir=sweep"])
    pasted(said, "To run what is to do:", folder)
    runs = [read_metadata(path) for path in run_directories(folder / "sweep")]
    assert [(run["status"], run["random_seed"], run["notes"]) for run in runs] == [
        ("finished", 7, "from my own file"),
        ("finished", 7, "from my own file"),
    ]
