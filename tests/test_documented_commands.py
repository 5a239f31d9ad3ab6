"""Every command of README and docs, started as it is written there.

What takes minutes is stopped by SIGTERM once it trains, and the command it prints is pasted: it goes on in the same
directory. `experiment=quick` and the default search run to their end.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from marble_sweep.runs.status import read_metadata
from marble_sweep.searches.outcome import ENDINGS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("python ", "python3 ", "pip ", "make ")
PRINTED = re.compile(r"^ *(python -m marble_sweep .*)$", re.M)

# What cannot be started here, by how it begins, and why.
NOT_HERE = {
    "make run": "installs torch anew; the command that it ends in is started by itself",
    "make test": "is the suite that this test is part of",
    "python3 -m venv": "makes a virtual environment for the command after it",
    "pip install": "downloads packages",
    "python benchmarks/": "measures for half an hour, from a checkout; tests/test_step_benchmark.py drives it",
    "python -m marble_sweep.record import FILE.h5 DIR": "needs a file; tests/record/test_command.py makes one",
    "python -m marble_sweep.record export RUN_DIR": "needs a record; tests/record/test_command.py makes one",
    "python -m marble_sweep.compare [PATH…]": "says which arguments there are",
    "python -m marble_sweep.compare multirun/…/0": "needs a sweep of minutes; tests/report compares pairs of runs",
    "python -m marble_sweep.inspect FILE[:TENSOR]": "says which arguments there are",
    "python -m marble_sweep.lifecycle": "needs a run with a record; tests/lifecycle/test_recorded_runs.py makes some",
    "python -m marble_sweep --multirun seed=1,2,3,4 hydra/launcher=submitit_slurm": "needs a Slurm cluster",
    "python -m marble_sweep --multirun seed=1,2,3,4 hydra/launcher=ray": "answers SIGTERM with Ray's own exit code",
    "python -m marble_sweep --multirun hydra/sweeper=smallest hydra/launcher=submitit_slurm": "needs a Slurm cluster",
    "python -m marble_sweep --multirun hydra/sweeper=smallest hydra/launcher=ray": "needs a Ray cluster",
    "python -m marble_sweep --multirun hydra/sweeper=smallest search.storage=postgresql": "needs the reader's database",
    "python -m marble_sweep --multirun hydra/sweeper=smallest 'model.hidden_dim=range(2,129)' 'search.reuse": (
        "needs the reader's runs; tests/searches/test_reuse.py makes some"
    ),
}
TO_THE_END = ("python -m marble_sweep experiment=quick", "python -m marble_sweep --multirun hydra/sweeper=smallest")
READS = (
    "python -m marble_sweep --help",
    "python -m marble_sweep --cfg",
    "python -m marble_sweep.compare",
    "python -m marble_sweep.inspect",
    "python -m marble_sweep.sample",
)


def blocks(text: str) -> Iterator[list[str]]:
    """The lines of every block of code that has no language: fenced, or indented by four spaces."""
    block: list[str] = []
    fence: str | None = None
    for line in [*text.splitlines(), ""]:
        if line.startswith("```"):
            if fence == "```":
                yield block
            fence, block = (line if fence is None else None), []
        elif fence is not None:
            block.append(line)
        elif line.startswith("    "):
            block.append(line[4:])
        elif block:
            yield block
            block = []


def commands_of(block: list[str]) -> list[str]:
    """The commands of a block that begins with one; behind `$`, where it shows what they print too."""
    lines = "\n".join(block).replace("\\\n", "").splitlines()
    code = [line for line in lines if line and not line.startswith("#")]
    if not code:
        return []
    if code[0].startswith("$ "):
        return [line.removeprefix("$ ") for line in code if line.startswith("$ ")]
    return code if code[0].startswith(PROGRAMS) else []


def documented() -> list[str]:
    """Every command once, blanks and comments as a shell reads them left out."""
    found = [
        command
        for page in PAGES
        for block in blocks(page.read_text(encoding="utf-8"))
        for command in commands_of(block)
    ]
    return list(dict.fromkeys(re.sub(r"\s+", " ", re.sub(r"\s+#.*", "", command)).strip() for command in found))


def why_not(command: str) -> str | None:
    return next((reason for start, reason in NOT_HERE.items() if command.startswith(start)), None)


STARTED = [command for command in documented() if why_not(command) is None]
STOPPED = [each for each in STARTED if each not in TO_THE_END and not each.startswith(READS) and "RUN_DIR" not in each]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A PATH on which `python` is this one, and all the CPU: these are the commands as a user's machine runs them."""
    bin_dir = tmp_path_factory.mktemp("bin")
    (bin_dir / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (bin_dir / "python").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{bin_dir}:{os.environ['PATH']}")
        patch.delenv("OMP_NUM_THREADS", raising=False)
        yield


def start(command: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(command: str, folder: Path) -> str:
    process = start(command, folder)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def rows(folder: Path) -> int:
    """Of all runs' metrics together."""
    return sum(path.read_text().count("\n") - 1 for path in folder.glob("**/metrics.csv"))


def stop_beyond(process: subprocess.Popen[str], folder: Path, before: int) -> str:
    """SIGTERM once there are more than so many rows; returns what was printed."""
    while process.poll() is None and rows(folder) <= before:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    return output


def wait_until_free(folder: Path) -> None:
    """Until no process holds a run: under joblib and Ray the sweep may end before its jobs have saved their state."""
    from filelock import FileLock

    for path in folder.glob("**/.lock"):
        with FileLock(path, timeout=60):
            pass


def directories(folder: Path) -> list[str]:
    """Of single runs and of whole sweeps, where no other is asked for: `<date>/<time>` below outputs/ or multirun/."""
    return sorted(str(path) for path in [*folder.glob("outputs/*/*"), *folder.glob("multirun/*/*")])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder, but for the text and the ids that the commands speak of."""
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in [*PAGES, *(ROOT / "marble_sweep").glob("**/*.py")])
    (tmp_path / "book.txt").write_text(text)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "one.txt").write_text(text)
    (tmp_path / "notes" / "two.rst").write_text(text)
    (tmp_path / "My texts").mkdir()
    (tmp_path / "My texts" / "a, b (1).txt").write_text(text)
    np.random.default_rng(0).integers(0, 6_144, 200_000).astype("<u2").tofile(tmp_path / "ids.bin")
    (tmp_path / "texts.json").write_text(json.dumps([f" word{number}" for number in range(6_144)]))
    return tmp_path


def test_what_is_said_not_to_run_is_there() -> None:
    for command in NOT_HERE:
        assert any(each.startswith(command) for each in documented()), command
    for command in TO_THE_END:
        assert command in STARTED
    assert len(STOPPED) > 10


@pytest.mark.parametrize("command", STOPPED)
def test_stopped_it_goes_on(command: str, folder: Path, shell: None) -> None:
    written = command.replace("/shared", str(folder / "shared"))
    output = stop_beyond(start(written, folder), folder, 0)
    wait_until_free(folder)
    assert "Traceback" not in output
    before, where = rows(folder), directories(folder)
    assert len(where) == (0 if "/shared" in command else 1)
    pasted = PRINTED.findall(output)[-1]
    stop_beyond(start(pasted, folder), folder, before)
    wait_until_free(folder)
    assert directories(folder) == where
    runs = list(folder.glob("**/config.yaml"))
    statuses = [read_metadata(path.parent).get("status") for path in runs]
    assert len(statuses) == len({path.read_text() for path in runs}), "a run was started twice"
    assert "failed" not in statuses


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, shell: None) -> Path:
    """The folder in which experiment=quick ran to its end."""
    folder = tmp_path_factory.mktemp("quick")
    output = run(TO_THE_END[0], folder)
    (folder / "printed").write_text(output)
    return folder


def test_the_first_run_leaves_a_whole_run_directory(quick: Path) -> None:
    (directory,) = map(Path, directories(quick))
    assert f"Everything is in {directory}" in (quick / "printed").read_text()
    assert read_metadata(directory)["status"] == "finished"
    assert rows(quick) == 1000
    assert json.loads((directory / "verdict.json").read_text())
    assert {path.stem for path in (directory / "plots").glob("*.png")} >= {"loss", "lattice", "hidden"}


@pytest.mark.parametrize("command", [each for each in STARTED if each.startswith(READS)])
def test_what_reads_a_run_does(command: str, quick: Path) -> None:
    (directory,) = directories(quick)
    output = run(command.replace("RUN_DIR", directory), quick)
    assert "Traceback" not in output
    assert output.count("\n") >= 3


def test_a_finished_run_that_is_resumed_trains_no_further(quick: Path, tmp_path: Path) -> None:
    (command,) = [each for each in STARTED if "resume=RUN_DIR" in each]
    (directory,) = directories(quick)
    shutil.copytree(directory, tmp_path / "run")
    run(command.replace("RUN_DIR", str(tmp_path / "run")), tmp_path)
    assert rows(tmp_path) == 1000


@pytest.mark.timeout(3000)  # alone on two cores it takes 8 minutes, beside other tests twice that
def test_the_default_search_keeps_everything_in_one_directory(tmp_path: Path, shell: None) -> None:
    output = run(TO_THE_END[1], tmp_path)
    (directory,) = map(Path, directories(tmp_path))
    assert f"Everything is in {directory.relative_to(tmp_path)}" in output or f"Everything is in {directory}" in output
    found = json.loads((directory / "search.json").read_text())
    # Which one depends on the corpus, and so on what is installed.
    assert found["ended"] in ("settled", "undecided")
    trials = [path.parent for path in tmp_path.glob("**/metrics.csv")]
    assert {path.parent for path in trials} == {directory}
    assert len(trials) == found["trials"]
    assert found["thresholds"][0]["answer"]["confirming_seeds"]
    assert len((directory / "summary.csv").read_text().splitlines()) > 1
    for name in ("compare.html", "frontier.png", "study.log"):
        assert (directory / name).stat().st_size > 0
    before = rows(tmp_path)
    rerun = f"{TO_THE_END[1]} hydra.sweep.dir={directory}"
    assert ENDINGS[found["ended"]] in run(rerun, tmp_path)
    assert rows(tmp_path) == before
