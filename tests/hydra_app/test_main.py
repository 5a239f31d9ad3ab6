"""The command line: what it refuses, in which words, and how fast it answers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TINY

from marble_sweep.hydra_app.compose import CONF, PACKAGE


def marble_sweep(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "marble_sweep", *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )


REFUSED = [
    ("model.num_layer=3", "model.num_layer: no such key; the nearest known one is model.num_layers"),
    ("optimizer.momentum=0.9", "optimizer.momentum: no such key here; it belongs to optimizer=sgd"),
    ("model=5L", "model = 5L: must be one of 0L64D, 1L16D, 1L4D"),
    ("model.num_layers=x", "model.num_layers = x: must be a whole number in [0, 10,000]"),
    ("+trainer.foo=1", "trainer.foo: no such key; the nearest known one is trainer.seq_len"),
    ("optimizer.lr=0", "optimizer.lr = 0.0: must be a finite number > 0"),
    ("--multirun optimizer.lr=1,abc", "job 1 (optimizer.lr=abc): optimizer.lr = abc: must be a finite number > 0"),
    ("data=text data.path=/missing.txt", "data.path = '/missing.txt': must be"),
    ("resume=nowhere", "resume = nowhere: must be a run directory"),
    ("certify.looks=9", "certify.looks: no such key; it is now trainer.num_evals, with trainer.eval_spacing=geometric"),
    ("hydra/sweeper=smallest", "hydra/sweeper = smallest: must be given with --multirun"),
    ("model.num_layers=1,2", "model.num_layers = 1,2: must be one value: for several --multirun is missing"),
]
REFUSED_TOO = [  # each a process of its own again, so not all by default
    ("model.num_heads=3", "model.num_heads = 3: must be null or a divisor of model.hidden_dim = 128"),
    ("model=[1,2]", "model = [1,2]: must be one of 0L64D, 1L16D"),
    ("+foo=1", "foo = 1: must be left out: there are only certify, data, device"),
    ("zzzzzz=1", "zzzzzz: no such key; --help lists those there are"),
    ("device=mps", "device.type = mps: must be auto or one that is there: "),
    ("data=text", "data.path = ???: must be given"),
    ("data=markov data.num_tokens=5000", "data.num_tokens = 5000: must have 16,384 tokens to train on"),
    ("resume=nowhere seed=1", "resume = nowhere: must be alone"),
    ("schedule.warmup_steps=5000", "schedule.warmup_steps = 5000: must be < trainer.total_steps = 5000"),
    ("hydra/launcher=joblib", "hydra/launcher = joblib: must be given with --multirun"),
    ("hydra.sweep.dir=m", "hydra.sweep.dir = m: must be given with --multirun"),
    ("search.n_trials=3", "search.n_trials = 3: must be given with --multirun"),
    ("sweep.max_failures=3", "sweep.max_failures = 3: must be given with --multirun"),
    ("--multirun search.n_trials=3", "search.n_trials = 3: must be given with hydra/sweeper=smallest"),
    ("--multirun hydra.run.dir=m", "hydra.run.dir = m: must be left out with --multirun"),
    ("model.num_layers=choice(1,2)", "model.num_layers = choice(1,2): must be one value: for several --multirun "),
    # A run small enough to end, should one of these be let through.
    (f"{' '.join(TINY)} hydra.job.chdir=true", "hydra.job.chdir = True: must be false"),
    (f"--multirun {' '.join(TINY)} hydra.job.chdir=true", "hydra.job.chdir = True: must be false"),
    (f"--multirun {' '.join(TINY)} hydra.sweep.subdir=x seed=1,2", "hydra.sweep.subdir = x: must be ${hydra.job.num}"),
]


@pytest.mark.parametrize(
    ("overrides", "line"), [*REFUSED, *(pytest.param(*case, marks=pytest.mark.slow) for case in REFUSED_TOO)]
)
def test_wrong_input_is_one_clear_line(overrides: str, line: str, tmp_path: Path) -> None:
    result = marble_sweep(*overrides.split(), cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(f"marble_sweep: {line}"), result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_what_hydra_only_warns_of_ends_the_program(tmp_path: Path) -> None:
    """Whoever asks for tracebacks gets one from a check before a sweep, and no sweep."""
    command = [sys.executable, "-m", "marble_sweep", "--multirun", "optimizer.lr=0,1"]
    environment = os.environ | {"HYDRA_FULL_ERROR": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith(
        "CheckError: job 0 (optimizer.lr=0): optimizer.lr = 0.0: must be a finite number > 0\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_value_error_of_foreign_code_keeps_its_traceback(tmp_path: Path) -> None:
    """Of a launcher that a user plugs in, say: only complaints of our own checks become one line."""
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "broken.py").write_text(
        """
from hydra.plugins.launcher import Launcher

class BrokenLauncher(Launcher):
    def setup(self, *, hydra_context, task_function, config):
        pass

    def launch(self, job_overrides, initial_job_idx):
        raise ValueError("math domain error")
"""
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "marble_sweep", "--multirun", "seed=1,2"]
    command.append("hydra.launcher._target_=hydra_plugins.broken.BrokenLauncher")
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert 'raise ValueError("math domain error")' in result.stderr


def test_an_installed_package_uses_its_own_conf(tmp_path: Path) -> None:
    """Laid out as a wheel is, beside somebody else's conf/."""
    shutil.copytree(PACKAGE, tmp_path / "marble_sweep")
    shutil.copytree(CONF, tmp_path / "marble_sweep" / "conf")
    shutil.copytree(PACKAGE.parent / "hydra_plugins", tmp_path / "hydra_plugins")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("foreign: true\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "marble_sweep", "--cfg", "job"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    assert "num_layers: 4" in result.stdout
    assert "foreign" not in result.stdout


def test_a_refused_config_leaves_no_directory(tmp_path: Path) -> None:
    marble_sweep("optimizer.lr=0", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = marble_sweep(*TINY, "hydra.run.dir=file/run", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("marble_sweep: [Errno")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["optimizer.lr=0"]])
def test_answering_imports_no_torch_and_leaves_the_environment(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import os, sys; from marble_sweep.hydra_app.main import main\n"
        "before = dict(os.environ)\n"
        f"sys.argv = ['marble_sweep', *{arguments!r}]\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, before == dict(os.environ), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.stderr.splitlines()[-1] == "False True", result.stderr


def test_the_process_that_searches_imports_no_torch() -> None:
    """Its trials are processes of their own: torch would double the time until the first one begins."""
    code = "import sys; import marble_sweep.hydra_app.search; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_names_every_group(tmp_path: Path) -> None:
    shown = marble_sweep("--help", cwd=tmp_path).stdout
    for group in ("data", "device", "experiment", "model", "optimizer", "precision", "schedule", "trainer"):
        assert f"\n{group}: " in shown
    assert "schema" not in shown


def test_name_follows_overridden_numbers(tmp_path: Path) -> None:
    shown = marble_sweep("--cfg", "job", "--resolve", "model=2L64D", "model.num_layers=3", cwd=tmp_path).stdout
    assert "name: 3L64D" in shown
    assert "experiment_name: 3L64D" in shown
