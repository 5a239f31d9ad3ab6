"""When a run is evaluated on all held-out windows, and what that changes."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from helpers import tiny_config

from marble_sweep.config import Config
from marble_sweep.early_stopping import EarlyStopping
from marble_sweep.run import run
from marble_sweep.runs.run import Run
from marble_sweep.training.trainer import Trainer

FEW = ("trainer.eval_windows=8", "trainer.num_evals=2")


def test_the_last_evaluation_is_on_all_windows_and_the_verdict_by_them(tmp_path: Path) -> None:
    run(tiny_config(*FEW), tmp_path / "run", show=False)
    files = Run.read(tmp_path / "run")
    first, last = files.evals
    assert math.isnan(first["all_windows"])
    seq_len = files.config["trainer.seq_len"]
    assert last["all_windows"] == files.corpus["num_val_tokens"] // seq_len > 8
    assert last["all_tempered_margin"] != last["tempered_margin"]
    # The tempered unigram is never worse than the fitted one, on the same windows.
    assert last["all_tempered_margin"] <= last["all_unigram_margin"]
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    decisive = verdict["criteria"][0]["checks"][0]
    assert decisive["value"] == pytest.approx(last["all_tempered_margin"] / last["all_tempered_margin_se"], rel=1e-6)
    assert f"on {last['all_windows']:,.0f} windows" in decisive["reading"]


def test_where_all_windows_are_evaluated_anyway_there_is_nothing_more(tmp_path: Path) -> None:
    run(tiny_config("trainer.eval_windows=1000000"), tmp_path / "run", show=False)
    assert all(math.isnan(row["all_windows"]) for row in Run.read(tmp_path / "run").evals)


def needs_all(config: Config, step: int, margin: float, loss: float = 6.0) -> bool:
    early_stopping = EarlyStopping(config) if config.certify.stop else None
    trainer = SimpleNamespace(config=config, step=step, early_stopping=early_stopping)
    row: dict[str, float] = {"step": step, "val_loss": loss, "tempered_margin": margin, "tempered_margin_se": 0.01}
    return Trainer.needs_all_windows(cast(Any, trainer), row | {"context_gain": 0.5, "context_gain_se": 0.01})


def test_a_run_that_may_stop_looks_at_all_windows_where_it_is_undecided() -> None:
    whole, stopping = tiny_config(*FEW), tiny_config(*FEW, "certify.stop=true")
    last = whole.trainer.total_steps
    assert not needs_all(whole, last - 1, margin=0.01), "it decides nothing"
    assert needs_all(whole, last, margin=-0.5), "the verdict rests on it"
    assert not needs_all(whole, last, margin=math.nan, loss=math.nan)
    for step in (last - 1, last):
        assert needs_all(stopping, step, margin=-0.01)
        assert not needs_all(stopping, step, margin=0.5), "its windows certify it"
        assert not needs_all(stopping, step, margin=-0.5), "its windows show that the model is below"
