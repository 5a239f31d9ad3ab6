"""Whole runs on a tiny corpus: what lands in the directory, and that it can be trusted."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import TINY, compose_config, tiny_config, train_only
from opened import interrupted_as_it_writes
from safetensors.torch import load_file

from marble_sweep.run import log_outcome, run
from marble_sweep.runs.status import RunStatus
from marble_sweep.verdict import Verdict

NOTEBOOK_COLUMNS = ["step", "epoch", "loss", "top1", "top2", "top3", "h_autocorr", "dead_moving"]
NOTEBOOK_METADATA = {
    *("experiment", "series", "date", "total_steps", "batch_size", "seq_len", "learning_rate", "weight_decay"),
    *("beta1", "beta2", "epsilon", "vocab_size", "hidden_dim", "num_layers", "num_heads", "n_params", "random_seed"),
    *("n_dead_tokens", "n_live_tokens", "final_loss", "total_epochs", "epoch_length", "device"),
    *("checkpoint_interval", "n_checkpoints", "notes"),
}


def metrics(directory: Path) -> pd.DataFrame:
    """metrics.csv as text, so that equality is equality to the last digit; the timing column dropped."""
    return pd.read_csv(directory / "metrics.csv", dtype=str).drop(columns="tokens_per_second")


def assert_same_run(first: Path, second: Path) -> None:
    pd.testing.assert_frame_equal(metrics(first), metrics(second))
    assert (first / "evals.csv").read_text() == (second / "evals.csv").read_text()
    for name in ("checkpoints.safetensors", "model.safetensors", "state.safetensors"):
        left, right = load_file(first / name), load_file(second / name)
        assert left.keys() == right.keys()
        for key in left:
            assert torch.equal(left[key], right[key]) or left[key].isnan().any(), (name, key)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished") / "run"
    assert run(tiny_config(), directory) == "finished"
    return directory


def test_directory_is_complete(finished: Path) -> None:
    table = pd.read_csv(finished / "metrics.csv")
    assert list(table.columns[:8]) == NOTEBOOK_COLUMNS
    assert {"lr", "grad_norm", "h_norm", "h_spread", "live_moving", "dead_l1_mean", "dead_linf_max"} <= {*table}
    assert {"dead_early", "dead_midlife", "dead_late", "dead_frozen", "updates_lost", "tokens_per_second"} <= {*table}
    assert list(table["step"]) == list(range(1, 41))
    assert table["dead_moving"].between(0, 1).all()
    shares = table[["dead_early", "dead_midlife", "dead_late", "dead_frozen"]].sum(axis=1)
    assert shares.between(1 - 1e-6, 1 + 1e-6).all()

    metadata = json.loads((finished / "metadata.json").read_text())
    assert metadata.keys() >= NOTEBOOK_METADATA
    assert metadata["status"] == "finished"
    assert metadata["final_loss"] == pytest.approx(table["loss"].iloc[-1], rel=1e-6)
    assert metadata["n_params"] == sum(tensor.numel() for tensor in load_file(finished / "model.safetensors").values())
    assert json.loads((finished / "verdict.json").read_text())["beats_unigram"] is True
    assert {path.name for path in (finished / "plots").iterdir()} == {"loss.png", "lattice.png", "hidden.png"}


def test_checkpoints_have_the_notebooks_format(finished: Path) -> None:
    saved = load_file(finished / "checkpoints.safetensors")
    assert saved["steps"].tolist() == [0, 20, 40]
    assert saved["steps"].dtype == torch.int64
    assert saved["W"].dtype == torch.uint16
    assert saved["W"].shape == (3, 64, 16)
    assert saved["h_mean"].dtype == torch.float32
    assert torch.equal(saved["h_mean"][0], torch.zeros(16))
    assert saved["dead_mask"].dtype == torch.bool
    assert torch.equal(saved["dead_indices"], saved["dead_mask"].nonzero().flatten())
    final = load_file(finished / "model.safetensors")["embedding.weight"]
    assert torch.equal(saved["W"][-1].view(torch.bfloat16), final)


@pytest.mark.parametrize("precision", ["bf16", "bf16_pure", "bf16_stochastic", "mixed", "fp32"])
def test_same_seed_same_rows_and_another_seed_others(precision: str, tmp_path: Path) -> None:
    short = (f"precision={precision}", "trainer.total_steps=10")
    train_only(tiny_config(*short), tmp_path / "a")
    train_only(tiny_config(*short), tmp_path / "b")
    train_only(tiny_config(*short, "seed=0"), tmp_path / "c")
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert not metrics(tmp_path / "a")["loss"].equals(metrics(tmp_path / "c")["loss"])


def test_evaluation_leaves_training_alone(finished: Path, tmp_path: Path) -> None:
    run(tiny_config("trainer.num_evals=1"), tmp_path / "rarely")
    run(tiny_config("trainer.num_evals=40"), tmp_path / "always")
    assert len(pd.read_csv(tmp_path / "rarely" / "evals.csv")) == 1
    assert len(pd.read_csv(tmp_path / "always" / "evals.csv")) == 40
    for name in ("rarely", "always"):
        pd.testing.assert_frame_equal(metrics(finished), metrics(tmp_path / name))


def test_training_on_everything(tmp_path: Path) -> None:
    assert run(tiny_config("data.val_fraction=0"), tmp_path / "run") == "finished"
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert verdict["beats_unigram"] is None
    assert verdict["criteria"][0]["passed"] is None
    assert len(pd.read_csv(tmp_path / "run" / "evals.csv")) == 0


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "muon"])
@pytest.mark.parametrize("precision", ["bf16", "bf16_pure", "bf16_stochastic", "fp32"])
def test_interrupted_and_resumed_equals_unbroken(optimizer: str, precision: str, tmp_path: Path) -> None:
    schedule = ("schedule=wsd", "schedule.warmup_steps=3", "trainer.checkpoint_interval=13")
    config = tiny_config(f"precision={precision}", f"optimizer={optimizer}", *schedule)
    train_only(config, tmp_path / "unbroken")

    with interrupted_as_it_writes("checkpoints.safetensors", 2):  # after step 13; the first is of the start
        assert run(config, tmp_path / "broken") == "interrupted"
    metadata = json.loads((tmp_path / "broken" / "metadata.json").read_text())
    assert (metadata["status"], metadata["step"]) == ("interrupted", 13)
    assert train_only(config, tmp_path / "broken", resume=True) == "finished"
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")


def test_divergence_is_an_outcome(tmp_path: Path) -> None:
    overrides = ("optimizer=sgd", "optimizer.lr=1e30", "precision=fp32")
    assert run(tiny_config(*overrides), tmp_path / "run") == "diverged"
    metadata = json.loads((tmp_path / "run" / "metadata.json").read_text())
    rows = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert metadata["status"] == "diverged"
    assert metadata["final_loss"] is None
    assert metadata["step"] == rows["step"].iloc[-1] < 40
    assert rows["loss"].iloc[:-1].notna().all()
    assert pd.isna(rows["loss"].iloc[-1])
    assert (tmp_path / "run" / "verdict.json").exists()
    assert f"Diverged: the loss became NaN at step {metadata['step']}." in (tmp_path / "run" / "run.log").read_text()


@pytest.mark.parametrize(("loss", "what"), [("", "NaN"), ("inf", "infinite")])
def test_the_ending_says_how_the_loss_diverged(
    loss: str, what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "metrics.csv").write_text(f"step,loss\n1,4.5\n2,{loss}\n")
    log_outcome(tmp_path, RunStatus.DIVERGED, 2, Verdict([], None, None, None))
    assert f"Diverged: the loss became {what} at step 2." in caplog.text


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model=2L64D", "optimizer.lr=3e-3"),
        ("precision=fp32", "trainer.total_steps=150"),
        ("optimizer=sgd",),
        ("model.num_layers=0", "seed=7"),
    ],
    ids=str,
)
def test_no_run_on_independent_tokens_passes(overrides: tuple[str, ...], tmp_path: Path) -> None:
    run(tiny_config("data=iid", *overrides), tmp_path / "run")
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert verdict["beats_unigram"] is not True
    assert verdict["beats_oracle"] is not True
    assert True not in [criterion["passed"] for criterion in verdict["criteria"][:2]]


def test_taken_directory_is_refused(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match=r"hydra\.run\.dir = .*must be a new directory"):
        run(tiny_config("seed=1"), finished)
    assert before == {path: path.read_bytes() for path in finished.iterdir() if path.is_file()}


def start(directory: Path, *overrides: str) -> subprocess.Popen[str]:
    """The program in a process of its own; `overrides` win over the tiny settings."""
    command = [sys.executable, "-m", "marble_sweep"]
    if not any(each.startswith("resume=") for each in overrides):
        command += [*TINY, f"hydra.run.dir={directory}"]
    command += overrides
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=directory.parent)


def wait_for_step(directory: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Until that many rows are on disk, or the process has ended."""
    path = directory / "metrics.csv"
    while process.poll() is None and not (path.exists() and path.read_text().count("\n") > step):
        time.sleep(0.01)


LONG = ("trainer.total_steps=700", "trainer.checkpoint_interval=100", "trainer.state_interval=0.2")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("unbroken") / "run"
    run(tiny_config(*LONG), directory)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, signal.SIGINT, signal.SIGTERM],
)
def test_killed_at_a_random_step_and_resumed_equals_unbroken(
    number: signal.Signals, unbroken: Path, tmp_path: Path
) -> None:
    step = random.randrange(100, 400)
    print(f"killed at step {step} or soon after")
    process = start(tmp_path / "killed", *LONG)
    wait_for_step(tmp_path / "killed", step, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL, output
        assert json.loads((tmp_path / "killed" / "metadata.json").read_text())["status"] == "running"
    else:
        assert process.returncode == 130, output
        assert f"python -m marble_sweep resume={tmp_path / 'killed'}" in output
    resumed = start(tmp_path / "killed", f"resume={tmp_path / 'killed'}")
    output, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, output
    assert_same_run(unbroken, tmp_path / "killed")
    assert not list((tmp_path / "killed").glob(".*.tmp"))


@pytest.mark.slow
def test_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    process = start(tmp_path / "run", "trainer.total_steps=20")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    limit = (tmp_path / "run" / "metrics.csv").stat().st_size // 2
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "from marble_sweep.hydra_app.main import main; main()"
    )
    command = [sys.executable, "-c", code, *TINY, f"hydra.run.dir={tmp_path / 'full'}"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("marble_sweep: [Errno 27] File too large")


@pytest.mark.skipif(os.name != "posix", reason="file locks are tested on POSIX")
def test_a_running_directory_is_held(tmp_path: Path) -> None:
    process = start(tmp_path / "run", *LONG)
    try:
        wait_for_step(tmp_path / "run", 10, process)
        with pytest.raises(ValueError, match="a running process holds it"):
            run(tiny_config(*LONG), tmp_path / "run", resume=True)
    finally:
        process.kill()
        process.communicate()


def test_a_refused_run_leaves_its_directory_free(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer\.batch_size=9999"):
        run(tiny_config("trainer.batch_size=9999"), tmp_path / "run")
    assert run(tiny_config(), tmp_path / "run") == "finished"
    assert "Traceback" in (tmp_path / "run" / "run.log").read_text()  # of the refusal, for whoever wonders


def test_resuming_on_another_corpus_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the first corpus has these words in it and a few others too\n" * 400)
    settings = ("data=text", f"data.path={text}", "data.val_fraction=0", "data.vocab_size=300", "trainer.batch_size=4")
    config = compose_config(*[each for each in TINY if not each.startswith("data")], *settings)
    run(config, tmp_path / "run")
    before = (tmp_path / "run" / "tokenizer.json").read_bytes()
    text.write_text("another corpus with quite different sentences to learn from\n" * 400)
    with pytest.raises(ValueError, match="must be on the corpus it began with"):
        run(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == before


@pytest.mark.parametrize("name", ["state.safetensors", "checkpoints.safetensors"])
def test_a_damaged_state_is_named(name: str, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(b"junk")
    with pytest.raises(ValueError, match=f"{name}: must be a whole safetensors file"):
        run(tiny_config(), tmp_path / "run", resume=True)
