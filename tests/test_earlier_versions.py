"""Run directories of version 0.1.0, with its keys: read, compared, sampled from and continued as ever.

tests/assets/version_0.1 was made by commit 3ed251c: `data=markov data.vocab_size=64 data.num_tokens=4000 model=1L4D
optimizer.lr=1e-2 trainer.total_steps=20 trainer.batch_size=4 trainer.seq_len=16 trainer.eval_interval=5
trainer.checkpoint_interval=10 device.type=cpu`, once finished and once interrupted at step 13. The certified run had
`trainer.total_steps=40 certify.looks=5 certify.stop=true certify.threshold=9.0`. Plots are left out.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hydra.errors import HydraException

import marble_sweep as ms
from marble_sweep.config import UnknownKeyError, load
from marble_sweep.early_stopping import EarlyStopping
from marble_sweep.hydra_app.errors import one_line
from marble_sweep.metrics.margin import errors_needed
from marble_sweep.renamed_keys import RENAMED_KEYS, with_current_keys
from marble_sweep.report.summary import compare_runs
from marble_sweep.run import run
from marble_sweep.runs.run import Run
from marble_sweep.runs.state import read_info

EARLIER = Path(__file__).parent / "assets" / "version_0.1"
RUNS = ("finished", "interrupted", "certified")


@pytest.mark.parametrize(
    ("name", "num_evals", "spacing"),
    [("finished", 4, "linear"), ("interrupted", 4, "linear"), ("certified", 5, "geometric")],
)
def test_the_config_says_the_same_in_current_keys(name: str, num_evals: int, spacing: str) -> None:
    config = load(EARLIER / name / "config.yaml")
    assert (config.trainer.num_evals, config.trainer.eval_spacing) == (num_evals, spacing)
    assert config.verdict.min_non_unigram_top1 == 0.1


def test_a_finished_run_is_loaded_and_sampled_from() -> None:
    earlier = ms.load_run(EARLIER / "finished")
    assert earlier.status == "finished"
    assert list(earlier.evals["step"]) == EarlyStopping(earlier.config).steps == [5, 10, 15, 20]
    assert list(earlier.metrics["step"]) == list(range(1, 21))
    assert earlier.verdict is not None
    assert len(earlier.generate("t1 t2", num_tokens=3).split()) == 5


def test_runs_are_compared() -> None:
    compared = compare_runs([Run.read(EARLIER / name) for name in RUNS])
    assert [row["status"] for row in compared.rows] == list(RUNS)
    assert [row["damage"] for row in compared.rows] == [None] * 3


def test_a_run_that_could_stop_needs_the_standard_errors_it_needed() -> None:
    early_stopping = EarlyStopping(load(EARLIER / "certified" / "config.yaml"))
    assert early_stopping.steps == [10, 14, 20, 28, 40]
    assert early_stopping.errors_needed == errors_needed(3.0, 2 * 5)


def test_an_interrupted_run_is_continued(tmp_path: Path) -> None:
    shutil.copytree(EARLIER / "interrupted", tmp_path / "run")
    rows = (tmp_path / "run" / "metrics.csv").read_text()
    assert run(load(tmp_path / "run" / "config.yaml"), tmp_path / "run", resume=True, show=False) == "finished"
    assert (tmp_path / "run" / "metrics.csv").read_text().startswith(rows)
    assert list(pd.read_csv(tmp_path / "run" / "metrics.csv")["step"]) == list(range(1, 21))
    assert list(pd.read_csv(tmp_path / "run" / "evals.csv")["step"]) == [5, 10, 15, 20]


def test_a_state_says_why_its_run_ended_and_what_it_was_configured_as() -> None:
    config = load(EARLIER / "certified" / "config.yaml")
    path = EARLIER / "certified" / "state.safetensors"
    assert read_info(path, config)["stop_reason"] == "certified"
    edited = replace(config, trainer=replace(config.trainer, num_evals=6))
    with pytest.raises(ValueError, match=r"config\.yaml: trainer\.num_evals = 6: must be 5, as when"):
        read_info(path, edited)


@pytest.mark.parametrize(
    ("looks", "interval", "total_steps", "num_evals", "spacing"),
    [
        (0, 250, 5000, 20, "linear"),
        (0, 100, 1000, 10, "linear"),
        (0, 0, 1000, 1, "linear"),  # only after the last step
        (0, 2000, 1000, 1, "linear"),
        (0, 15, 40, 3, "linear"),  # at 15, 30 and 40, now at 13, 26 and 40
        (9, 250, 400, 9, "geometric"),
    ],
)
def test_an_evaluation_schedule_becomes_a_number(
    looks: int, interval: int, total_steps: int, num_evals: int, spacing: str
) -> None:
    earlier = {"certify.looks": looks, "trainer.eval_interval": interval, "trainer.total_steps": total_steps}
    assert with_current_keys(earlier) == {
        "trainer.total_steps": total_steps,
        "trainer.num_evals": num_evals,
        "trainer.eval_spacing": spacing,
    }


@pytest.mark.parametrize(
    "settings", [{}, {"trainer.num_evals": 3}, {"certify.looks": "x"}, {"trainer.eval_interval": -1}]
)
def test_current_keys_and_damaged_ones_stay(settings: dict[str, object]) -> None:
    assert with_current_keys(settings) == settings


@pytest.mark.parametrize("key", RENAMED_KEYS)
def test_what_is_refused_on_the_command_line_names_a_key_that_is_known(key: str) -> None:
    current = RENAMED_KEYS[key].split(",")[0]
    assert ms.compose([f"{current}={3 if 'num' in current else 0.5}"])
    for override in (f"{key}=3", f"+{key}=3"):
        with pytest.raises((HydraException, UnknownKeyError)) as caught:
            ms.compose([override])
        assert one_line(caught.value) == f"{key}: no such key; it is now {RENAMED_KEYS[key]}"
